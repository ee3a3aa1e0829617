"""`pipeline train-student`: train a student from a dump, or as a baseline without one."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from pipeline.audit import replay
from pipeline.bench import Bench
from pipeline.errors import ConfigError
from pipeline.losses import make_loss, require_targets
from pipeline.models.checkpoint import load_state
from pipeline.models.teacher import Teacher
from pipeline.progress import note
from pipeline.store.reader import LogitStore
from pipeline.training.run import initial_network, train
from stages import layout
from stages.machine import Machine
from stages.options import reads_params, reads_store, runs_on_device
from stages.outputs import write_checkpoints, write_run
from stages.params import Params, RecipeParams
from stages.teachers import load_teacher

# How often the teacher looks again where images may have drifted.
REPLAYED = 256


@click.command()
@click.argument("student")
@click.argument("recipe")
@click.argument("seed", type=click.IntRange(0, 2**32 - 1))
@click.option("--dump", default=None, help="Whose logits to learn from; baselines take none.")
@reads_store
@runs_on_device
@reads_params
def command(
    params: Params,
    student: str,
    recipe: str,
    seed: int,
    dump: str | None,
    allow_drift: bool,
    machine: Machine,
) -> None:
    """Train STUDENT by RECIPE with SEED, from a dump or, for a baseline, without one.

    Writes models/students/RUN.pt (best epoch on validation) and RUN.last.pt with their cards, and
    runs/RUN/metrics.json (figures of the best epoch on the test images) and history.csv.
    """
    spec, loss = params.student(student), params.recipe(recipe)
    _require_dump_fits(recipe, loss, dump)
    if dump is None and allow_drift:
        raise ConfigError("--allow-drift is about a dump's images; expected --dump DUMP with it; remove it")
    if dump is not None:
        require_targets(loss.loss, params.dump(dump).views, f"dump {dump}")
    bench = machine.bench()
    store, teacher = (None, None) if dump is None else _open(params, dump, bench, allow_drift=allow_drift)
    drift = _measure_drift(store, teacher, bench) if store is not None and allow_drift else None
    network, card = initial_network(bench.data, spec.start(params.data.image_size), seed)
    run = layout.run_name(dump, student, recipe, seed)
    state_path = layout.STATE / f"{run}.pt"
    result = train(
        bench,
        network,
        card,
        views=spec.training.views if store is None else store.view_spec,
        store=store,
        loss=make_loss(loss.loss, loss.settings),
        settings=spec.training.settings(),
        seed=seed,
        state_path=state_path,
        identity={"loss": [loss.loss, loss.settings], "store": _identity(store)},
    )
    load_state(network, result.best, run)
    data = bench.data
    teacher_logits = None if store is None else store.held_out("test", data.test)
    test = bench.evaluate(network, card.preprocessing, data.test, teacher_logits)
    best = result.history[result.best_epoch - 1]
    metrics: dict[str, Any] = {
        "student": student,
        "recipe": recipe,
        "seed": seed,
        "dump": dump,
        **test.to_dict(),
        "validation_top1": best.validation_top1,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        **result.speed,
        "best_epoch": result.best_epoch,
        "epochs": len(result.history),
        "drift": drift,
    }
    write_checkpoints(layout.STUDENTS / f"{run}.pt", result, card)
    write_run(layout.RUNS / run, metrics, result.history)
    state_path.unlink()
    click.echo(f"{run}: test top-1 {test.top1:.4f}" if test.top1 is not None else run)


def _require_dump_fits(name: str, recipe: RecipeParams, dump: str | None) -> None:
    if recipe.needs_teacher and dump is None:
        raise ConfigError(f"recipe {name} learns from a teacher's logits; expected --dump DUMP; add it")
    if not recipe.needs_teacher and dump is not None:
        raise ConfigError(f"recipe {name} is a baseline and reads no logits; expected no --dump; remove it")


def _open(
    params: Params, dump: str, bench: Bench, *, allow_drift: bool
) -> tuple[LogitStore, Teacher | None]:
    """Open a dump's store, which must be what params.yaml asks for now; its teacher, if it is at hand."""
    spec, store = params.dump(dump), LogitStore.open(layout.store(dump), allow_drift=allow_drift)
    store.require(views=spec.views.spec(), view_count=spec.views.count, codec=spec.codec_spec())
    # A machine that only trains students may not have the teacher: there is nothing to compare there.
    if not layout.teacher_checkpoint(spec.teacher).exists():
        return store, None
    teacher = load_teacher(spec.teacher, spec.precision, bench.device)
    store.require_teacher(teacher)
    return store, teacher


def _measure_drift(store: LogitStore, teacher: Teacher | None, bench: Bench) -> dict[str, Any] | None:
    """Say what images that may look otherwise here cost, where the teacher can look again."""
    if teacher is None:
        note(f"{store.location}: what drift costs in KL cannot be told without the teacher")
        return None
    audit = replay(store, bench, teacher, REPLAYED)
    note(
        f"{store.location}: teacher again on {REPLAYED} random pairs: mean KL(teacher || cached) "
        f"{audit.replay_kl_mean:.2e}"
    )
    seen = None if audit.drift is None else asdict(audit.drift)
    return {"kl_mean": audit.replay_kl_mean, "replayed": audit.replayed, "witnesses": seen}


def _identity(store: LogitStore | None) -> dict[str, Any] | None:
    return (
        None if store is None else {**store.manifest.header.fingerprint.to_dict(), "count": store.n_views}
    )
