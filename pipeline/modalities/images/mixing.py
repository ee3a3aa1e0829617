"""Mixup and CutMix: the box in which two samples are mixed, and the share of each.

`views/pairing.py` draws the partners, `views/shares.py` has the tables of shares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core import random
from pipeline.core.random import Draws, Lane
from pipeline.modalities.images.geometry import UNIT, Ints
from pipeline.modalities.images.spec import ViewSpec
from pipeline.views.shares import WHOLE, beta_levels


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
        levels[chosen] = beta_levels(spec.mixup.alpha, words[1, chosen])
    if spec.cutmix is not None:
        # Mixup takes the lowest words, CutMix the highest: neither probability changes the other's samples.
        chosen = ~random.chance(words[0], 1 - spec.cutmix.probability)
        boxes[chosen] = _cut_boxes(beta_levels(spec.cutmix.alpha, words[1, chosen]), words[2:, chosen])
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
