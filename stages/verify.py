"""`pipeline verify`: check every byte of a store or of the prepared data, and replay a teacher."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import ConfigError, DataError, StoreError, counted
from pipeline.core.progress import note, track
from pipeline.core.trust import Trust
from pipeline.dump.repair import read_header, repair
from pipeline.dump.spec import splits_of
from pipeline.dump.verify import Audit, replay, verify, verify_reheaded
from pipeline.evaluation.context import RunContext
from pipeline.modalities.prepared import PreparedData, audit_data
from pipeline.models.teacher import Teacher
from pipeline.places.addresses import hidden_place
from pipeline.places.folder import Root
from pipeline.store.commands import dump_command
from pipeline.store.ensemble import Ensemble
from pipeline.store.growth import tell_pending
from pipeline.store.index import Splits
from pipeline.store.layout import SCHEMA
from pipeline.store.reader import LogitStore
from pipeline.store.reference import Kind, kind_of
from pipeline.store.rehead import Reheaded
from pipeline.store.upgrade import upgrade
from pipeline.tasks.table import task_of
from stages import paths
from stages.dvc import cached_objects, tell_cache_to_mend, tell_damaged_cache
from stages.engine import Engine, threads_per_worker
from stages.failures import say
from stages.labels import changes_at
from stages.machine import Machine
from stages.options import (
    debuggable,
    named_store,
    reads_store,
    runs_on_engine,
    store_root,
    trusts_code,
)
from stages.ranks import require_alone
from stages.teachers import load_teacher
from stages.team import team_of


@click.command()
@click.argument("store", required=False)
@click.option(
    "--replay",
    "pairs",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Run the teacher again on this many random (view, sample) pairs, and compare.",
)
@click.option(
    "--upgrade",
    "upgrades",
    is_flag=True,
    help="First rewrite the bookkeeping of an older store in the present schema; no shard is touched. With "
    "the dump's samples in data/prepared, contents and labels are told apart.",
)
@click.option("--repair", "mend", is_flag=True, help="Rewrite damaged or missing files, then check again.")
@click.option(
    "--data",
    "with_data",
    is_flag=True,
    help="Check data/prepared too: every file, and each sample against its digest. STORE is then optional.",
)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@reads_store
@trusts_code
@runs_on_engine
@debuggable
def command(
    store: str | None,
    pairs: int,
    upgrades: bool,
    mend: bool,
    with_data: bool,
    as_json: bool,
    allow_drift: bool,
    trust: Trust,
    machine: Machine,
    engine: Engine | None,
) -> None:
    """Check every byte of STORE against its manifest; exit with status 1 on any fault.

    STORE is a folder, an address, or the name of a dump in data/logits.

    --replay and --repair run the teacher of models/teachers again on samples of data/prepared. --data
    checks the prepared data too; STORE is then optional. Code named by STORE or the teacher's card runs
    only with --trust-code. With --on, workers of Ray share the shards.
    """
    if store is None and (not with_data or pairs or mend or upgrades):
        raise click.UsageError("Missing argument 'STORE'; only --data works without one")
    if mend or upgrades or engine is not None:
        require_alone()
    if engine is not None and (pairs or mend or upgrades or with_data):
        raise ConfigError(
            "--on shares the check of STORE alone; run --replay, --repair, --upgrade and --data without it"
        )
    found = []
    if with_data:
        found.append(_audit_prepared(machine, as_json=as_json))
    if store is not None:
        root = store_root(named_store(store), "STORE")
        checked = _CheckedStore(
            store=root, machine=machine, trust=trust, allow_drift=allow_drift, engine=engine
        )
        if upgrades:
            checked.upgrade()
        if mend:
            checked.repair()
        found.append(checked.audit(pairs, as_json=as_json))
    audit = found[0] if len(found) == 1 else _joined(*found)
    if as_json:
        click.echo(json.dumps(audit.to_dict(), indent=1))
    if not audit.ok:
        raise click.exceptions.Exit(1)


def _audit_prepared(machine: Machine, *, as_json: bool) -> Audit:
    """Check the prepared data and, without JSON, print the findings."""

    def progress(batches: Sequence[NDArray[np.int64]], step: str) -> Iterator[NDArray[np.int64]]:
        return track(batches, step, total=len(batches), unit="batch")

    found = audit_data(paths.PREPARED, workers=machine.workers, progress=progress)
    if not as_json:
        _tell(found.bad)
        bad = f"{len(found.bad)} bad{'; next: pipeline prepare' if found.bad else ''}"
        click.echo(
            f"{paths.PREPARED}: {counted(found.checked, 'file')} checked, "
            f"{counted(found.images, 'sample')} compared with their digests, {bad}"
        )
    return Audit(ok=not found.bad, checked=found.checked, bad=found.bad)


@dataclass(frozen=True, slots=True, kw_only=True)
class _CheckedStore:
    """A store to check, and the resources to run its teacher again.

    Raises:
        ConfigError: the store is an ensemble, which has no logits of its own.
    """

    store: Root
    machine: Machine
    trust: Trust
    allow_drift: bool
    engine: Engine | None = None

    def __post_init__(self) -> None:
        if self._kind == "ensemble":
            names = " and ".join(Ensemble.open(self.store).names)
            raise ConfigError(
                f"{self.store}: an ensemble stores no logits; verify its members instead: {names}"
            )

    @property
    def _kind(self) -> Kind:
        return kind_of(self.store)

    def upgrade(self) -> None:
        """Rewrite the store's bookkeeping in the present schema."""
        if self._kind == "rehead":
            raise ConfigError(
                f"{self.store}: a re-headed dump has no records of its own; upgrade the dump behind it, "
                f"and rebuild this one with: {dump_command(self.store)}"
            )
        done = upgrade(self.store, _prepared_splits())
        note(f"{self.store}: {'upgraded to' if done.changed else 'has'} schema {SCHEMA}")
        if done.untold:
            note(
                f"{self.store}: the digests of {counted(done.untold, 'sample')} still cover labels, and a "
                f"changed label is refused: {paths.PREPARED} lacks them, or has other contents or labels; "
                f"restore those of the dump and run again: pipeline verify {self.store} --upgrade"
            )

    def repair(self) -> None:
        """Repair the store; repaired files are new, so print how to fix the same damage in DVC's cache."""
        if self._kind == "rehead":
            raise ConfigError(
                f"{self.store}: a re-headed dump has no shards to repair; repair the dump behind it with "
                f"--repair, or rebuild this one with: {dump_command(self.store)}"
            )
        damaged: list[Path] = []
        lines = repair(
            self.store,
            *self._bench_and_teacher(),
            about_to_mend=lambda names: damaged.extend(cached_objects(self.store, names)),
        )
        for line in lines:
            note(line)
        tell_cache_to_mend(self.store, damaged)

    def audit(self, pairs: int, *, as_json: bool) -> Audit:
        """Check the store, optionally replay its teacher, and print the findings."""
        try:
            audit = self._checked()
        except StoreError as error:
            if not as_json:
                raise
            return Audit(ok=False, checked=0, bad=[str(error)])
        if audit.ok and pairs:
            context, teacher = self._bench_and_teacher()
            opened = _open(self.store, self._kind, allow_drift=self.allow_drift)
            audit = replace(replay(opened, context, teacher, pairs), checked=audit.checked)
        if not as_json:
            tell_pending(self.store)
            self._tell(audit)
            tell_damaged_cache(self.store, audit.files)
            changes = changes_at(self.store) if audit.ok else None
            if changes is not None and changes.changed:
                click.echo(str(changes))
        return audit

    def _checked(self) -> Audit:
        """Check every byte, in this process or on the workers of an engine."""
        check = verify_reheaded if self._kind == "rehead" else verify
        if self.engine is None:
            return check(self.store, self.machine.workers)
        with team_of(self.engine, trusted=self.trust.code) as team:
            return check(self.store, threads_per_worker(), team)

    def _bench_and_teacher(self) -> tuple[RunContext, Teacher]:
        made_by = self._made_by()
        name, precision = made_by["name"], made_by["precision"]
        teacher = load_teacher(name, precision, self.machine.device, trust=self.trust)
        context = self.machine.context(None)
        return (context if self._kind == "rehead" else context.under(task_of(made_by))), teacher

    def _made_by(self) -> Mapping[str, Any]:
        """Return the teacher of the shards."""
        if self._kind == "rehead":
            (member,) = Reheaded.open(self.store, allow_drift=self.allow_drift).members
            return member.teacher
        return read_header(self.store).teacher

    def _tell(self, audit: Audit) -> None:
        _tell(audit.bad)
        following = f"; next: {self._mended_by}" if audit.files else ""
        checked = f"{counted(audit.checked, 'file')} checked, {len(audit.bad)} bad{following}"
        click.echo(f"{self.store}: {checked}")
        if audit.drift is not None and str(audit.drift) not in audit.bad:
            click.echo(str(audit.drift))
        if audit.replayed:
            click.echo(
                f"{counted(audit.replayed, 'pair')} of sample and view replayed by the teacher: stored "
                f"outputs differ by up to {audit.replay_max_abs_diff:.3g}, mean {audit.measure} "
                f"{audit.replay_kl_mean:.2e}; codec and rounding explain up to {audit.limit:.1e}: "
                f"{'the same' if audit.ok else 'not the same'} outputs"
            )

    @property
    def _mended_by(self) -> str:
        """Return the command that mends damaged files."""
        again = f"pipeline verify {quote(hidden_place(str(self.store)))} --repair"
        return dump_command(self.store) if self._kind == "rehead" else again


def _prepared_splits() -> Splits:
    """Return the splits of the prepared data; none if it is missing or of user code, which is told."""
    try:
        return splits_of(PreparedData.open(paths.PREPARED))
    except (DataError, ConfigError) as error:
        note(f"labels cannot be told from contents: {error}")
        return {}


def _open(store: Root, kind: Kind, *, allow_drift: bool) -> LogitStore | Reheaded:
    if kind == "rehead":
        return Reheaded.open(store, allow_drift=allow_drift)
    return LogitStore.open(store, allow_drift=allow_drift)


def _joined(data: Audit, store: Audit) -> Audit:
    """Join the findings of the prepared data and of a store, in this order."""
    return replace(
        store, ok=data.ok and store.ok, checked=data.checked + store.checked, bad=[*data.bad, *store.bad]
    )


def _tell(bad: Sequence[str]) -> None:
    for problem in bad:
        say(problem)
