"""Load teachers and refuse those that do not match params.yaml; `dumps.py` does so for dumps.

Without DVC, a changed params.yaml does not retrain a teacher. A network that would give different logits is
refused; changed training values are only reported.
"""

from __future__ import annotations

import json
from typing import Any

import torch

from pipeline.core.errors import (
    DataError,
    MismatchError,
    ModelError,
    counted,
)
from pipeline.core.files import parse_object
from pipeline.core.hashing import canonical_json, difference
from pipeline.core.progress import note
from pipeline.core.trust import NOTHING, Trust
from pipeline.dump.spec import DumpSpec
from pipeline.evaluation.context import RunContext
from pipeline.modalities.prepared import PreparedData
from pipeline.models.checkpoint import ModelCard, load_checkpoint
from pipeline.models.teacher import Teacher
from pipeline.report.metrics import changed_error, open_metrics
from pipeline.tasks.embedding import EMBEDDING
from pipeline.training.settings import Precision
from stages import paths
from stages.machine import Machine
from stages.params import ModelParams, Params, as_written

# Values that decide the network itself, independently of its training.
_DECISIVE = ("model", "weights", "fine_tune")


def load_teacher(
    name: str, precision: Precision, device: torch.device, *, trust: Trust = NOTHING
) -> Teacher:
    """Load a teacher onto a device, ready to run.

    Args:
        name: of a checkpoint in models/teachers.
        precision: of its forward pass.
        device: to run on.
        trust: user code that may run.

    Raises:
        ConfigError: the name is invalid, e.g. a path.
        ModelError: the checkpoint is missing or damaged, or needs code that the user did not name.
    """
    network, card = load_checkpoint(paths.teacher_checkpoint(name), trust=trust)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Teacher(name=name, network=network, card=card, precision=precision)


def judging(context: RunContext, spec: ModelParams) -> RunContext:
    """Return the context of a teacher, whose task is that of embeddings if it is an encoder."""
    return context.under(EMBEDDING) if spec.encodes else context


def asked_teacher(params: Params, name: str, precision: Precision, device: torch.device) -> Teacher:
    """Load a teacher whose checkpoint matches params.yaml.

    Raises:
        ModelError: the checkpoint is missing, or cannot be loaded.
        MismatchError: the checkpoint has a different network than params.yaml asks for.
    """
    path, again = paths.teacher_checkpoint(name), f"run: pipeline train-teacher {name}"
    if not path.exists():
        raise ModelError(f"{path}: no such file; the teacher is not trained or evaluated yet; {again}")
    teacher = load_teacher(name, precision, device, trust=_trust_in(params, name))
    was, now = _recorded_making(name), _plain(params.makes_teacher(name))
    differing = card_difference(params, name, teacher.card)
    if was and not differing:
        differing = difference(_decisive(was, name), _decisive(now, name))
    if differing:
        raise MismatchError(
            f"{path}: does not match params.yaml: {differing}; {again}, or restore the old values"
        )
    changed = as_written(difference(was, now)) if was else ""
    if changed:
        note(f"{path}: params.yaml has changed since it was trained: {changed}; {again}")
    return teacher


def _trust_in(params: Params, teacher: str) -> Trust:
    """Return the code that params.yaml names for a teacher."""
    spec = params.teacher(teacher)
    remedy = f"name it in teachers.{teacher}.model, or run: pipeline train-teacher {teacher}"
    return Trust(models={spec.model: spec.options}, remedy=remedy)


def dumping(params: Params, dump: str, machine: Machine) -> tuple[RunContext, Teacher, DumpSpec]:
    """Open data and teacher of a dump on a machine, and return the dump's settings.

    Raises:
        ConfigError: params.yaml has no such dump.
        DataError, MismatchError, ModelError: data or teacher are missing, or others than params.yaml says.
    """
    spec = params.dump(dump)
    params.require_models(f"teachers.{spec.teacher}")
    context = judging(machine.context(params.data), params.teacher(spec.teacher))
    teacher = asked_teacher(params, spec.teacher, spec.precision, machine.device)
    _tell_unused_views(params, dump)
    return context, teacher, spec.dump_spec()


def _tell_unused_views(params: Params, dump: str) -> None:
    """Tell of views that no run of the sweep is long enough to use."""
    epochs = [params.student(name).training.epochs for name in params.sweep.students]
    count, longest = params.dump(dump).views.count, max(epochs, default=0)
    if dump in params.sweep.dumps and 0 < longest < count:
        note(
            f"dump {dump!r}: {counted(count, 'view')}, but the students of sweep train for at most "
            f"{counted(longest, 'epoch')}, each of one view: {count - longest} of them would never be "
            f"used; lower dumps.{dump}.views.count, or raise the students' epochs"
        )


def card_difference(params: Params, name: str, card: ModelCard) -> str:
    """List the differences between a card and a teacher of params.yaml; "" if none is known.

    Args:
        params: all of params.yaml.
        name: of the teacher.
        card: of the teacher's checkpoint, or of the teacher that a store names.
    """
    spec, built, said = params.teacher(name), card.architecture, params.teacher(name).preprocessing.said()
    pairs: dict[str, tuple[Any, Any]] = {"model": (_without_tag(built.name), _without_tag(spec.model))}
    if spec.stem_stride is not None:
        pairs["stem_stride"] = built.stem_stride, spec.stem_stride
    if spec.channels is not None and "mean" not in said:
        pairs["channels"] = built.channels, spec.channels
    if spec.output is not None:
        pairs["output"] = built.output, spec.output
    if spec.normalise is not None:
        pairs["normalise"] = built.normalise, spec.normalise
    for key, value in spec.options.items():
        pairs[f"options.{key}"] = built.options.get(key), value
    for key, value in said.items():
        pairs[f"preprocessing.{key}"] = getattr(card.preprocessing, key), value
    there, here = (
        _plain({f"teachers.{name}.{key}": pair[side] for key, pair in pairs.items()}) for side in (0, 1)
    )
    return difference(there, here)


def making(params: Params, name: str, data: PreparedData) -> dict[str, Any]:
    """Return a teacher's parameters, as JSON, and the digest of its data, for its metrics."""
    return {"made_with": canonical_json(_plain(params.makes_teacher(name))), "dataset": data.digest()}


def tell_other_data(name: str, dataset: str) -> None:
    """Print a note if a teacher was trained on data other than the present prepared data.

    Args:
        name: of the teacher.
        dataset: digest of the prepared data.
    """
    if told := other_data(name, dataset):
        note(f"teacher {name}: {told}; to retrain it, run: pipeline train-teacher {name}")


def other_data(name: str, dataset: str) -> str:
    """Return that a teacher was trained on data other than the present data; "" if not, or unknown."""
    metrics = _metrics(name)
    is_other = metrics.get("epochs") and metrics.get("dataset") not in (None, dataset)
    return f"trained on different data than {paths.PREPARED} holds now" if is_other else ""


def changes_since(params: Params, name: str, dataset: str) -> list[str]:
    """Return what is different from when a teacher was trained: parameters, data; empty if unknown.

    Args:
        params: all of params.yaml.
        name: of the teacher.
        dataset: digest of the prepared data.
    """
    was = _recorded_making(name) if name in params.teachers else {}
    changed = as_written(difference(was, _plain(params.makes_teacher(name)))) if was else ""
    told = [f"params.yaml has changed since it was trained: {changed}"] if changed else []
    return [*told, *filter(None, [other_data(name, dataset)])]


def _recorded_making(name: str) -> dict[str, Any]:
    """Return the parameters that a teacher was made with; empty if unknown."""
    try:
        return parse_object(_metrics(name).get("made_with", "{}").encode())
    except (ValueError, AttributeError) as error:
        note(f"teacher {name}: cannot be compared with params.yaml: its 'made_with' is damaged ({error})")
        return {}


def _metrics(name: str) -> dict[str, Any]:
    """Return the metrics of a teacher's run, even if they changed; empty if there are none to read."""
    path = paths.RUNS / f"teacher-{name}" / "metrics.json"
    if not path.exists():
        return {}
    command = f"pipeline train-teacher {name}"
    try:
        found = open_metrics(path, command)
    except DataError as error:
        note(str(error))
        return {}
    if not found.is_as_written:
        note(f"{changed_error(path, command)}; params.yaml is compared with it all the same")
    return found.values


def _decisive(making: dict[str, Any], name: str) -> dict[str, Any]:
    spec = making.get(f"teachers.{name}")
    known = spec if isinstance(spec, dict) else {}
    return {f"teachers.{name}.{key}": known.get(key) for key in _DECISIVE}


def _without_tag(name: str) -> str:
    """Return a model's name without timm's weights tag, e.g. timm:resnet18 for timm:resnet18.a1_in1k."""
    return name.partition(".")[0] if name.startswith("timm:") else name


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """Convert values by a round trip through JSON, for comparison with stored ones."""
    plain: dict[str, Any] = json.loads(json.dumps(value, default=str))
    return plain
