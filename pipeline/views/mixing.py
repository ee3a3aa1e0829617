"""Mixing without the batch: which two samples of a view are mixed, where, and how much of each.

Inside each block of samples (a store's shard) the view's own permutation is cut into groups of four, and a
sample's partner is the next one round in its group, so a batch of whole groups holds every partner that it
needs, whatever its size, order or device. A new permutation for every view makes partners as good as drawn
freely.

Shares of a mixture come from tables of integers, made by +, *, / and square roots alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import rng
from pipeline.errors import ConfigError
from pipeline.rng import Draws, Lane
from pipeline.views.boxes import UNIT, Ints
from pipeline.views.spec import ViewSpec

GROUP = 4
BLOCK_ROWS = 4096  # of a split that no store has cut
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
        chosen = rng.chance(words[0], spec.mixup.probability)
        boxes[chosen] = 0, 0, UNIT, UNIT
        levels[chosen] = _beta_levels(spec.mixup.alpha, words[1, chosen])
    if spec.cutmix is not None:
        # From the other end, so that neither decides which samples the other one gets.
        chosen = ~rng.chance(words[0], 1 - spec.cutmix.probability)
        boxes[chosen] = _cut_boxes(_beta_levels(spec.cutmix.alpha, words[1, chosen]), words[2:, chosen])
        levels[chosen] = 0
    return Mixture(levels=levels.astype(np.int32), boxes=boxes.astype(np.int32))


def _cut_boxes(amounts: Ints, words: rng.Words) -> Ints:
    """Boxes of 1 - lambda of the area about a uniform centre, cut at the edges."""
    half = np.floor(np.sqrt((WHOLE - amounts) / WHOLE) * (UNIT // 2)).astype(np.int64)
    centres = [rng.between(word, 0, UNIT - 1) for word in words]
    starts = [np.maximum(centre - half, 0) for centre in centres]
    ends = [np.minimum(centre + half, UNIT) for centre in centres]
    return np.stack([*starts, *(end - start for start, end in zip(starts, ends, strict=True))], axis=1)


def _beta_levels(alpha: float, words: rng.Words) -> Ints:
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


class Pairing:
    """Who is mixed with whom in each view of a split.

    Args:
        seed: of the spec.
        keys: (N,) uint64 sample keys.
        blocks: (N,) which block each sample lies in; None for blocks in the order of the split.
    """

    def __init__(self, seed: int, keys: rng.Words, blocks: Ints | None = None) -> None:
        self._seed, self._keys = seed, keys
        self._blocks = np.arange(len(keys)) // BLOCK_ROWS if blocks is None else blocks
        self._members = _members(self._blocks)
        self._places = np.empty(len(keys), np.int64)
        for rows in self._members.values():
            self._places[rows] = np.arange(len(rows))
        # This epoch's view and the next one's, and some more.
        self._order = lru_cache(maxsize=4 * len(self._members) + 4)(self._draw_order)
        self._partners = lru_cache(maxsize=4 * len(self._members) + 4)(self._find_partners)

    def arrange(self, view: int, rows: Ints) -> Ints:
        """Return the positions of these rows (n,) in an order that has members of a group side by side."""
        blocks, arranged = self._blocks[rows], []
        for block in self._blocks_of(rows):
            here = np.flatnonzero(blocks == block)
            positions = np.full(len(self._members[block]), -1)
            positions[self._places[rows[here]]] = here
            arranged.append(positions[self._places[self._order(view, block)]])
        order = np.concatenate(arranged)
        return order[order >= 0]

    def partners(self, view: int, rows: Ints) -> Ints:
        """Return the partner of each row (n,) in a view."""
        partners = np.empty(len(rows), np.int64)
        blocks = self._blocks[rows]
        for block in self._blocks_of(rows):
            here = blocks == block
            partners[here] = self._partners(view, block)[self._places[rows[here]]]
        return partners

    def groups(self, view: int) -> tuple[Ints, list[Ints]]:
        """Return the rows of each group: (M, 4), and those of the odd last ones of blocks."""
        whole, odd = [], []
        for block in self._members:
            order = self._order(view, block)
            regular = len(order) if len(order) % GROUP == 0 else int(group_starts(len(order))[-1])
            whole.append(order[:regular].reshape(-1, GROUP))
            odd.extend([order[regular:]] if regular < len(order) else [])
        return np.concatenate(whole), odd

    def _blocks_of(self, rows: Ints) -> list[int]:
        blocks: list[int] = np.unique(self._blocks[rows]).tolist()
        return blocks

    def _draw_order(self, view: int, block: int) -> Ints:
        rows = self._members[block]
        return rows[rng.permutation(seed=self._seed, epoch=view, keys=self._keys[rows], lane=Lane.GROUPS)]

    def _find_partners(self, view: int, block: int) -> Ints:
        """Return the partner of each member of a block, in the order of the split."""
        order = self._order(view, block)
        starts = group_starts(len(order))
        following = np.arange(1, len(order) + 1)
        following[[*(starts[1:] - 1), -1]] = starts
        partners = np.empty(len(order), np.int64)
        partners[self._places[order]] = order[following]
        return partners


def require_whole_groups(count: int, name: str = "batch_size") -> None:
    """Refuse batches, or blocks, that cut groups of images which are mixed with each other.

    Raises:
        ConfigError: the size is no multiple of the group.
    """
    if count % GROUP:
        lower = count // GROUP * GROUP
        ways = f"{lower} or {lower + GROUP}" if lower else str(GROUP)
        raise ConfigError(
            f"{name} is {count}, and the views mix images inside groups of {GROUP}; expected a "
            f"multiple of {GROUP}; set it to {ways}"
        )


def group_starts(count: int) -> Ints:
    """Return where the groups of a block of so many samples begin; what is over joins the last."""
    return np.arange(max(1, count // GROUP)) * GROUP


def _members(blocks: Ints) -> Mapping[int, Ints]:
    order = np.argsort(blocks, kind="stable")
    names, starts = np.unique(blocks[order], return_index=True)
    return dict(zip(names.tolist(), np.split(order, starts[1:]), strict=True))
