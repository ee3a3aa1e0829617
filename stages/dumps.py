"""A dump as students need it: what params.yaml asks for now, and how far its images drifted."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from pipeline.core.errors import (
    CorruptStoreError,
    IncompleteStoreError,
    MismatchError,
    bounded,
    counted,
    quoted,
)
from pipeline.core.progress import note
from pipeline.dump.verify import replay
from pipeline.evaluation.context import Bench
from pipeline.models.checkpoint import ModelCard
from pipeline.models.teacher import Teacher
from pipeline.store.arrays import RESTORE
from pipeline.store.ensemble import Ensemble
from pipeline.store.reader import LogitStore
from stages import layout
from stages.params import Params
from stages.teachers import asked_teacher, card_difference

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
        teacher = require_as_asked(params, name, store, bench.device)
        return store, _measure_drift(store, teacher, bench) if allow_drift else None
    ensemble = Ensemble.open(path, allow_drift=allow_drift)
    drift = {}
    for dump, member in dumps_in(params, name, ensemble):
        teacher = require_as_asked(params, dump, member, bench.device)
        drift[dump] = _measure_drift(member, teacher, bench) if allow_drift else None
    return ensemble, drift if allow_drift else None


def dumps_in(params: Params, name: str, opened: LogitStore | Ensemble) -> list[tuple[str, LogitStore]]:
    """Return the dumps of params.yaml that an open store, or ensemble, is of.

    Raises:
        MismatchError: params.yaml asks for something else of that name.
    """
    is_one, asks_for_one = isinstance(opened, Ensemble), name in params.ensembles
    if is_one != asks_for_one:
        kinds = {True: "an ensemble", False: "a store of logits"}
        raise MismatchError(
            f"{opened.location}: is {kinds[is_one]}, params.yaml asks for {kinds[asks_for_one]}; remove it "
            f"with: rm -r {opened.location} and run: pipeline cache-logits {name}"
        )
    if not isinstance(opened, Ensemble):
        return [(name, opened)]
    _require_members(params, name, opened)
    return list(zip(params.ensembles[name].of, opened.members, strict=True))


def _require_members(params: Params, name: str, ensemble: Ensemble) -> None:
    spec = params.ensembles[name]
    expected = tuple(layout.store(dump).name for dump in spec.of), spec.blend()
    if (ensemble.names, ensemble.blend) != expected:
        raise MismatchError(
            f"{ensemble.location}: is of {', '.join(ensemble.names)}, {ensemble.blend}; expected what "
            f"ensembles.{name} says now; make it again: pipeline cache-logits {name}"
        )


def require_as_asked(params: Params, dump: str, store: LogitStore, device: torch.device) -> Teacher | None:
    """Refuse a store that is not as params.yaml asks; return its teacher, if it is at hand.

    Raises:
        MismatchError: its views, codec or teacher are others, or the teacher's checkpoint is.
    """
    spec = params.dump(dump)
    _require_views(dump, spec.views.count, store)
    store.require(views=spec.views.spec(), view_count=spec.views.count, codec=spec.codec_spec())
    require_described_teacher(params, dump, store)
    # A machine that only trains students may not have the teacher.
    if not layout.teacher_checkpoint(spec.teacher).exists():
        return None
    teacher = asked_teacher(params, spec.teacher, spec.precision, device)
    store.require_teacher(teacher)
    (name,) = store.teacher_names
    if name != spec.teacher:
        note(
            f"{store.location}: teacher {spec.teacher!r} is called {quoted(name)} there, of the same "
            "weights"
        )
    return teacher


def _require_views(dump: str, count: int, store: LogitStore) -> None:
    """Say what to do where a store has yet to grow: what it has can be used meanwhile."""
    if store.n_views < count:
        raise IncompleteStoreError(
            f"{store.location}: is complete with {counted(store.n_views, 'view')}; expected {count}, as "
            f"dumps.{dump}.views.count says; make the others with: pipeline cache-logits {dump}, or go on "
            f"with what is there: --set dumps.{dump}.views.count={store.n_views}"
        )


def require_described_teacher(params: Params, dump: str, store: LogitStore) -> None:
    """Refuse a store whose header describes another teacher than params.yaml asks for.

    Without the teacher's checkpoint its name must be the same; with it the weights tell.

    Raises:
        MismatchError: naming both teachers, and the ways out.
    """
    spec, header = params.dump(dump), store.manifest.header
    there, card = _described(store)
    differing = card_difference(params, spec.teacher, card)
    precision = header.teacher.get("precision")
    if precision != spec.precision:
        differing = f"dumps.{dump}.precision was {bounded(precision)}, is {spec.precision}"
    checkpoint = layout.teacher_checkpoint(spec.teacher)
    if not differing and (there == spec.teacher or checkpoint.exists()):
        return
    made_by = f"{quoted(there)} ({bounded(card.architecture.name)})"
    asked_for = f"{spec.teacher!r} ({params.teacher(spec.teacher).model})"
    ways = [f"set dumps.{dump}.teacher: {bounded(there)}"] if there != spec.teacher else []
    ways += [] if differing else [f"bring {checkpoint} to compare its weights"]
    raise MismatchError(
        f"{store.location} was made by teacher {made_by}, params.yaml asks for {asked_for}"
        f"{f': {differing}' if differing else ''}; {''.join(f'{way}, ' for way in ways)}use a new dump "
        f"name, or remove it with: rm -r {store.location} and run: pipeline cache-logits {dump}"
    )


def _described(store: LogitStore) -> tuple[str, ModelCard]:
    """Return the name and the card of the teacher that a store's header describes."""
    teacher = store.manifest.header.teacher
    try:
        return str(teacher["name"]), ModelCard.from_dict(teacher)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptStoreError(
            f"{store.location}: its header describes no teacher ({error!r}); {RESTORE}"
        ) from None


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
