"""Command-line options that several commands share."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from pipeline.core.errors import ConfigError, did_you_mean, first_of
from stages.engine import Engine

if TYPE_CHECKING:
    from pipeline.places.folder import Root
    from stages.params import Params

    _ParamType = click.ParamType[Any]
else:  # ParamType is generic only since click 8.4
    _ParamType = click.ParamType

Command = Callable[..., Any]
MOST_WORKERS = 256
_WORKERS_OF_TRAINING = (
    "Decoding and rendering threads; with --on the number of worker processes.  [default: one per "
    "available CPU, shared by ranks; with --on the workers of the model in params.yaml]"
)
_WORKERS_ON_ENGINE = (
    "Decoding and rendering threads; with --on the number of worker processes.  [default: one per "
    "available CPU, or with --on one per GPU, or CPU if there is none; ranks share them]"
)


class SliceType(_ParamType):
    """I/N: one of N equal parts, counted from 0 or from 1."""

    name = "I/N"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        """Parse I/N to a `Slice`."""
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", str(value))
        if match is None or not int(match[2]) > 0 or int(match[1]) > int(match[2]):
            self.fail(f"{value!r}; expected I/N with I from 0 to N - 1, or from 1 to N", param, context)
        from pipeline.store.lock import Slice

        return Slice(int(match[1]) % int(match[2]), int(match[2]))


def reads_params(command: Command) -> Command:
    """Add --params, --set and --debug; the command gets checked `params`."""

    @finds_params
    @functools.wraps(command)
    def wrapped(read_params: Callable[[], Params], **arguments: Any) -> Any:
        return command(read_params(), **arguments)

    return wrapped


def finds_params(command: Command) -> Command:
    """Add --params, --set and --debug; the command gets `read_params`, which returns checked parameters."""

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
        help="Override one parameter; the value is YAML. Repeatable.",
    )
    @debuggable
    @functools.wraps(command)
    def wrapped(params_path: Path, overrides: tuple[str, ...], **arguments: Any) -> Any:
        def read_params() -> Params:
            from stages.params_file import load_params

            return load_params(params_path, overrides)

        return command(read_params=read_params, **arguments)

    return wrapped


def debuggable(command: Command) -> Command:
    """Add --debug, which `stages.cli.main` reads."""

    @click.option("--debug", is_flag=True, help="Show a traceback with an error.")
    @functools.wraps(command)
    def wrapped(debug: bool, **arguments: Any) -> Any:
        return command(**arguments)

    return wrapped


def writes_store(command: Command) -> Command:
    """Add --out; the command gets `out`, an absolute folder that can be created, a place, or None."""

    @click.option(
        "--out",
        type=click.Path(file_okay=False),
        default=None,
        metavar="PLACE",
        help="The store's folder, or its address, e.g. s3://bucket/main.zarr.  "
        "[default: data/logits/DUMP.zarr]",
    )
    @functools.wraps(command)
    def wrapped(out: str | None, **arguments: Any) -> Any:
        return command(out=None if out is None else _writable(out), **arguments)

    return wrapped


def named_store(given: str) -> str:
    """Return the address of a store that a command is given, or the folder of the dump of this name.

    Raises:
        ConfigError: neither is there, and another dump has nearly this name.
    """
    from stages import paths

    if re.fullmatch(r"[\w-]+", given) and not Path(given).exists():
        if paths.store(given).exists():
            return str(paths.store(given))
        known = sorted(store.stem for store in paths.LOGITS.glob("*.zarr"))
        hint = did_you_mean(given, known)
        if hint and not paths.pointer(given).exists():
            raise ConfigError(
                f"{paths.LOGITS}: has no dump {given!r}; expected one of {first_of(known)}{hint}"
            )
    return given


def store_root(address: str, hint: str) -> Root:
    """Return the folder or place of a store.

    Raises:
        click.BadParameter: the address has another form.
    """
    from pipeline.places.location import root_of

    try:
        return root_of(address)
    except ConfigError as error:
        raise click.BadParameter(str(error), param_hint=hint) from None


def _writable(address: str) -> Root:
    path = store_root(address, "--out")
    if not isinstance(path, Path):
        return path
    there = next(parent for parent in path.resolve().parents if parent.exists())
    if not there.is_dir():
        raise click.BadParameter(f"{path}: {there} is not a folder", param_hint="--out")
    return path.resolve()


def reads_store(command: Command) -> Command:
    """Add --allow-drift; the command gets `allow_drift`."""
    option = click.option(
        "--allow-drift",
        is_flag=True,
        help="Continue even if samples render differently here than for the teacher, e.g. with a different "
        "JPEG decoder. Reports the difference and, if the teacher is available, its KL cost.",
    )
    return option(command)


def trusts_code(command: Command) -> Command:
    """Add --trust-code; the command gets `trust`, the code that cards may run."""

    @click.option(
        "--trust-code",
        "named",
        multiple=True,
        metavar="NAME",
        help="Allow a model card or store to run this code, module or module:callable. Repeatable.  "
        "[default: they run no code]",
    )
    @functools.wraps(command)
    def wrapped(named: tuple[str, ...], **arguments: Any) -> Any:
        from pipeline.core.trust import Trust

        bad = next((name for name in named if not re.fullmatch(r"\w+(\.\w+)*(:\w+)?", name)), None)
        if bad is not None:
            raise click.BadParameter(
                f"{bad!r}; expected module or module:callable", param_hint="--trust-code"
            )
        trust_code(named)
        trust = Trust(code=frozenset(named), remedy="add --trust-code {name}")
        return command(trust=trust, **arguments)

    return wrapped


def trust_code(named: Collection[str]) -> None:
    """Let the tables of this process import code of these names, module or module:callable."""
    if named:
        from pipeline.codecs import OWN_CODECS
        from pipeline.modalities.table import MODALITIES
        from pipeline.tasks.table import TASKS

        for table in (MODALITIES, TASKS, OWN_CODECS, *MODALITIES):
            table.trust(named)


def runs_on_device(command: Command) -> Command:
    """Add --device, --workers and --render; the command gets `machine`, a `Machine`."""

    @_asks_for_machine(
        "Decoding and rendering threads.  [default: one per available CPU; ranks share them]"
    )
    @functools.wraps(command)
    def wrapped(device: str, workers: int | None, render: str, **arguments: Any) -> Any:
        from stages.machine import find_machine

        return command(machine=find_machine(device, workers, render), **arguments)

    return wrapped


def runs_on_engine(command: Command) -> Command:
    """Add --on and the options of `runs_on_device`; the command gets `machine`, and `engine` or None.

    With an engine the options describe its workers, and `machine` is this process's CPUs.
    """
    return _runs_on_engine(command, _WORKERS_ON_ENGINE)


def trains_on_engine(command: Command) -> Command:
    """Add the options of `runs_on_engine` to a command whose workers are the ranks of one training."""
    return _runs_on_engine(command, _WORKERS_OF_TRAINING)


def _runs_on_engine(command: Command, workers_help: str) -> Command:
    @_on
    @_asks_for_machine(workers_help)
    @functools.wraps(command)
    def wrapped(on: str | None, device: str, workers: int | None, render: str, **arguments: Any) -> Any:
        from stages.machine import find_machine

        if on is None:
            return command(machine=find_machine(device, workers, render), engine=None, **arguments)
        engine = make_engine(on, device, workers, render)
        return command(machine=find_machine("cpu", None, "cpu"), engine=engine, **arguments)

    return wrapped


def starts_on_engine(command: Command) -> Command:
    """Add the options of `runs_on_engine` to a command that only starts others.

    The command gets `engine`, or None; it looks for no device itself, so that it takes no GPU memory.
    """

    @_on
    @_asks_for_machine(_WORKERS_ON_ENGINE)
    @functools.wraps(command)
    def wrapped(on: str | None, device: str, workers: int | None, render: str, **arguments: Any) -> Any:
        engine = None if on is None else make_engine(on, device, workers, render)
        return command(engine=engine, **arguments)

    return wrapped


def given_words(context: click.Context, *, without: Collection[str]) -> list[str]:
    """Return the words of a command line that start this command again.

    Args:
        context: of the command.
        without: names of parameters to leave out.
    """
    words = [context.info_name or ""]
    for parameter in context.command.params:
        name = parameter.name or ""
        is_given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if name in without or not is_given:
            continue
        value = context.params[name]
        if isinstance(parameter, click.Argument):
            words.append(str(value))
        elif isinstance(parameter, click.Option) and parameter.is_flag:
            words.append(parameter.opts[0])
        else:
            each = value if parameter.multiple else [value]
            words += [word for one in each for word in (parameter.opts[0], str(one))]
    return words


def shares_reading(workers_help: str) -> Callable[[Command], Command]:
    """Add --on and --workers to a command that reads and needs no device.

    The command gets `workers`, and `engine` or None.
    """

    def decorate(command: Command) -> Command:
        @_on
        @click.option("--workers", type=click.IntRange(1, MOST_WORKERS), default=None, help=workers_help)
        @functools.wraps(command)
        def wrapped(on: str | None, workers: int | None, **arguments: Any) -> Any:
            engine = None if on is None else make_engine(on, "cpu", workers)
            return command(workers=workers, engine=engine, **arguments)

        return wrapped

    return decorate


def make_engine(on: str, device: str, workers: int | None, render: str = "auto") -> Engine:
    """Return the engine that options ask for.

    Raises:
        click.BadParameter: the device is one GPU of a machine.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise click.BadParameter(
            f"{device}: with --on each worker gets a GPU of its own; expected auto, cuda or cpu",
            param_hint="--device",
        )
    return Engine(address=None if on == "ray" else on, workers=workers, device=device, render=render)


class _EngineType(_ParamType):
    """The engine's name, or its address."""

    name = "ray[://HOST:PORT]"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        """Check the form of an engine."""
        if re.fullmatch(r"ray(://[A-Za-z0-9_.:\[\]-]+:[0-9]{1,5})?", str(value)) is None:
            self.fail(f"{value!r}; expected ray, or ray://HOST:PORT", param, context)
        return str(value)


_on = click.option(
    "--on",
    type=_EngineType(),
    default=None,
    help="Share the work among workers of Ray: ray starts them on this machine, ray://HOST:PORT uses a "
    "cluster.  [default: this process alone]",
)


def _asks_for_machine(workers_help: str) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in (
            click.option(
                "--render",
                type=click.Choice(("auto", "cpu", "device")),
                default="auto",
                show_default=True,
                help="Where to render views; the values are the same. auto: on a GPU if all samples have "
                "one size.",
            ),
            click.option(
                "--workers", type=click.IntRange(1, MOST_WORKERS), default=None, help=workers_help
            ),
            click.option(
                "--device",
                default="auto",
                show_default=True,
                help="cpu, cuda, cuda:N, or auto: a GPU if available; with several processes, one each.",
            ),
        ):
            command = option(command)
        return command

    return decorate
