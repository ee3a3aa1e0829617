"""Temperature scaling: one number, fitted on validation images, that mends a model's confidence.

Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599. It divides the logits, so that no
first class changes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.metrics import compare
from pipeline.samples.samples import UNLABELLED

# Logits that separate the labels have no best temperature but 0, always wrong ones none but infinity.
_HIGHEST_TEMPERATURE = 100.0
_TOLERANCE = 1e-9
_STEPS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A model with its confidence mended.

    Args:
        temperature: divides its logits, 0.01 to 100.
        nll, ece: of the test images then; None where none of them is labelled.
    """

    temperature: float
    nll: float | None
    ece: float | None


def calibrate(validation: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> Calibration | None:
    """Fit the temperature on one split and judge it on another.

    Args:
        validation: logits (N, C) and labels (N,), -1 for unlabelled.
        test: the same of other images.

    Returns:
        None where no validation image is labelled.
    """
    logits, labels = validation
    known = labels != UNLABELLED
    if not bool(known.any()):
        return None
    temperature = fit_temperature(logits[known], labels[known])
    # In float64: a low temperature may lift finite logits out of float32.
    scaled = compare(test[0].double() / temperature, test[1])
    return Calibration(temperature=temperature, nll=scaled.nll, ece=scaled.ece)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature at which the mean NLL of logits (N, C) for labels (N,) is lowest.

    NLL is convex in the inverse temperature: Newton's steps in float64, and where one leaves the bracket
    that is known to hold the minimum, its geometric middle instead.
    """
    scores = logits.double()
    right = scores.gather(1, labels[:, None])[:, 0]
    low, high = 1 / _HIGHEST_TEMPERATURE, _HIGHEST_TEMPERATURE
    inverse = 1.0
    for _ in range(_STEPS):
        slope, curvature = _derivatives(scores, right, inverse)
        if slope == 0:
            break
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        step = inverse - slope / curvature if curvature > 0 else math.inf
        before, inverse = inverse, step if low < step < high else math.sqrt(low * high)
        if abs(inverse - before) <= _TOLERANCE * before:
            break
    return 1 / inverse


def _derivatives(scores: Tensor, right: Tensor, inverse: float) -> tuple[float, float]:
    """Return the first two derivatives of the mean NLL by the inverse temperature."""
    probabilities = torch.softmax(scores * inverse, 1)
    mean = (probabilities * scores).sum(1)
    variance = (probabilities * (scores - mean[:, None]).square()).sum(1)
    return float((mean - right).mean()), float(variance.mean())
