"""Mixing without the batch: which two samples of a view are mixed, and the order that follows from it.

Inside each block of samples (a store's shard) the view's own permutation is cut into groups of four, and a
sample's partner is the next one round in its group, so a batch of whole groups holds every partner that it
needs, whatever its size, order or device. A new permutation for every view makes partners as good as drawn
freely.

`Singles` answers the same questions where views mix nothing, so nobody else has to ask whether they do.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.core import random
from pipeline.core.errors import ConfigError
from pipeline.core.random import Lane

Ints = NDArray[np.int64]

GROUP = 4
BLOCK_ROWS = 4096  # of a split that no store has cut


class Singles:
    """The samples of views that mix nothing: each is a group of its own.

    Args:
        count: N.
    """

    group: ClassVar[int] = 1
    mixes: ClassVar[bool] = False

    def __init__(self, count: int) -> None:
        self._count = count

    def arrange(self, view: int, rows: Ints) -> Ints:
        """Return the positions of these rows (n,) in their own order."""
        return np.arange(len(rows))

    def partners(self, view: int, rows: Ints) -> Ints:
        """Return these rows (n,): each is its own partner."""
        return rows

    def groups(self, view: int) -> tuple[Ints, list[Ints]]:
        """Return the rows (N, 1), and no odd ones."""
        return np.arange(self._count)[:, None], []

    def spread(self, view: int, count: int) -> Ints:
        """Return so many rows, spread evenly over the split."""
        return np.linspace(0, self._count - 1, count).astype(np.int64)


class Pairing:
    """Who is mixed with whom in each view of a split.

    Args:
        seed: of the spec.
        keys: (N,) uint64 sample keys.
        blocks: (N,) which block each sample lies in; None for blocks in the order of the split.
    """

    group: ClassVar[int] = GROUP
    mixes: ClassVar[bool] = True

    def __init__(self, seed: int, keys: random.Words, blocks: Ints | None = None) -> None:
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

    def spread(self, view: int, count: int) -> Ints:
        """Return about so many rows of whole groups, spread evenly over the split."""
        groups, _ = self.groups(view)
        if not len(groups):
            return Singles(len(self._keys)).spread(view, count)
        chosen = np.linspace(0, len(groups) - 1, max(1, min(len(groups), count // GROUP)))
        return groups[chosen.astype(np.int64)].ravel()

    def _blocks_of(self, rows: Ints) -> list[int]:
        blocks: list[int] = np.unique(self._blocks[rows]).tolist()
        return blocks

    def _draw_order(self, view: int, block: int) -> Ints:
        rows = self._members[block]
        return rows[
            random.permutation(seed=self._seed, epoch=view, keys=self._keys[rows], lane=Lane.GROUPS)
        ]

    def _find_partners(self, view: int, block: int) -> Ints:
        """Return the partner of each member of a block, in the order of the split."""
        order = self._order(view, block)
        starts = group_starts(len(order))
        following = np.arange(1, len(order) + 1)
        following[[*(starts[1:] - 1), -1]] = starts
        partners = np.empty(len(order), np.int64)
        partners[self._places[order]] = order[following]
        return partners


def pair_up(keys: random.Words, seed: int, *, mixes: bool, blocks: Ints | None = None) -> Singles | Pairing:
    """Return who is mixed with whom in the views of a split.

    Args:
        keys: (N,) uint64 sample keys.
        seed: of the views.
        mixes: whether they mix samples at all.
        blocks: (N,) which block each sample lies in; None for blocks in the order of the split.
    """
    return Pairing(seed, keys, blocks) if mixes else Singles(len(keys))


def require_whole_groups(count: int, name: str = "batch_size", *, mixes: bool = True) -> None:
    """Refuse batches, or blocks, that cut groups of samples which are mixed with each other.

    Args:
        count: samples of a batch or block.
        name: of the parameter that says so.
        mixes: whether views mix samples; where they don't, any count will do.

    Raises:
        ConfigError: the size is no multiple of the group.
    """
    if mixes and count % GROUP:
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
