"""Teachers and dumps as params.yaml asks for them: loaded, and refused where they are others.

By hand nothing trains a teacher again when params.yaml changes. A network that decides other logits than
the one asked for is refused; values of its training that changed since are told.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import torch

from pipeline.core.errors import (
    CorruptStoreError,
    DataError,
    IncompleteStoreError,
    MismatchError,
    bounded,
    counted,
    quoted,
)
from pipeline.core.files import parse_object
from pipeline.core.hashing import canonical_json, difference
from pipeline.core.progress import note
from pipeline.core.trust import NOTHING, Trust
from pipeline.dump.verify import replay
from pipeline.evaluation.context import RunContext
from pipeline.modalities.prepared import PreparedData
from pipeline.models.checkpoint import ModelCard, load_checkpoint
from pipeline.models.teacher import Teacher
from pipeline.report.runs import read_metrics
from pipeline.store.arrays import RESTORE
from pipeline.store.ensemble import Ensemble
from pipeline.store.reader import LogitStore
from pipeline.store.soft_labels import SoftLabels
from pipeline.training.settings import Precision
from stages import paths
from stages.params import Params

# A change of these makes another network, however it is trained.
_DECISIVE = ("model", "weights", "fine_tune")
# How often the teacher looks again where images may have drifted.
REPLAYED = 256


def load_teacher(
    name: str, precision: Precision, device: torch.device, *, trust: Trust = NOTHING
) -> Teacher:
    """Return a teacher that is ready to run on a device.

    Args:
        name: of a checkpoint in models/teachers.
        precision: of its forward pass.
        device: to run on.
        trust: the code of one's own that may run.

    Raises:
        ConfigError: a name that could lead elsewhere.
        ModelError: no checkpoint, a damaged one, or one of code that the user did not name.
    """
    network, card = load_checkpoint(paths.teacher_checkpoint(name), trust=trust)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Teacher(name=name, network=network, card=card, precision=precision)


def asked_teacher(params: Params, name: str, precision: Precision, device: torch.device) -> Teacher:
    """Return a teacher whose checkpoint is of what params.yaml says of it.

    Raises:
        ModelError: there is no checkpoint, or it cannot be loaded.
        MismatchError: it is of another network than params.yaml asks for.
    """
    teacher = load_teacher(name, precision, device, trust=_trust_in(params, name))
    path, again = paths.teacher_checkpoint(name), f"run: pipeline train-teacher {name}"
    was, now = _recorded_making(name), _plain(params.makes_teacher(name))
    differing = card_difference(params, name, teacher.card)
    if was and not differing:
        differing = difference(_decisive(was, name), _decisive(now, name))
    if differing:
        raise MismatchError(
            f"{path}: made with other parameters than params.yaml asks for: {differing}; {again}, or set "
            "them back"
        )
    changed = difference(was, now) if was else ""
    if changed:
        note(f"{path}: params.yaml has changed since it was made: {changed}; {again}")
    return teacher


def _trust_in(params: Params, teacher: str) -> Trust:
    """Return the code that params.yaml names for a teacher."""
    spec = params.teacher(teacher)
    remedy = f"name it in teachers.{teacher}.model, or run: pipeline train-teacher {teacher}"
    return Trust(models={spec.model: spec.options}, remedy=remedy)


def card_difference(params: Params, name: str, card: ModelCard) -> str:
    """Say in what a card is not of what params.yaml says of a teacher; "" where nothing is known to differ.

    Args:
        params: all of params.yaml.
        name: of the teacher.
        card: of its checkpoint, or of the teacher that a store names.
    """
    spec, built, said = params.teacher(name), card.architecture, params.teacher(name).preprocessing.said()
    pairs: dict[str, tuple[Any, Any]] = {"model": (_without_tag(built.name), _without_tag(spec.model))}
    if spec.stem_stride is not None:
        pairs["stem_stride"] = built.stem_stride, spec.stem_stride
    if spec.channels is not None and "mean" not in said:
        pairs["channels"] = built.channels, spec.channels
    for key, value in spec.options.items():
        pairs[f"options.{key}"] = built.options.get(key), value
    for key, value in said.items():
        pairs[f"preprocessing.{key}"] = getattr(card.preprocessing, key), value
    there, here = (
        _plain({f"teachers.{name}.{key}": pair[side] for key, pair in pairs.items()}) for side in (0, 1)
    )
    return difference(there, here)


def making(params: Params, name: str, data: PreparedData) -> dict[str, Any]:
    """Return, for its metrics, what decides a teacher: parameters as JSON, and the digest of the data."""
    return {"made_with": canonical_json(_plain(params.makes_teacher(name))), "dataset": data.digest()}


def tell_other_data(name: str, dataset: str) -> None:
    """Say so where a teacher was trained on other data than there is now.

    Args:
        name: of the teacher.
        dataset: digest of the prepared data.
    """
    metrics = _metrics(name)
    if metrics.get("epochs") and metrics.get("dataset") not in (None, dataset):
        note(
            f"teacher {name}: trained on other data than {paths.PREPARED} holds now; if it is to know it: "
            f"pipeline train-teacher {name}"
        )


def _recorded_making(name: str) -> dict[str, Any]:
    """Return the parameters that a teacher was made with; nothing where that is not known."""
    try:
        return parse_object(_metrics(name).get("made_with", "{}").encode())
    except (ValueError, AttributeError) as error:
        note(f"teacher {name}: cannot be compared with params.yaml: its made_with is damaged ({error})")
        return {}


def _metrics(name: str) -> dict[str, Any]:
    """Return what a teacher's training wrote of it; nothing where that is not here, or damaged."""
    path = paths.RUNS / f"teacher-{name}" / "metrics.json"
    if not path.exists():
        return {}
    try:
        return read_metrics(path, f"pipeline train-teacher {name}")
    except DataError as error:
        note(str(error))
        return {}


def _decisive(making: dict[str, Any], name: str) -> dict[str, Any]:
    spec = making.get(f"teachers.{name}")
    known = spec if isinstance(spec, dict) else {}
    return {f"teachers.{name}.{key}": known.get(key) for key in _DECISIVE}


def _without_tag(name: str) -> str:
    """Return a model's name without the tag of its weights, which timm writes behind it."""
    return name.partition(".")[0] if name.startswith("timm:") else name


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """Return values as JSON gives them back."""
    plain: dict[str, Any] = json.loads(json.dumps(value, default=str))
    return plain


# A dump as students need it: what params.yaml asks for now, and how far its images drifted.


def open_dump(
    params: Params, name: str, context: RunContext, *, allow_drift: bool
) -> tuple[SoftLabels, dict[str, Any] | None]:
    """Return a dump or an ensemble of some, and, of each dump, what drift costs where it is allowed.

    Raises:
        MismatchError: it is of another spec or teacher.
    """
    path = paths.store(name)
    if name not in params.ensembles:
        store = LogitStore.open(path, allow_drift=allow_drift)
        teacher = require_as_asked(params, name, store, context.device)
        return store, _measure_drift(store, teacher, context) if allow_drift else None
    ensemble = Ensemble.open(path, allow_drift=allow_drift)
    drift = {}
    for dump, member in dumps_in(params, name, ensemble):
        teacher = require_as_asked(params, dump, member, context.device)
        drift[dump] = _measure_drift(member, teacher, context) if allow_drift else None
    return ensemble, drift if allow_drift else None


def dumps_in(params: Params, name: str, opened: SoftLabels) -> list[tuple[str, LogitStore]]:
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
    if isinstance(opened, LogitStore):
        return [(name, opened)]
    _require_members(params, name, opened)
    return list(zip(params.ensembles[name].of, opened.members, strict=True))


def _require_members(params: Params, name: str, ensemble: SoftLabels) -> None:
    spec = params.ensembles[name]
    expected = tuple(paths.store(dump).name for dump in spec.of), spec.blend()
    names = ensemble.names if isinstance(ensemble, Ensemble) else ()
    if (names, ensemble.blend) != expected:
        raise MismatchError(
            f"{ensemble.location}: is of {', '.join(names)}, {ensemble.blend}; expected what "
            f"ensembles.{name} says now; make it again: pipeline cache-logits {name}"
        )


def require_as_asked(params: Params, dump: str, store: LogitStore, device: torch.device) -> Teacher | None:
    """Refuse a store that is not as params.yaml asks; return its teacher, if it is at hand.

    Raises:
        MismatchError: its views, codec or teacher are others, or the teacher's checkpoint is.
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
    checkpoint = paths.teacher_checkpoint(spec.teacher)
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


def _measure_drift(
    store: LogitStore, teacher: Teacher | None, context: RunContext
) -> dict[str, Any] | None:
    """Say what images that may look otherwise here cost, where the teacher can look again."""
    if teacher is None:
        note(f"{store.location}: what drift costs in KL cannot be told without the teacher")
        return None
    audit = replay(store, context, teacher, REPLAYED)
    note(
        f"{store.location}: teacher again on {REPLAYED} random pairs: mean KL(teacher || cached) "
        f"{audit.replay_kl_mean:.2e}"
    )
    seen = None if audit.drift is None else asdict(audit.drift)
    return {"kl_mean": audit.replay_kl_mean, "replayed": audit.replayed, "witnesses": seen}
