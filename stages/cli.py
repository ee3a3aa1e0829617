"""The `pipeline` command: one subcommand a stage, loaded when it is called.

Owns exit statuses: 0 done, 1 an error a user can cause (one line on stderr), 2 wrong usage, 130 and 143
when interrupted or terminated, with the work so far kept.
"""

from __future__ import annotations

import errno
import importlib
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import click

from pipeline.errors import PipelineError
from stages.parent import die_with_parent

COMMANDS = {
    "preset": "Give the parameter file of a well-known job.",
    "prepare": "Import and pack the dataset, fix the splits.",
    "train-teacher": "Train or fine-tune a teacher, or evaluate pretrained weights.",
    "cache-logits": "Run a teacher once over all views and keep its logits.",
    "plan": "Say what a dump will cost, before it runs.",
    "train-student": "Train a student, from a dump or as a baseline.",
    "report": "Compare everything that was trained.",
    "inspect": "Say what a store of logits holds.",
    "verify": "Check every byte of a store of logits, or of the prepared data.",
    "export": "Write a trained model as one ONNX or torch.export file.",
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

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=_LazyGroup)
@click.version_option(package_name="softlabel-pipeline")
@click.option("--debug", is_flag=True, help="Show a traceback with an error.")
def cli(debug: bool) -> None:
    """Distil image classifiers offline: run a teacher once, train many students from its logits.

    Parameters are read from params.yaml; each command is also a stage of dvc.yaml.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, _terminate)
    die_with_parent()
    try:
        # A command returns nothing; click turns an Exit raised in it into a status here.
        status = cli.main(given, standalone_mode=False)
        if status:
            sys.exit(status)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted; finished work is kept, run the command again to go on", 130)
    except (PipelineError, OSError, RuntimeError) as error:
        if "--debug" in given or not _is_users(error):
            raise
        _fail(_message(error), 1)


def _terminate(number: int, frame: FrameType | None) -> None:
    _fail("terminated; finished work is kept, run the command again to go on", 128 + number)


def _is_users(error: Exception) -> bool:
    """Whether a user can cause and mend it: every own error, and what a disk says."""
    known = (
        *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
        *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EIO),
    )
    return isinstance(error, PipelineError) or getattr(error, "errno", None) in known or _is_memory(error)


def _is_memory(error: Exception) -> bool:
    """Whether a device ran out of memory: by its name, as torch may not be loaded."""
    return type(error).__name__ == "OutOfMemoryError"


def _message(error: Exception) -> str:
    if _is_memory(error):
        return f"{str(error).splitlines()[0]} Lower batch_size or --workers, or use --render cpu"
    if not isinstance(error, OSError):
        return str(error)
    mend = (
        "free some space and run the command again; finished work is kept"
        if error.errno in (errno.ENOSPC, errno.EDQUOT)
        else "make it writable, or choose another folder"
    )
    return f"{error.filename or 'output'}: {error.strerror}; {mend}"


def _fail(message: str, status: int) -> None:
    click.echo(f"pipeline: {message}", err=True)
    sys.exit(status)
