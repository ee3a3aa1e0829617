"""A dump as students need it: what params.yaml asks for now, and how far its images drifted."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pipeline.audit import replay
from pipeline.bench import Bench
from pipeline.errors import IncompleteStoreError, MismatchError
from pipeline.models.teacher import Teacher
from pipeline.progress import note
from pipeline.store.ensemble import Ensemble
from pipeline.store.reader import LogitStore
from stages import layout
from stages.params import Params
from stages.teachers import load_teacher, trust_in

# How often the teacher looks again where images may have drifted.
REPLAYED = 256


def open_dump(
    params: Params, name: str, bench: Bench, *, allow_drift: bool
) -> tuple[LogitStore | Ensemble, dict[str, Any] | None]:
    """Return a dump or an ensemble of some, and, of each dump, what drift costs where it is allowed.

    Raises:
        MismatchError: it is of another spec or teacher.
    """
    path = layout.store(name)
    if name not in params.ensembles:
        store = LogitStore.open(path, allow_drift=allow_drift)
        teacher = _require_as_asked(params, name, store, bench)
        return store, _measure_drift(store, teacher, bench) if allow_drift else None
    ensemble = Ensemble.open(path, allow_drift=allow_drift)
    _require_members(params, name, ensemble)
    drift = {}
    for dump, member in zip(params.ensembles[name].of, ensemble.members, strict=True):
        teacher = _require_as_asked(params, dump, member, bench)
        drift[dump] = _measure_drift(member, teacher, bench) if allow_drift else None
    return ensemble, drift if allow_drift else None


def _require_members(params: Params, name: str, ensemble: Ensemble) -> None:
    spec = params.ensembles[name]
    expected = tuple(layout.store(dump).name for dump in spec.of), spec.blend()
    if (ensemble.names, ensemble.blend) != expected:
        raise MismatchError(
            f"{ensemble.location}: is of {', '.join(ensemble.names)}, {ensemble.blend}; expected what "
            f"ensembles.{name} says now; make it again: pipeline cache-logits {name}"
        )


def _require_as_asked(params: Params, dump: str, store: LogitStore, bench: Bench) -> Teacher | None:
    """Refuse a store that is not as params.yaml asks; return its teacher, if it is at hand."""
    spec = params.dump(dump)
    _require_views(dump, spec.views.count, store)
    store.require(views=spec.views.spec(), view_count=spec.views.count, codec=spec.codec_spec())
    # A machine that only trains students may not have the teacher: there is nothing to compare there.
    if not layout.teacher_checkpoint(spec.teacher).exists():
        return None
    trust = trust_in(params, spec.teacher)
    teacher = load_teacher(spec.teacher, spec.precision, bench.device, trust=trust)
    store.require_teacher(teacher)
    return teacher


def _require_views(dump: str, count: int, store: LogitStore) -> None:
    """Say what to do where a store has yet to grow: what it has can be used meanwhile."""
    if store.n_views < count:
        raise IncompleteStoreError(
            f"{store.location}: is complete with {store.n_views} views; expected {count}, as dumps.{dump}."
            f"views.count says; make the others with: pipeline cache-logits {dump}, or go on with what is "
            f"there: --set dumps.{dump}.views.count={store.n_views}"
        )


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
