"""How two samples are mixed, by Mixup or CutMix: inside which box, and how much of each.

Who is mixed with whom is drawn in `views/pairing.py`. Shares of a mixture come from tables of integers,
made by +, *, / and square roots alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core import random
from pipeline.core.random import Draws, Lane
from pipeline.modalities.images.geometry import UNIT, Ints
from pipeline.modalities.images.spec import ViewSpec

WHOLE = 256  # the share of a sample that is not mixed

_POWER_BITS = 48
_TERMS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """How N samples are mixed with their partners: inside a box, so much of each.

    Args:
        levels: (N,) int32, share of the sample itself inside its box, in 256ths; the rest is its partner's.
        boxes: (N, 4) int32, top, left, height, width in units of the side; outside, nothing is mixed.
    """

    levels: NDArray[np.int32]
    boxes: NDArray[np.int32]

    def __getitem__(self, rows: NDArray[Any]) -> Mixture:
        return Mixture(levels=self.levels[rows], boxes=self.boxes[rows])

    @property
    def shares(self) -> NDArray[np.float64]:
        """Of each sample (N,), how much of the mixture is itself: the lambda of its label."""
        area = self.boxes[:, 2].astype(np.float64) * self.boxes[:, 3] / float(UNIT) ** 2
        shares: NDArray[np.float64] = 1 - area * (WHOLE - self.levels) / WHOLE
        return shares


def draw_mixture(spec: ViewSpec, draws: Draws) -> Mixture | None:
    """Draw how the samples of a view are mixed; None where the spec mixes nothing."""
    if not spec.mixes:
        return None
    words = draws.words(Lane.MIXING)
    levels = np.full(len(draws), WHOLE, np.int64)
    boxes = np.zeros((len(draws), 4), np.int64)
    if spec.mixup is not None:
        chosen = random.chance(words[0], spec.mixup.probability)
        boxes[chosen] = 0, 0, UNIT, UNIT
        levels[chosen] = _beta_levels(spec.mixup.alpha, words[1, chosen])
    if spec.cutmix is not None:
        # From the other end, so that neither decides which samples the other one gets.
        chosen = ~random.chance(words[0], 1 - spec.cutmix.probability)
        boxes[chosen] = _cut_boxes(_beta_levels(spec.cutmix.alpha, words[1, chosen]), words[2:, chosen])
        levels[chosen] = 0
    return Mixture(levels=levels.astype(np.int32), boxes=boxes.astype(np.int32))


def _cut_boxes(amounts: Ints, words: random.Words) -> Ints:
    """Boxes of 1 - lambda of the area about a uniform centre, cut at the edges."""
    half = np.floor(np.sqrt((WHOLE - amounts) / WHOLE) * (UNIT // 2)).astype(np.int64)
    centres = [random.between(word, 0, UNIT - 1) for word in words]
    starts = [np.maximum(centre - half, 0) for centre in centres]
    ends = [np.minimum(centre + half, UNIT) for centre in centres]
    return np.stack([*starts, *(end - start for start, end in zip(starts, ends, strict=True))], axis=1)


def _beta_levels(alpha: float, words: random.Words) -> Ints:
    """Return Beta(alpha, alpha) in 256ths (N,), 0 to 256, from 32-bit words."""
    return np.searchsorted(beta_table(alpha), words, side="right")


@cache
def beta_table(alpha: float) -> NDArray[np.uint64]:
    """Return the 256 words between two levels: P(lambda < (level + 1/2) / 256), times 2^32."""
    ends = [(2 * level + 1) / (2 * WHOLE) for level in range(WHOLE // 2)]
    middle = _incomplete_beta(alpha, 0.5)
    lower = [round(_incomplete_beta(alpha, end) / middle * (1 << 31)) for end in ends]
    return np.array([*lower, *((1 << 32) - value for value in reversed(lower))], np.uint64)


def _incomplete_beta(alpha: float, x: float) -> float:
    """Integrate t^(alpha - 1) (1 - t)^(alpha - 1) from 0 to x <= 1/2, term by term of its power series."""
    total, factor = 0.0, 1.0
    for n in range(_TERMS):
        total += factor / (alpha + n)
        factor *= (n + 1 - alpha) / (n + 1) * x
    return _power(x, alpha) * total


def _power(base: float, exponent: float) -> float:
    """Raise by square roots, bit by bit of the exponent: `pow` differs between machines."""
    whole = int(exponent)
    result, root, rest = 1.0, base, exponent - whole
    for _ in range(whole):
        result *= base
    for _ in range(_POWER_BITS):
        root = float(np.sqrt(root))
        rest *= 2
        if rest >= 1:
            result, rest = result * root, rest - 1
    return result
