"""The `pipeline` command: one subcommand per stage, imported when it is called.

Owns exit statuses: 0 done, 1 an error (one line on stderr, with --debug a traceback), 2 wrong usage, 130
interrupted and 143 terminated; completed work is saved in both cases. `failures.py` owns the messages.
"""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

import click

from pipeline.core.errors import did_you_mean, quoted
from stages.dvc import require_outputs_inside
from stages.environment import fill_in
from stages.failures import explain, one_line
from stages.runtime import die_with_parent

COMMANDS = {
    "init": "Start a project from your own data.",
    "preset": "Print or write a ready-made parameter file.",
    "prepare": "Import and pack the dataset, and fix its splits.",
    "train-teacher": "Train or fine-tune a teacher, or evaluate pretrained weights.",
    "cache-logits": "Run a teacher once over all views and store its logits.",
    "rehead": "Give a dump another last layer, without its teacher.",
    "plan": "Estimate the cost of a dump before it runs.",
    "train-student": "Train a student from a dump, or as a baseline.",
    "sweep": "Train the missing runs of the sweep, and compare all.",
    "report": "Compare all trained runs.",
    "inspect": "Show the contents of a logit store.",
    "verify": "Check every byte of a logit store, or of the prepared data.",
    "export-logits": "Write the logits of a dump as tars or Parquet, for other loaders.",
    "export": "Export a trained model to one ONNX or torch.export file.",
}


class _LazyGroup(click.Group):
    """Imports a subcommand's module when it runs, so that help needs no torch."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"stages.{name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, context: click.Context, given: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        hint = did_you_mean(given[0], COMMANDS) if given and given[0] not in COMMANDS else ""
        if hint:
            context.fail(f"No such command {quoted(given[0])}{hint}")
        return super().resolve_command(context, given)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _print_version(context: click.Context, parameter: click.Parameter, asked: bool) -> None:
    if asked:
        from pipeline.core.package import program_version

        click.echo(f"{context.info_name}, version {program_version()}")
        context.exit()


@click.command(cls=_LazyGroup, no_args_is_help=False)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
@click.option("--debug", is_flag=True, help="Show a traceback with an error.")
def cli(debug: bool) -> None:
    """Distil offline: run a large teacher once, store its logits, train many small students from them.

    A project of your own begins with `pipeline init FOLDER`. Parameters are read from params.yaml; dvc.yaml
    runs these commands as its stages.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if threading.current_thread() is threading.main_thread():
        # Another thread, e.g. of a Ray Train worker, may set no handler; its program has its own.
        signal.signal(signal.SIGTERM, _terminate)
    fill_in()
    die_with_parent()
    try:
        status = run_here(given)
        sys.stdout.flush()
        if status:
            sys.exit(status)
    except click.ClickException as error:
        _show(error)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted; completed work is saved, run the same command to resume", 130)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _is_unread():
            sys.exit(1)
        if "--debug" in given:
            raise
        _fail(explain(error), 1)


def run_here(given: Sequence[str]) -> int | None:
    """Run a command in this process; its errors are raised.

    Returns:
        The status of an Exit that the command raises; None if it raises none.
    """
    require_outputs_inside(given)
    status: int | None = cli.main(list(given), standalone_mode=False)
    return status


def _terminate(number: int, frame: FrameType | None) -> None:
    _fail("terminated; completed work is saved, run the same command to resume", 128 + number)


def _show(error: click.ClickException) -> None:
    """Print click's usage error, escaped, since it repeats the user's arguments."""
    text = io.StringIO()
    error.show(text)
    for line in text.getvalue().splitlines():
        click.echo(one_line(line), err=True)


def _is_unread() -> bool:
    """Whether the reader of stdout is gone, e.g. `head`; redirect further output to /dev/null."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _fail(message: str, status: int) -> None:
    with suppress(OSError):
        click.echo(f"pipeline: {one_line(message)}", err=True)
    sys.exit(status)
