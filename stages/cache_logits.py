"""`pipeline cache-logits`: run a teacher once over all views and store its logits."""

from __future__ import annotations

import os
from pathlib import Path

import click
from torch import set_num_threads

from pipeline.core.errors import ConfigError, counted
from pipeline.dump.average import write_ensemble
from pipeline.dump.crew import run_shared_dump
from pipeline.dump.run import cache_logits
from pipeline.dump.verify import verify
from pipeline.evaluation.context import RunContext
from pipeline.places.folder import Root, at
from pipeline.places.location import Location
from pipeline.store.faults import STRAY, damaged
from pipeline.store.layout import MANIFEST
from pipeline.store.leftovers import sweep_temporaries
from pipeline.store.lock import WAIT_SECONDS, WHOLE, Slice, gate
from pipeline.store.manifest import Manifest
from pipeline.store.place import behind_links, require_reference_or_nothing, require_store_or_nothing
from pipeline.store.reader import LogitStore
from pipeline.store.reference import beside
from pipeline.tasks.task import Task
from stages import paths
from stages.dumps import require_as_asked
from stages.dvc import naming_experiments, require_pointer_stage
from stages.engine import Engine
from stages.labels import tell_changed_labels
from stages.machine import Machine
from stages.on_ray import RayCrew
from stages.options import SliceType, reads_params, runs_on_engine, writes_store
from stages.params import Params
from stages.places import place_of, write_pointer
from stages.ranks import rank_slice, require_alone
from stages.ray_cluster import started
from stages.rehead import make as make_reheaded
from stages.teachers import dumping, judging, tell_other_data


@click.command()
@click.argument("dump")
@click.option(
    "--shards",
    "part",
    type=SliceType(),
    default=None,
    help="Write part I of N of the shards, counted from 0 or from 1 (0 and N are the same part). When all "
    "parts are written, run once without this option to complete the store.",
)
@click.option(
    "--by-view",
    is_flag=True,
    help="Finish each view before the next one, for students that --follow the dump; else all views of a "
    "block of samples are made in turn. The bytes are the same; encoded files are decoded once per view.",
)
@writes_store
@runs_on_engine
@reads_params
def command(
    params: Params,
    dump: str,
    out: Root | None,
    part: Slice | None,
    by_view: bool,
    machine: Machine,
    engine: Engine | None,
) -> None:
    """Run the teacher of DUMP once over all views and store its logits in a Zarr store.

    An interrupted dump resumes, and a complete one is left unchanged. Added views and samples extend the
    store; finished shards are never rewritten. Under torchrun, srun or mpirun each process writes its
    part; with --on, workers of Ray share the work.

    DUMP may also be one of `ensembles`, `reheads` or `probes`: then existing dumps are averaged, or get
    another last layer, and no teacher runs.
    """
    if out is None and params.places.logits is not None:
        require_pointer_stage()
    path = behind_links(out or place_of(params, dump))
    if dump in params.ensembles:
        _require_no_share(part, engine, f"ensemble {dump!r}")
        if _average(params, dump, path, machine) and out is None:
            write_pointer(params, dump)
        return
    if (reheaded := params.reheaded(dump)) is not None:
        _require_no_share(part, engine, f"re-headed dump {dump!r}")
        if rank_slice(WHOLE).index == 0:
            make_reheaded(params, dump, reheaded, path, machine)
            if out is None:
                write_pointer(params, dump)
        return
    require_store_or_nothing(path)
    was_complete = at(path).exists(MANIFEST)
    if engine is not None:
        context, manifest = _on_engine(params, dump, path, part, machine, engine, by_view=by_view)
    else:
        context, manifest = _here(params, dump, path, part, machine, by_view=by_view)
    if manifest is not None:
        if rank_slice(part or WHOLE).index == 0:
            if was_complete:
                _require_as_written(params, path, machine)
            tell_changed_labels(LogitStore(Location(path), manifest), context.data)
        if out is None:
            write_pointer(params, dump)
        _say(dump, manifest, context.task)


def _require_as_written(params: Params, path: Root, machine: Machine) -> None:
    """Read a store if DVC runs this and tracks its files: damage would become the output of the stage.

    Raises:
        CorruptStoreError: a file of the store is not as it was written.
    """
    if "DVC_STAGE" in os.environ and isinstance(path, Path) and params.places.logits is None:
        bad = [line for line in verify(path, machine.workers).bad if not line.endswith(STRAY)]
        if bad:
            raise damaged(path, bad)


def _here(
    params: Params, dump: str, path: Root, part: Slice | None, machine: Machine, *, by_view: bool
) -> tuple[RunContext, Manifest | None]:
    """Run a dump, or a part of it, in this process."""
    mine = rank_slice(part or WHOLE)
    context, teacher, spec = dumping(params, dump, machine)
    tell_other_data(teacher.name, context.data.digest())
    with naming_experiments():
        return context, cache_logits(
            context, teacher, spec, path, part=mine, completes=part is None, by_view=by_view
        )


def _on_engine(
    params: Params,
    dump: str,
    path: Root,
    part: Slice | None,
    machine: Machine,
    engine: Engine,
    *,
    by_view: bool,
) -> tuple[RunContext, Manifest | None]:
    """Run a dump on the workers of an engine; this process opens the data, and no teacher."""
    if part is not None:
        raise ConfigError(
            "--shards is for jobs without an engine, and --on gives out all shards; remove one"
        )
    require_alone()
    teacher = params.dump(dump).teacher
    context = judging(machine.context(params.data), params.teacher(teacher))
    tell_other_data(teacher, context.data.digest())
    with naming_experiments(), started(engine) as cluster:
        if not cluster.gpus:
            # Held-out figures are computed here, and have the last bits of a worker's.
            set_num_threads(cluster.cpus)
        crew = RayCrew(cluster, params, dump, path, engine)
        return context, run_shared_dump(context, path, crew, by_view=by_view)


def _average(params: Params, name: str, path: Root, machine: Machine) -> bool:
    """Write an ensemble; only the first of several processes does. Return whether this one did."""
    if rank_slice(WHOLE).index > 0:
        return False
    require_reference_or_nothing(path, "ensemble")
    spec = params.ensembles[name]
    members = {dump: paths.store(dump).name for dump in spec.of}
    context = machine.context(params.data)
    for dump, member in members.items():
        require_as_asked(params, dump, LogitStore.open(beside(path, member)), machine.device)
    with gate(path, WAIT_SECONDS):
        sweep_temporaries(path)
        ensemble = write_ensemble(path, list(members.values()), spec.blend(), context)
    top1 = "unknown" if ensemble.teacher_top1 is None else f"{ensemble.teacher_top1:.4f}"
    click.echo(
        f"{name}: {', '.join(spec.of)}, {counted(ensemble.n_views, 'view')}; {context.task.accuracy} on "
        f"test {top1} from the cached logits"
    )
    return True


def _require_no_share(part: Slice | None, engine: Engine | None, what: str) -> None:
    if part is not None or engine is not None:
        option = "--shards" if part is not None else "--on"
        raise ConfigError(f"{option} does not apply to {what}, which has no shards; remove it")


def _say(dump: str, manifest: Manifest, task: Task) -> None:
    for name, cached in manifest.teacher_top1["cached"].items():
        direct = manifest.teacher_top1["direct"][name]
        if cached is not None:
            kept = f"{cached:.4f} from the cached logits"
            figures = kept if direct is None else f"{direct:.4f} direct, {kept}"
            click.echo(f"{dump}: teacher {task.accuracy} on {name} {figures}")
    views = manifest.layout.sections["train"].n_views
    click.echo(
        f"{dump}: {counted(views, 'view')}, {manifest.size_bytes:,} bytes of outputs, "
        f"{manifest.layout.codec}: {task.describe(manifest.fidelity())}"
    )
