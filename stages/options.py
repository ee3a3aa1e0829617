"""Options that commands share."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from stages.memory import keep_freed_memory

Command = Callable[..., Any]


def reads_params(command: Command) -> Command:
    """Add --params, --set and --debug; the command gets `params`, checked."""

    @click.option(
        "--params",
        "params_path",
        type=click.Path(path_type=Path),
        default="params.yaml",
        show_default=True,
        help="Parameter file.",
    )
    @click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY.PATH=VALUE",
        help="Set one parameter, value in YAML; repeatable.",
    )
    @debuggable
    @functools.wraps(command)
    def wrapped(params_path: Path, overrides: tuple[str, ...], **arguments: Any) -> Any:
        from stages.params import load_params

        return command(load_params(params_path, overrides), **arguments)

    return wrapped


def debuggable(command: Command) -> Command:
    """Add --debug, which `stages.cli.main` looks at."""

    @click.option("--debug", is_flag=True, help="Show a traceback with an error.")
    @functools.wraps(command)
    def wrapped(debug: bool, **arguments: Any) -> Any:
        return command(**arguments)

    return wrapped


def runs_on_device(command: Command) -> Command:
    """Add --device and --workers; the command gets `device`, a torch.device, and `workers`."""

    @click.option(
        "--device",
        default="auto",
        show_default=True,
        help="cpu, cuda, cuda:N, or auto: cuda where there is one.",
    )
    @click.option(
        "--workers",
        type=click.IntRange(1, 256),
        default=None,
        help="Threads that decode and render.  [default: one a processor, at most 8]",
    )
    @functools.wraps(command)
    def wrapped(device: str, workers: int | None, **arguments: Any) -> Any:
        import torch

        name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        try:
            chosen = torch.device(name)
            torch.empty(0, device=chosen)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise click.BadParameter(f"{device}: {reason}", param_hint="--device") from None
        if chosen.type == "cpu":
            keep_freed_memory()
        count = workers or min(8, os.cpu_count() or 1)
        return command(device=chosen, workers=count, **arguments)

    return wrapped
