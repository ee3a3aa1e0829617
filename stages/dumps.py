"""A dump's store as students need it: what params.yaml asks for now, and how far its images drifted."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pipeline.audit import replay
from pipeline.bench import Bench
from pipeline.models.teacher import Teacher
from pipeline.progress import note
from pipeline.store.reader import LogitStore
from stages import layout
from stages.params import Params
from stages.teachers import load_teacher

# How often the teacher looks again where images may have drifted.
REPLAYED = 256


def open_dump(
    params: Params, dump: str, bench: Bench, *, allow_drift: bool
) -> tuple[LogitStore, dict[str, Any] | None]:
    """Return a dump's store, and what drift costs where it is allowed.

    Raises:
        MismatchError: the store is of another spec or teacher.
    """
    spec, store = params.dump(dump), LogitStore.open(layout.store(dump), allow_drift=allow_drift)
    store.require(views=spec.views.spec(), view_count=spec.views.count, codec=spec.codec_spec())
    teacher = None
    # A machine that only trains students may not have the teacher: there is nothing to compare there.
    if layout.teacher_checkpoint(spec.teacher).exists():
        teacher = load_teacher(spec.teacher, spec.precision, bench.device)
        store.require_teacher(teacher)
    return store, _measure_drift(store, teacher, bench) if allow_drift else None


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
