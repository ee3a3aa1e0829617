"""`pipeline rehead`: give a dump another last layer, without its teacher."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.core.errors import ConfigError, MismatchError, ModelError, counted, first_of
from pipeline.core.progress import note
from pipeline.core.text import require_name
from pipeline.dump.rehead import PROBE, rehead, require_classes, require_fine
from pipeline.evaluation.context import RunContext
from pipeline.places.folder import Root
from pipeline.store.leftovers import sweep_temporaries
from pipeline.store.lock import WAIT_SECONDS, gate
from pipeline.store.place import behind_links, require_reference_or_nothing
from pipeline.store.reader import LogitStore
from pipeline.store.reference import beside
from pipeline.store.rehead import Reheaded
from stages import paths
from stages.dumps import require_as_asked
from stages.machine import Machine
from stages.options import reads_params, runs_on_device
from stages.params import Params
from stages.places import place_of, write_pointer
from stages.ranks import require_alone
from stages.rehead_params import ProbeParams, ReheadParams


@click.command()
@click.argument("dump")
@click.option(
    "--head",
    required=True,
    metavar="FILE",
    help="Weights or class vectors (.npz, .safetensors), a class map (.yaml, .json), or `probe`: fit a "
    "linear layer to the labels.",
)
@click.option("--out", "name", required=True, metavar="NAME", help="Name of the new dump.")
@click.option("--penalty", type=float, default=None, help="Of a probe.  [default: the best of three]")
@click.option(
    "--max-kl",
    type=float,
    default=None,
    help="Error budget of classes in nats, mean at temperatures 1 and 4.  [default: 0.001]",
)
@click.option(
    "--max-error", type=float, default=None, help="Error budget of other tasks.  [default: 0.001]"
)
@runs_on_device
@reads_params
def command(
    params: Params,
    dump: str,
    head: str,
    name: str,
    penalty: float | None,
    max_kl: float | None,
    max_error: float | None,
    machine: Machine,
) -> None:
    """Give DUMP another last layer and write the result as dump NAME: its labels for other classes.

    Nothing is copied and no teacher runs: NAME.zarr, beside DUMP's store, has the head and refers to DUMP,
    which must keep features. An entry of `reheads` or `probes` in params.yaml makes the same under DVC.
    """
    require_alone()
    require_name("dump", name)
    if penalty is not None and head != PROBE:
        raise ConfigError(f"--penalty is of a probe, and --head is {head}; remove one")
    budgets = {"max_kl": max_kl, "max_error": max_error}
    asked = (
        ProbeParams(of=dump, penalty=penalty, **budgets)
        if head == PROBE
        else ReheadParams(of=dump, head=head, **budgets)
    )
    require_dump(params, dump)
    _require_as_named(params, name, asked)
    make(params, name, asked, behind_links(place_of(params, name)), machine)
    write_pointer(params, name)
    if name not in params.stores:
        note(f"to train from it, add to params.yaml: {_entry(name, asked)}")


def require_dump(params: Params, name: str) -> None:
    """Refuse a name that is no dump with shards of its own.

    Raises:
        ConfigError: it is an ensemble, re-headed itself, or unknown.
    """
    if name in params.ensembles:
        raise ConfigError(
            f"{name!r} is an ensemble, whose teachers have a last layer each; expected a dump; re-head one "
            f"of {', '.join(params.ensembles[name].of)}"
        )
    if (reheaded := params.reheaded(name)) is not None:
        raise ConfigError(
            f"{name!r} is a re-headed dump, which keeps no features of its own; expected a dump; use "
            f"{reheaded.of!r}"
        )
    params.dump(name)


def prepared(
    params: Params, name: str, asked: ReheadParams | ProbeParams, path: Root, machine: Machine
) -> tuple[Reheaded, RunContext]:
    """Return a re-headed dump that is not written yet, and the data.

    Raises:
        ConfigError: the dump keeps no features, or the head does not fit it.
        ModelError: the head's file is missing or damaged.
    """
    context, member = machine.context(params.data), paths.store(asked.of).name
    store = LogitStore.open(beside(path, member))
    require_as_asked(params, asked.of, store, machine.device)
    spec = asked.head_spec()
    spec.budget.require_link(context.task.measures)
    try:
        head = spec.find(member, store, context, lambda: params.data.student_labels(context.data))
        return rehead(path, member, spec, head, context), context
    except (ConfigError, ModelError) as error:
        raise type(error)(f"{name}: {error}") from None


def make(
    params: Params, name: str, asked: ReheadParams | ProbeParams, path: Root, machine: Machine
) -> None:
    """Write a re-headed dump, or replace an older one.

    Raises:
        ConfigError: its features are too coarse for the head.
    """
    require_reference_or_nothing(path, "rehead")
    made, context = prepared(params, name, asked, path, machine)
    require_fine(name, made, context)
    with gate(path, WAIT_SECONDS):
        sweep_temporaries(path)
        made.write(path)
    for line in lines(name, made, context):
        click.echo(line)


def lines(name: str, made: Reheaded, context: RunContext) -> list[str]:
    """Return a re-headed dump's figures in words."""
    finding, task = made.finding, context.task
    outputs = counted(made.n_classes, "output" if made.measures.is_absolute else "class")
    told = [
        f"{name}: {Path(made.name).stem} with head {finding.source}, {counted(made.n_views, 'view')}, "
        f"{outputs} ({first_of(made.head.classes)}); {task.describe(finding.fidelity)}, estimated on "
        f"{finding.rows:,} rows"
    ]
    if finding.teacher_top1 is not None:
        told.append(f"{name}: {task.accuracy} on test {finding.teacher_top1:.4f} from the cached features")
    if task.names_outputs:
        try:
            require_classes(name, made, context.data)
        except MismatchError as error:
            note(f"students cannot be trained on this data: {error}")
    return told


def _require_as_named(params: Params, name: str, asked: ReheadParams | ProbeParams) -> None:
    """Refuse a name that params.yaml gives to something else."""
    if name not in params.stores or params.reheaded(name) == asked:
        return
    raise ConfigError(
        f"{name!r} is defined differently in params.yaml; expected {_entry(name, asked)}; correct it, run: "
        f"pipeline cache-logits {name}, or choose another --out"
    )


def _entry(name: str, asked: ReheadParams | ProbeParams) -> str:
    """Return the lines of params.yaml that ask for the same, as one line of YAML."""
    group = "reheads" if isinstance(asked, ReheadParams) else "probes"
    given = {key: getattr(asked, key) for key in asked.__slots__ if getattr(asked, key) is not None}
    return f"{group}: {{{name}: {{{', '.join(f'{key}: {value}' for key, value in given.items())}}}}}"
