"""Losses: one pure function each, and the table that names them.

Shapes: B batch, C classes. Every loss is computed in float32 outside autocast, sums over classes and
takes the mean over the batch. Labels are class indices (B,) int64, -1 for unlabelled: such a sample has no
hard-label term; or, where views mix images, shares of the classes (B, C) float32, what is missing to 1
being unlabelled. A new loss is one function and one line in `LOSSES`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from pipeline.data.sample import UNLABELLED
from pipeline.errors import ConfigError, did_you_mean
from pipeline.views.spec import ViewSpec

LossFunction = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def scratch(student: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Tensor:
    """Cross-entropy with the labels: the baseline without a teacher.

    Args:
        student: (B, C) logits.
        labels: (B,) int64 class indices, or -1; or (B, C) shares.
        teacher: not used.

    """
    return label_smoothing(student, labels, smoothing=0.0)


def label_smoothing(
    student: Tensor, labels: Tensor, teacher: Tensor | None = None, *, smoothing: float = 0.1
) -> Tensor:
    """Cross-entropy with (1 - smoothing) on the label and smoothing / C on every class.

    Args:
        student: (B, C) logits.
        labels: (B,) int64 class indices, or -1; or (B, C) shares.
        teacher: not used.
        smoothing: in [0, 1).

    Source: Szegedy et al., arXiv 1512.00567.

    """
    if labels.is_floating_point():
        known = labels.sum(1, keepdim=True)
        shares = labels * (1 - smoothing) + known * smoothing / labels.shape[1]
        return -(shares * F.log_softmax(student.float(), dim=1)).sum(1).mean()
    each = F.cross_entropy(
        student.float(),
        labels,
        ignore_index=UNLABELLED,
        label_smoothing=smoothing,
        reduction="none",
    )
    return each.mean()


def kd(
    student: Tensor,
    labels: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 4.0,
    ce_weight: float = 0.1,
    kd_weight: float = 0.9,
) -> Tensor:
    """ce_weight * CE(labels) + kd_weight * T^2 * KL(softmax(teacher / T) || softmax(student / T)).

    Args:
        student: (B, C) logits.
        labels: (B,) int64 class indices, or -1; or (B, C) shares.
        teacher: (B, C) logits.
        temperature: T > 0.
        ce_weight: weight of the hard labels, >= 0.
        kd_weight: weight of the soft labels, >= 0.

    Source: Hinton, Vinyals and Dean, arXiv 1503.02531.

    """
    log_student = F.log_softmax(student.float() / temperature, dim=1)
    log_teacher = F.log_softmax(teacher.float() / temperature, dim=1)
    soft = F.kl_div(log_student, log_teacher, log_target=True, reduction="batchmean")
    return ce_weight * scratch(student, labels) + kd_weight * temperature**2 * soft


def nkd(
    student: Tensor,
    labels: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    gamma: float = 1.5,
) -> Tensor:
    """CE(y) - t_y log s_y - gamma T^2 sum over c != y of t'_c log s'_c: normalised distillation.

    t and s are the softmax of teacher and student, t' and s' those of the other classes at temperature T.
    Samples without a label have no term.

    Args:
        student: (B, C) logits.
        labels: (B,) int64 class indices, or -1; one class each, no shares.
        teacher: (B, C) logits.
        temperature: T > 0.
        gamma: weight of the other classes, >= 0.

    Source: Yang et al., arXiv 2303.13005.

    """
    if labels.is_floating_point():
        raise ConfigError(
            "loss nkd was given shares of classes, as of mixed images; expected one class a sample; choose "
            f"views without mixup and cutmix, or one of these losses: {_mixable()}"
        )
    known, place = labels != UNLABELLED, labels.clamp(min=0)[:, None]
    target = student.new_zeros(student.shape).scatter(1, place, 1.0).bool()
    log_s, t = F.log_softmax(student.float(), dim=1), F.softmax(teacher.float(), dim=1)
    of_target = -((1 + t) * log_s).gather(1, place)[:, 0]
    others_s, others_t = (
        x.float().masked_fill(target, -math.inf) / temperature for x in (student, teacher)
    )
    products = F.softmax(others_t, dim=1) * F.log_softmax(others_s, dim=1)
    of_others = -products.masked_fill(target, 0).sum(1)
    return ((of_target + gamma * temperature**2 * of_others) * known).mean()


@dataclass(frozen=True, slots=True)
class Loss:
    """A line of the table.

    Args:
        function: (student (B, C), labels, teacher (B, C) or None, **settings) to a scalar.
        needs_teacher: whether it is a distillation loss; the others are baselines.
        one_target: whether each sample must have one class, so that views may not mix.

    """

    function: Callable[..., Tensor]
    needs_teacher: bool
    one_target: bool = False


LOSSES: Mapping[str, Loss] = {
    "scratch": Loss(scratch, needs_teacher=False),
    "label_smoothing": Loss(label_smoothing, needs_teacher=False),
    "kd": Loss(kd, needs_teacher=True),
    "nkd": Loss(nkd, needs_teacher=True, one_target=True),
}

_RANGES: Mapping[str, tuple[Callable[[float], bool], str]] = {
    "temperature": (lambda value: 0 < value < math.inf, "more than 0"),
    "smoothing": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "ce_weight": (lambda value: 0 <= value < math.inf, "at least 0"),
    "kd_weight": (lambda value: 0 <= value < math.inf, "at least 0"),
    "gamma": (lambda value: 0 <= value < math.inf, "at least 0"),
}


def require_targets(name: str, views: ViewSpec, where: str) -> None:
    """Refuse a loss that needs one class a sample for views that mix images.

    Args:
        name: of the loss.
        views: what the student sees.
        where: whose views these are, for the message.

    Raises:
        ConfigError: saying what to change.
    """
    if LOSSES[name].one_target and views.mixes:
        raise ConfigError(
            f"loss {name} needs one class a sample, and the views of {where} mix images (mixup, cutmix); "
            f"expected views that do not; choose another dump, or one of these losses: {_mixable()}"
        )


def _mixable() -> str:
    return ", ".join(name for name, loss in LOSSES.items() if loss.needs_teacher and not loss.one_target)


def make_loss(name: str, settings: Mapping[str, Any]) -> LossFunction:
    """Return a loss of the table with its settings filled in.

    Raises:
        ConfigError: unknown loss, unknown setting, or a value out of its range.

    """
    if name not in LOSSES:
        hint = did_you_mean(name, LOSSES)
        raise ConfigError(f"loss is {name!r}; expected one of {', '.join(LOSSES)}{hint}")
    function = LOSSES[name].function
    accepted = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    for key, value in settings.items():
        if key not in accepted:
            raise ConfigError(
                f"loss {name} has the setting {key!r}; expected {', '.join(accepted) or 'none'}"
            )
        holds, expected = _RANGES[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not holds(value):
            raise ConfigError(f"loss {name}: {key} is {value!r}; expected a number {expected}")

    def loss(student: Tensor, labels: Tensor, teacher: Tensor | None) -> Tensor:
        return function(student, labels, teacher, **settings)

    return loss
