"""`pipeline verify`: check every byte of a store or of the prepared data, and replay a teacher."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from pipeline.audit import Audit, replay, verify
from pipeline.bench import Bench
from pipeline.caching.repair import read_header, repair
from pipeline.data.checking import audit_data
from pipeline.errors import ConfigError, StoreError
from pipeline.models.teacher import Teacher
from pipeline.progress import track
from pipeline.store.ensemble import Ensemble, is_ensemble
from pipeline.store.reader import LogitStore
from stages import layout
from stages.machine import Machine
from stages.options import debuggable, reads_store, runs_on_device
from stages.teachers import load_teacher


@click.command()
@click.argument("store", type=click.Path(path_type=Path), required=False)
@click.option(
    "--replay",
    "pairs",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Run the teacher again on this many random (view, sample) pairs.",
)
@click.option("--repair", "mend", is_flag=True, help="Make again what is bad, and check once more.")
@click.option(
    "--data",
    "with_data",
    is_flag=True,
    help="Check data/prepared: every file, and every image against its digest; STORE may be left out.",
)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@reads_store
@runs_on_device
@debuggable
def command(
    store: Path | None,
    pairs: int,
    mend: bool,
    with_data: bool,
    as_json: bool,
    allow_drift: bool,
    machine: Machine,
) -> None:
    """Check every byte of STORE against its manifest; exit 1 when something is wrong.

    With --replay or --repair, the teacher of models/teachers looks again at images of data/prepared. With
    --data the prepared data is checked as well, or alone.
    """
    if store is None and (not with_data or pairs or mend):
        raise click.UsageError("Missing argument 'STORE'; only --data goes without one")
    found = []
    if with_data:
        found.append(_audit_prepared(machine, as_json=as_json))
    if store is not None:
        found.append(_audit_store(store, machine, pairs, mend, as_json=as_json, allow_drift=allow_drift))
    audit = found[0] if len(found) == 1 else _joined(*found)
    if as_json:
        click.echo(json.dumps(audit.to_dict(), indent=1))
    if not audit.ok:
        raise click.exceptions.Exit(1)


def _audit_prepared(machine: Machine, *, as_json: bool) -> Audit:
    """Check the prepared data, and tell people what was found."""

    def progress(batches: Sequence[NDArray[np.int64]], step: str) -> Iterator[NDArray[np.int64]]:
        return track(batches, step, total=len(batches), unit="batch")

    found = audit_data(layout.PREPARED, workers=machine.workers, progress=progress)
    if not as_json:
        _tell(found.bad)
        click.echo(
            f"{layout.PREPARED}: {found.checked:,} files checked, {found.images:,} images compared with "
            f"their digests, {len(found.bad)} bad"
        )
    return Audit(ok=not found.bad, checked=found.checked, bad=found.bad)


def _audit_store(
    store: Path, machine: Machine, pairs: int, mend: bool, *, as_json: bool, allow_drift: bool
) -> Audit:
    """Check a store, mend it or replay its teacher if asked, and tell people what was found."""
    if is_ensemble(store):
        names = " and ".join(Ensemble.open(store).names)
        raise ConfigError(f"{store}: an ensemble has no logits of its own; verify {names} beside it")

    def bench_and_teacher() -> tuple[Bench, Teacher]:
        made_by = read_header(store).teacher
        teacher = load_teacher(made_by["name"], made_by["precision"], machine.device)
        return machine.bench(None), teacher

    if mend:
        for line in repair(store, *bench_and_teacher()):
            click.echo(f"made again: {line}", err=True)
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
    if not as_json:
        _tell(audit.bad)
        click.echo(f"{store}: {audit.checked} files checked, {len(audit.bad)} bad")
        if audit.drift is not None and str(audit.drift) not in audit.bad:
            click.echo(str(audit.drift))
        if audit.replayed:
            click.echo(
                f"{audit.replayed} pairs replayed: largest difference {audit.replay_max_abs_diff:.3g}, "
                f"mean KL {audit.replay_kl_mean:.2e}"
            )
    return audit


def _joined(data: Audit, store: Audit) -> Audit:
    """Return a store's findings with those of the prepared data before them."""
    return replace(
        store, ok=data.ok and store.ok, checked=data.checked + store.checked, bad=[*data.bad, *store.bad]
    )


def _tell(bad: Sequence[str]) -> None:
    for problem in bad:
        click.echo(problem)
