"""`pipeline verify`: check every byte of a store, and replay its teacher."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from pipeline.audit import Audit, replay, verify
from pipeline.bench import Bench
from pipeline.caching.repair import read_header, repair
from pipeline.errors import ConfigError, StoreError
from pipeline.models.teacher import Teacher
from pipeline.models.trust import Trust
from pipeline.progress import note
from pipeline.store.ensemble import Ensemble, is_ensemble
from pipeline.store.growth import tell_pending
from pipeline.store.reader import LogitStore
from stages.dvc import cached_objects
from stages.machine import Machine
from stages.options import debuggable, reads_store, runs_on_device, trusts_code
from stages.teachers import load_teacher
from stages.terminal import say


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.option(
    "--replay",
    "pairs",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Run the teacher again on this many random (view, sample) pairs.",
)
@click.option("--repair", "mend", is_flag=True, help="Make again what is bad, and check once more.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@reads_store
@trusts_code
@runs_on_device
@debuggable
def command(
    store: Path,
    pairs: int,
    mend: bool,
    as_json: bool,
    allow_drift: bool,
    trust: Trust,
    machine: Machine,
) -> None:
    """Check every byte of STORE against its manifest; exit 1 when something is wrong.

    With --replay or --repair, the teacher of models/teachers looks again at images of data/prepared.
    Code that the teacher's card names is run only with --trust-code.
    """
    if is_ensemble(store):
        names = " and ".join(Ensemble.open(store).names)
        raise ConfigError(f"{store}: an ensemble has no logits of its own; verify {names} beside it")

    def bench_and_teacher() -> tuple[Bench, Teacher]:
        made_by = read_header(store).teacher
        teacher = load_teacher(made_by["name"], made_by["precision"], machine.device, trust=trust)
        return machine.bench(), teacher

    if mend:
        _repair(store, *bench_and_teacher())
    try:
        audit = verify(store)
    except StoreError as error:
        if not as_json:
            raise
        audit = Audit(ok=False, checked=0, bad=[str(error)])
    if audit.ok and pairs:
        bench, teacher = bench_and_teacher()
        opened = LogitStore.open(store, allow_drift=allow_drift)
        audit = replace(replay(opened, bench, teacher, pairs), checked=audit.checked)
    if as_json:
        click.echo(json.dumps(audit.to_dict(), indent=1))
    else:
        _tell_links(store, audit)
        tell_pending(store)
        for problem in audit.bad:
            say(problem)
        click.echo(f"{store}: {audit.checked} files checked, {len(audit.bad)} bad")
        if audit.drift is not None and str(audit.drift) not in audit.bad:
            click.echo(str(audit.drift))
        if audit.replayed:
            click.echo(
                f"{audit.replayed} pairs replayed: largest difference {audit.replay_max_abs_diff:.3g}, "
                f"mean KL {audit.replay_kl_mean:.2e}"
            )
    if not audit.ok:
        raise click.exceptions.Exit(1)


def _repair(store: Path, bench: Bench, teacher: Teacher) -> None:
    """Mend a store, and say what to do where DVC's cache has the same damage: mended files are new ones."""
    damaged: list[Path] = []
    lines = repair(
        store, bench, teacher, about_to_mend=lambda files: damaged.extend(cached_objects(store, files))
    )
    for line in lines:
        note(line)
    if damaged:
        click.echo(
            f"{store}: DVC's cache still has the damage, and dvc push would send it; run: rm -f "
            f"{_listed(damaged)} && dvc commit -f {store}",
            err=True,
        )


def _tell_links(store: Path, audit: Audit) -> None:
    """Say how to restore files that are links to DVC's cache: dvc checkout would bring the damage back."""
    if damaged := cached_objects(store, [store / name for name in audit.files]):
        click.echo(
            f"{store}: DVC's cache has the same damage, so dvc checkout cannot restore it; mend it with: "
            f"pipeline verify {store} --repair, or run: rm -f {_listed(damaged)} && dvc pull --force "
            f"{store}",
            err=True,
        )


def _listed(files: Sequence[Path]) -> str:
    return " ".join(shlex.quote(str(file)) for file in files)
