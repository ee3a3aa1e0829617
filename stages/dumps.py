"""Open dumps, ensembles and re-headed dumps, and refuse those that do not match params.yaml."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
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
from pipeline.core.hashing import difference, spec_digest
from pipeline.core.progress import note
from pipeline.core.text import NAME
from pipeline.dump.rehead import require_classes
from pipeline.dump.verify import replay
from pipeline.evaluation.context import RunContext
from pipeline.models.checkpoint import ModelCard
from pipeline.models.teacher import Teacher
from pipeline.places.addresses import removal
from pipeline.store.commands import restoring
from pipeline.store.ensemble import Ensemble
from pipeline.store.follow import FollowedStore, follow
from pipeline.store.reader import LogitStore
from pipeline.store.reference import NOUNS, Kind
from pipeline.store.rehead import Reheaded
from pipeline.store.soft_labels import SoftLabels
from pipeline.tasks.classes import CLASSES
from pipeline.tasks.table import task_of
from stages import paths
from stages.labels import tell_changed_labels
from stages.params import Params
from stages.places import find_store, find_store_to_follow
from stages.rehead_params import ProbeParams, ReheadParams
from stages.teachers import asked_teacher, card_difference

_OPEN: Mapping[Kind, Callable[..., SoftLabels]] = {
    "logits": LogitStore.open,
    "ensemble": Ensemble.open,
    "rehead": Reheaded.open,
}
# Number of (view, sample) pairs that the teacher evaluates again to measure drift.
REPLAYED = 256


def open_dump(
    params: Params,
    name: str,
    context: RunContext,
    *,
    allow_drift: bool,
    follow_seconds: float | None = None,
) -> tuple[SoftLabels, dict[str, Any] | None]:
    """Open a dump, an ensemble or a re-headed dump; if drift is allowed, also return its cost per dump.

    Args:
        params: all of params.yaml.
        name: of the dump.
        context: the data and its task.
        allow_drift: accept samples that render differently here.
        follow_seconds: accept a dump that is being written, and wait so long if no process writes it.

    Raises:
        IncompleteStoreError: the store is unfinished, and not or no longer followed.
        MismatchError: the store has a different spec, teacher, task or classes.
    """
    kind = _kind_asked(params, name)
    store: SoftLabels
    if follow_seconds is None:
        store = _OPEN[kind](find_store(params, name), allow_drift=allow_drift)
    else:
        store = follow(find_store_to_follow(params, name), timeout_seconds=follow_seconds)
    drift = {}
    for dump, member in dumps_in(params, name, store):
        teacher = require_as_asked(params, dump, member, context.device)
        drift[dump] = _measure_drift(member, teacher, context) if allow_drift else None
    _require_task(name, store, context)
    if isinstance(store, Reheaded) and context.task.names_outputs:
        require_classes(name, store, context.data)
    if isinstance(store, FollowedStore):
        store.wait_for_held_out()
    if context.ranks.is_first:
        tell_changed_labels(store, context.data)
    if not allow_drift:
        return store, None
    return store, drift[name] if kind == "logits" else drift


def store_digest(store: SoftLabels) -> str:
    """Return a digest of everything that determines a store's soft labels, for the record of a run."""
    return spec_digest(store.identity())


def _kind_asked(params: Params, name: str) -> Kind:
    """Return the kind of store that params.yaml asks for under a name."""
    if name in params.ensembles:
        return "ensemble"
    if params.reheaded(name) is not None:
        return "rehead"
    params.dump(name)
    return "logits"


def _require_task(name: str, store: SoftLabels, context: RunContext) -> None:
    """Refuse labels of another task than the data's, e.g. an embedding where students have classes.

    Raises:
        MismatchError: names both.
    """
    theirs, ours = str(store.teacher.get("task", CLASSES.name)), context.task.name
    if theirs != ours:
        raise MismatchError(
            f"{store.location}: is of task {quoted(theirs)}, and the data of task {ours!r}; expected the "
            f"same; set data.task, or give it another head: pipeline rehead {name} --head FILE --out NAME"
        )


def dumps_in(params: Params, name: str, opened: SoftLabels) -> list[tuple[str, LogitStore]]:
    """Return the dumps (name, store) behind an open store, ensemble or re-headed dump.

    Raises:
        MismatchError: params.yaml defines this name differently.
    """
    found, asked = _kind_of(opened), _kind_asked(params, name)
    if found != asked:
        raise MismatchError(
            f"{opened.location}: is {NOUNS[found]}, but params.yaml asks for {NOUNS[asked]}; "
            f"remove it with: {removal(opened.location)} and run: pipeline cache-logits {name}"
        )
    if isinstance(opened, Ensemble):
        _require_members(params, name, opened)
        return list(zip(params.ensembles[name].of, opened.members, strict=True))
    (store,) = opened.members
    reheaded = params.reheaded(name)
    if isinstance(opened, Reheaded) and reheaded is not None:
        _require_head(name, reheaded, opened)
        return [(reheaded.of, store)]
    return [(name, store)]


def _kind_of(opened: SoftLabels) -> Kind:
    if isinstance(opened, Ensemble):
        return "ensemble"
    return "rehead" if isinstance(opened, Reheaded) else "logits"


def _require_head(name: str, asked: ReheadParams | ProbeParams, made: Reheaded) -> None:
    """Refuse a re-headed dump that was made with other parameters, or from another head.

    Raises:
        MismatchError: names the difference and the command.
    """
    spec, finding = asked.head_spec(), made.finding
    pairs: dict[str, tuple[Any, Any]] = {
        "of": (Path(made.name).stem, asked.of),
        "head": (finding.source, spec.label),
        "budget": (str(finding.codec_spec), str(spec.budget)),
        "penalty": (finding.penalty, spec.penalty),
    }
    # A machine that only trains students may not have the file.
    if not spec.is_probe and Path(spec.source).exists():
        pairs["content of the head"] = finding.digest, spec.digest()
    there, here = ({key: pair[side] for key, pair in pairs.items()} for side in (0, 1))
    if differing := difference(there, here):
        raise MismatchError(
            f"{made.location}: does not match params.yaml: {differing}; rebuild it with: pipeline "
            f"cache-logits {name}"
        )


def _require_members(params: Params, name: str, ensemble: Ensemble) -> None:
    spec = params.ensembles[name]
    expected = tuple(paths.store(dump).name for dump in spec.of), spec.blend()
    names = ensemble.names
    if (names, ensemble.blend) != expected:
        raise MismatchError(
            f"{ensemble.location}: averages {', '.join(names)}, {ensemble.blend}; ensembles.{name} has "
            f"changed since; rebuild it with: pipeline cache-logits {name}"
        )


def require_as_asked(params: Params, dump: str, store: LogitStore, device: torch.device) -> Teacher | None:
    """Refuse a store that does not match params.yaml; return its teacher, or None without a checkpoint.

    Raises:
        MismatchError: views, codec, teacher or the teacher's checkpoint differ.
    """
    spec = params.dump(dump)
    _require_views(dump, spec.views.count, store)
    store.require(views=spec.views.spec.described(), view_count=spec.views.count, codec=spec.codec_spec())
    require_described_teacher(params, dump, store)
    # A machine that only trains students may not have the teacher.
    if not paths.teacher_checkpoint(spec.teacher).exists():
        return None
    teacher = asked_teacher(params, spec.teacher, spec.precision, device)
    store.require_teacher(teacher.described())
    (name,) = store.teacher_names
    if name != spec.teacher:
        note(
            f"{store.location}: teacher {spec.teacher!r} is named {quoted(name)} in the store; the weights "
            "are the same"
        )
    return teacher


def _require_views(dump: str, count: int, store: LogitStore) -> None:
    """Refuse a store with too few views, and name both ways out: add views, or use fewer."""
    if store.n_views < count:
        raise IncompleteStoreError(
            f"{store.location}: has {counted(store.n_views, 'view')}; expected {count}, by "
            f"dumps.{dump}.views.count; add the missing views with: pipeline cache-logits {dump}, or use "
            f"the stored ones: --set dumps.{dump}.views.count={store.n_views}"
        )


def require_described_teacher(params: Params, dump: str, store: LogitStore) -> None:
    """Refuse a store whose header describes a different teacher than params.yaml.

    Without the teacher's checkpoint, the names must be equal. With it, the weights are compared later.

    Raises:
        MismatchError: naming both teachers, and the ways out.
    """
    spec, header = params.dump(dump), store.manifest.header
    there, card = _described(store)
    differing = card_difference(params, spec.teacher, card)
    precision = header.teacher.get("precision")
    if precision != spec.precision:
        differing = f"dumps.{dump}.precision was {bounded(precision)}, is {spec.precision}"
    checkpoint = paths.teacher_checkpoint(spec.teacher)
    if not differing and (there == spec.teacher or checkpoint.exists()):
        return
    made_by = f"{quoted(there)} ({bounded(card.architecture.name)})"
    asked_for = f"{spec.teacher!r} ({params.teacher(spec.teacher).model})"
    is_name = there != spec.teacher and NAME.fullmatch(there) is not None
    ways = [f"set dumps.{dump}.teacher: {there}"] if is_name else []
    ways += [] if differing else [f"provide {checkpoint} to compare its weights"]
    raise MismatchError(
        f"{store.location} was made by teacher {made_by}, but params.yaml asks for "
        f"{asked_for}{f': {differing}' if differing else ''}; {''.join(f'{way}, ' for way in ways)}use a "
        f"new dump name, or remove it with: {removal(store.location)} and run: pipeline cache-logits {dump}"
    )


def _described(store: LogitStore) -> tuple[str, ModelCard]:
    """Return the name and the card of the teacher that a store's header describes."""
    teacher = store.manifest.header.teacher
    try:
        return str(teacher["name"]), ModelCard.from_dict(teacher)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptStoreError(
            f"{store.location}: the header does not describe a teacher ({error!r}); "
            f"{restoring(store.location)}"
        ) from None


def _measure_drift(
    store: LogitStore, teacher: Teacher | None, context: RunContext
) -> dict[str, Any] | None:
    """Measure the KL cost of samples that may render differently here; needs the teacher."""
    if teacher is None:
        note(f"{store.location}: the KL cost of drift cannot be measured without the teacher")
        return None
    audit = replay(store, context.under(task_of(store.teacher)), teacher, REPLAYED)
    note(
        f"{store.location}: replayed {REPLAYED} random (view, sample) pairs: mean KL(teacher || cached) "
        f"{audit.replay_kl_mean:.2e}"
    )
    seen = None if audit.drift is None else asdict(audit.drift)
    return {"kl_mean": audit.replay_kl_mean, "replayed": audit.replayed, "witnesses": seen}
