"""Choose mixing partners independently of the batch, and the order of samples that follows.

Inside each block of samples (a store's shard), a permutation per view is cut into groups of four. The
partner of a sample is the next one in its group, cyclically. So a batch of whole groups contains every
partner, for any batch size, order or device. A new permutation per view makes partners as good as random.

`Singles` has the same interface for views without mixing, so callers need no case distinction.

Worked example, a block of 9 rows:

    permutation of the view    7 2 0 5 | 8 1 3 6 4      two groups; the remainder joins the last
    partners, left group       7→2  2→0  0→5  5→7
    partners, right group      8→1  1→3  3→6  6→4  4→8
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
BLOCK_ROWS = 4096  # block size of a split without a store


class Singles:
    """The samples of views without mixing: every sample is a group by itself.

    Args:
        count: N.
    """

    group: ClassVar[int] = 1
    mixes: ClassVar[bool] = False

    def __init__(self, count: int) -> None:
        self._count = count

    def arrange(self, view: int, rows: Ints) -> Ints:
        """Return the positions 0 to n - 1 of these rows (n,): their order stays."""
        return np.arange(len(rows))

    def partners(self, view: int, rows: Ints) -> Ints:
        """Return these rows (n,): every row is its own partner."""
        return rows

    def groups(self, view: int) -> tuple[Ints, list[Ints]]:
        """Return the groups (N, 1), and no odd groups."""
        return np.arange(self._count)[:, None], []

    def spread(self, view: int, count: int) -> Ints:
        """Return `count` rows, spread evenly over the split."""
        return np.linspace(0, self._count - 1, count).astype(np.int64)


class Pairing:
    """The mixing partners of each view of a split.

    Args:
        seed: of the spec.
        keys: (N,) uint64 sample keys.
        blocks: (N,) block number of each sample; None for consecutive blocks of `BLOCK_ROWS`.
    """

    group: ClassVar[int] = GROUP
    mixes: ClassVar[bool] = True

    def __init__(self, seed: int, keys: random.Words, blocks: Ints | None = None) -> None:
        self._seed, self._keys = seed, keys
        self._blocks = np.arange(len(keys)) // BLOCK_ROWS if blocks is None else blocks
        self._members = _members(self._blocks)
        # (N,): row -> index inside its block; the inverse of `_members`.
        self._places = np.empty(len(keys), np.int64)
        for rows in self._members.values():
            self._places[rows] = np.arange(len(rows))
        # Keep about four views of every block: the current and the next epoch's, and spare ones.
        # An entry costs 8 bytes per row of its block.
        self._order = lru_cache(maxsize=4 * len(self._members) + 4)(self._draw_order)
        self._partners = lru_cache(maxsize=4 * len(self._members) + 4)(self._find_partners)

    def arrange(self, view: int, rows: Ints) -> Ints:
        """Return the positions of these rows (n,), sorted so that members of a group are adjacent."""
        blocks, arranged = self._blocks[rows], []
        for block in self._blocks_of(rows):
            # here (m,): positions in `rows` of this block's rows.
            here = np.flatnonzero(blocks == block)
            # (block size,): index in the block -> position in `rows`, -1 for rows that are not asked for.
            positions = np.full(len(self._members[block]), -1)
            positions[self._places[rows[here]]] = here
            arranged.append(positions[self._places[self._order(view, block)]])
        order = np.concatenate(arranged)
        return order[order >= 0]

    def partners(self, view: int, rows: Ints) -> Ints:
        """Return the partner row of each row (n,) in a view."""
        partners = np.empty(len(rows), np.int64)
        blocks = self._blocks[rows]
        for block in self._blocks_of(rows):
            here = blocks == block
            partners[here] = self._partners(view, block)[self._places[rows[here]]]
        return partners

    def groups(self, view: int) -> tuple[Ints, list[Ints]]:
        """Return the groups of four (M, 4), and the larger or smaller last groups of blocks."""
        whole, odd = [], []
        for block in self._members:
            order = self._order(view, block)
            # A block of 9 rows ends in a group of 5: `regular` is 4, the start of that group.
            regular = len(order) if len(order) % GROUP == 0 else int(group_starts(len(order))[-1])
            whole.append(order[:regular].reshape(-1, GROUP))
            odd.extend([order[regular:]] if regular < len(order) else [])
        return np.concatenate(whole), odd

    def spread(self, view: int, count: int) -> Ints:
        """Return about `count` rows in whole groups, spread evenly over the split."""
        groups, _ = self.groups(view)
        # A split of fewer than four rows, or of blocks that are one odd group each, has no group of four.
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
        """Return the partner row (m,) of each of a block's m members, in the order of the split."""
        order = self._order(view, block)
        starts = group_starts(len(order))
        # following (m,): each place's successor, where the last place of a group points to its start.
        # Two groups in 9 rows: 1 2 3 0 | 5 6 7 8 4.
        following = np.arange(1, len(order) + 1)
        following[[*(starts[1:] - 1), -1]] = starts
        partners = np.empty(len(order), np.int64)
        # From the view's order back to the block's order.
        partners[self._places[order]] = order[following]
        return partners


def pair_up(keys: random.Words, seed: int, *, mixes: bool, blocks: Ints | None = None) -> Singles | Pairing:
    """Return the `Pairing` of a split's views, or `Singles` for views without mixing.

    Args:
        keys: (N,) uint64 sample keys.
        seed: of the views.
        mixes: whether the views mix samples.
        blocks: (N,) block number of each sample; None for consecutive blocks of `BLOCK_ROWS`.
    """
    return Pairing(seed, keys, blocks) if mixes else Singles(len(keys))


def require_whole_groups(count: int, name: str = "batch_size", *, mixes: bool = True) -> None:
    """Refuse a batch or block size that would split groups of mixed samples.

    Args:
        count: samples per batch or block.
        name: of the parameter, for the message.
        mixes: whether views mix samples; without mixing, any count is accepted.

    Raises:
        ConfigError: the size is not a multiple of `GROUP`.
    """
    if mixes and count % GROUP:
        lower = count // GROUP * GROUP
        ways = f"{lower} or {lower + GROUP}" if lower else str(GROUP)
        raise ConfigError(
            f"{name} is {count}, but the views mix samples in groups of {GROUP}; expected a multiple of "
            f"{GROUP}; set it to {ways}"
        )


def group_starts(count: int) -> Ints:
    """Return the start of each group in a block of `count` samples; the last group takes the rest."""
    return np.arange(max(1, count // GROUP)) * GROUP


def _members(blocks: Ints) -> Mapping[int, Ints]:
    # One stable sort instead of a scan per block: rows (N,) by block, ascending inside each.
    order = np.argsort(blocks, kind="stable")
    names, starts = np.unique(blocks[order], return_index=True)
    return dict(zip(names.tolist(), np.split(order, starts[1:]), strict=True))
