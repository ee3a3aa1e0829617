"""Mixup and CutMix: the box in which two samples are mixed, and the share of each.

`views/pairing.py` draws the partners. Shares come from integer tables, made with +, *, / and square roots
only, so they are the same on every machine.
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

WHOLE = 256  # the share of an unmixed sample

_POWER_BITS = 48
_TERMS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Mixing of N samples with their partners: a box and a share per sample.

    Args:
        levels: (N,) int32, share of the sample itself inside its box, in 256ths; the rest is the partner's.
        boxes: (N, 4) int32, top, left, height, width in units of the side; pixels outside stay unmixed.
    """

    levels: NDArray[np.int32]
    boxes: NDArray[np.int32]

    def __getitem__(self, rows: NDArray[Any]) -> Mixture:
        return Mixture(levels=self.levels[rows], boxes=self.boxes[rows])

    @property
    def shares(self) -> NDArray[np.float64]:
        """Return each sample's share (N,) in its mixture: the lambda of its label."""
        # E.g. a CutMix box of half the side, level 0: its area is 1/4, so the sample keeps a share of 3/4.
        area = self.boxes[:, 2].astype(np.float64) * self.boxes[:, 3] / float(UNIT) ** 2
        shares: NDArray[np.float64] = 1 - area * (WHOLE - self.levels) / WHOLE
        return shares


def draw_mixture(spec: ViewSpec, draws: Draws) -> Mixture | None:
    """Draw the mixing of the samples of a view, or None for a spec without mixing."""
    if not spec.mixes:
        return None
    # (4, N): whether a sample is mixed, lambda, the box's centre down and across.
    words = draws.words(Lane.MIXING)
    # Unmixed unless chosen below: level 256 in an empty box.
    levels = np.full(len(draws), WHOLE, np.int64)
    boxes = np.zeros((len(draws), 4), np.int64)
    if spec.mixup is not None:
        chosen = random.chance(words[0], spec.mixup.probability)
        boxes[chosen] = 0, 0, UNIT, UNIT
        levels[chosen] = _beta_levels(spec.mixup.alpha, words[1, chosen])
    if spec.cutmix is not None:
        # Mixup takes the lowest words, CutMix the highest: neither probability changes the other's samples.
        chosen = ~random.chance(words[0], 1 - spec.cutmix.probability)
        boxes[chosen] = _cut_boxes(_beta_levels(spec.cutmix.alpha, words[1, chosen]), words[2:, chosen])
        levels[chosen] = 0
    return Mixture(levels=levels.astype(np.int32), boxes=boxes.astype(np.int32))


def _cut_boxes(amounts: Ints, words: random.Words) -> Ints:
    """Return boxes (N, 4) of area 1 - lambda around a uniform centre, cut at the edges."""
    # E.g. lambda 192/256: a quarter of the area, so half the side, and UNIT / 4 each way from the centre.
    # Around the centre (0, 0), three quarters of the box are cut away: the label's lambda is 15/16.
    half = np.floor(np.sqrt((WHOLE - amounts) / WHOLE) * (UNIT // 2)).astype(np.int64)
    centres = [random.between(word, 0, UNIT - 1) for word in words]
    starts = [np.maximum(centre - half, 0) for centre in centres]
    ends = [np.minimum(centre + half, UNIT) for centre in centres]
    return np.stack([*starts, *(end - start for start, end in zip(starts, ends, strict=True))], axis=1)


def _beta_levels(alpha: float, words: random.Words) -> Ints:
    """Map 32-bit words to levels (N,), 0 to 256, distributed as Beta(alpha, alpha) in 256ths."""
    # Inverse transform sampling: a level is the number of table entries up to the word.
    return np.searchsorted(beta_table(alpha), words, side="right")


@cache
def beta_table(alpha: float) -> NDArray[np.uint64]:
    """Return the 256 thresholds between levels: P(lambda < (level + 1/2) / 256) * 2^32."""
    # E.g. alpha 1, uniform: 2^23, 3 * 2^23, ... Level 0 has half the width of level 1.
    # The series converges fast for x <= 1/2. The upper half is the mirrored lower half.
    ends = [(2 * level + 1) / (2 * WHOLE) for level in range(WHOLE // 2)]
    middle = _incomplete_beta(alpha, 0.5)
    lower = [round(_incomplete_beta(alpha, end) / middle * (1 << 31)) for end in ends]
    return np.array([*lower, *((1 << 32) - value for value in reversed(lower))], np.uint64)


def _incomplete_beta(alpha: float, x: float) -> float:
    """Integrate t^(alpha - 1) (1 - t)^(alpha - 1) from 0 to x <= 1/2 by its power series."""
    total, factor = 0.0, 1.0
    for n in range(_TERMS):
        total += factor / (alpha + n)
        factor *= (n + 1 - alpha) / (n + 1) * x
    return _power(x, alpha) * total


def _power(base: float, exponent: float) -> float:
    """Raise by square roots, one per exponent bit, because `pow` differs between machines."""
    whole = int(exponent)
    result, root, rest = 1.0, base, exponent - whole
    for _ in range(whole):
        result *= base
    # E.g. 2^1.25: a factor of 2, then bits .01 choose the second root, 2^(1/4).
    for _ in range(_POWER_BITS):
        root = float(np.sqrt(root))
        rest *= 2
        if rest >= 1:
            result, rest = result * root, rest - 1
    return result
