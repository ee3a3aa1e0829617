"""A teacher by name, from the checkpoint that `train-teacher` wrote, and whether it is the one asked for.

By hand nothing trains a teacher again when params.yaml changes. A network that decides other logits than
the one asked for is refused; values of its training that changed since are told.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import torch

from pipeline.core.errors import DataError, MismatchError
from pipeline.core.files import parse_object
from pipeline.core.hashing import canonical_json, difference
from pipeline.core.progress import note
from pipeline.core.trust import NOTHING, Trust
from pipeline.models.checkpoint import ModelCard, load_checkpoint
from pipeline.models.teacher import Teacher
from pipeline.report.runs import read_metrics
from pipeline.samples.dataset import PreparedData
from pipeline.training.settings import Precision
from stages import layout
from stages.params import Params

# A change of these makes another network, however it is trained.
_DECISIVE = ("model", "weights", "fine_tune")


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
    network, card = load_checkpoint(layout.teacher_checkpoint(name), trust=trust)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Teacher(name=name, network=network, card=card, precision=precision)


def asked_teacher(params: Params, name: str, precision: Precision, device: torch.device) -> Teacher:
    """Return a teacher whose checkpoint is of what params.yaml says of it.

    Raises:
        ModelError: there is no checkpoint, or it cannot be loaded.
        MismatchError: it is of another network than params.yaml asks for.
    """
    teacher = load_teacher(name, precision, device, trust=_trust_in(params, name))
    path, again = layout.teacher_checkpoint(name), f"run: pipeline train-teacher {name}"
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
    spec, built, given = params.teacher(name), card.architecture, params.teacher(name).preprocessing
    pairs: dict[str, tuple[Any, Any]] = {"model": (_without_tag(built.name), _without_tag(spec.model))}
    if spec.stem_stride is not None:
        pairs["stem_stride"] = built.stem_stride, spec.stem_stride
    if spec.channels is not None and given.mean is None:
        pairs["channels"] = built.channels, spec.channels
    for key, value in spec.options.items():
        pairs[f"options.{key}"] = built.options.get(key), value
    for key, value in _plain(asdict(given)).items():
        if value is not None:
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
            f"teacher {name}: trained on other data than {layout.PREPARED} holds now; if it is to know it: "
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
    path = layout.RUNS / f"teacher-{name}" / "metrics.json"
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
