"""The order of samples in a lap: all samples shuffled at once, or block by block.

Owns the rows of every step of a lap; views and batches are left to the loader. The order is a pure function
of (seed, lap, samples, blocks). It depends on no thread or process, nor on the step of a resumed run.

`global` shuffles all samples. Every process then reads from every part of the samples and of the store.

`blocks` cuts the samples into `STREAMS` streams of blocks, and each batch takes rows from all of them. A
process renders consecutive rows of a batch, so it reads the blocks of its own streams and no others:

    blocks, shuffled     5 2 7 | 0 4 1 | 3 6 8             three streams, two blocks a window
    windows              {5 2} {7} | {0 4} {1} | {3 6} {8}  rows are shuffled inside { }
    batch t              rows of {5 2} | of {0 4} | of {3 6}, until these windows are used up

So a batch is drawn from `STREAMS` times `window` blocks, e.g. 64 of 4,096 samples. Streaming data loaders
shuffle blocks as well, e.g. MosaicML's with `shuffle_block_size`. The number of streams is fixed here, so
that the order does not change with the number of processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.core.arrays import Rows
from pipeline.core.distributed import Ranks
from pipeline.core.errors import ConfigError
from pipeline.core.random import Lane, permutation
from pipeline.loading.feed import Feed
from pipeline.views.pairing import BLOCK_ROWS

OrderKind = Literal["global", "blocks"]
# Up to 16 processes read no block in common, but for those at the ends of their parts. More share streams.
STREAMS = 16
# Batches whose rows are sorted by length together. 32 leave a third of the padding of random batches.
_SORTED = 32
_ITEMS, _BLOCKS, _EDGES = Lane.ORDER, Lane.ORDER + 1, Lane.ORDER + 2


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderSpec:
    """The kind of order.

    Args:
        kind: global or blocks.
        window: blocks of a stream whose rows are shuffled together, at least 1.

    Raises:
        ConfigError: the kind is unknown, or the window is too small.
    """

    kind: OrderKind = "global"
    window: int = 4

    def __post_init__(self) -> None:
        if self.kind not in ("global", "blocks"):
            raise ConfigError(f"order is {self.kind!r}; expected global or blocks; correct it")
        if self.window < 1:
            raise ConfigError(f"order_window is {self.window}; expected at least 1 block; raise it")


GLOBAL = OrderSpec()


class Order:
    """The rows of each lap over a split.

    Args:
        feed: the samples and their groups; for mixed views, whole groups stay together.
        batch_size: B, samples per step, at most N.
        seed: 64-bit unsigned.
        spec: the kind of order.
        blocks: (N,) block of each sample, for order blocks; None for consecutive blocks of the split.

    Example:
        >>> from pathlib import Path
        >>> import torch
        >>> from pipeline import Feed, PreparedData
        >>> from pipeline.modalities.images.preprocessing import Preprocessing
        >>> data = PreparedData.open(Path("data/prepared"))
        >>> preprocessing, cpu = Preprocessing(size=8, **data.statistics), torch.device("cpu")
        >>> feed = Feed(data.train, None, preprocessing, device=cpu)
        >>> order = Order(feed, batch_size=16, seed=0, spec=OrderSpec(kind="blocks"))
        >>> order.lap(0, view=0).shape
        (4, 16)
    """

    def __init__(
        self,
        feed: Feed,
        *,
        batch_size: int,
        seed: int,
        spec: OrderSpec = GLOBAL,
        blocks: Rows | None = None,
    ) -> None:
        self._feed, self._seed, self._spec, self._batch_size = feed, seed, spec, batch_size
        self._keys = feed.images.keys
        self.steps = len(self._keys) // batch_size
        self._blocks = np.arange(len(self._keys)) // BLOCK_ROWS if blocks is None else blocks
        # The columns of a batch that one stream fills; one stream of all columns for the global order.
        streams = STREAMS if spec.kind == "blocks" else 1
        unit = feed.pairing.group
        columns = [Ranks(place, streams).share(batch_size, unit) for place in range(streams)]
        self._columns = [part for part in columns if part.stop > part.start]

    @property
    def in_blocks(self) -> bool:
        """Whether neighbouring rows of a batch come from few blocks."""
        return self._spec.kind == "blocks"

    def lap(self, lap: int, view: int) -> Rows:
        """Return the rows (steps, B) int64 of a lap that shows a view."""
        used = self._shuffled(lap, view)[: self.steps * self._batch_size]
        streams = self._streams(used)
        lengths = self._feed.lengths(view, used)
        if lengths is None or self._feed.mixes:
            return np.concatenate(streams, 1)
        return self._by_length(lap, streams, self._streams(lengths))

    def _streams(self, values: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Cut values (steps * B,) into the streams: one array (steps, columns) each."""
        # Example: 3 steps of B = 4 in streams of 3 and 1 columns: 12 rows are cut at 9.
        sizes = [part.stop - part.start for part in self._columns]
        parts = np.split(values, np.cumsum(sizes[:-1]) * self.steps)
        return [part.reshape(self.steps, size) for part, size in zip(parts, sizes, strict=True)]

    def _by_length(self, lap: int, streams: Sequence[Rows], lengths: Sequence[NDArray[np.int64]]) -> Rows:
        """Arrange streams (steps, columns) so that a batch has samples of similar length.

        Only rows of one stream in a window of `_SORTED` batches change places, so an epoch stays nearly as
        random. Batches stay in random order.
        """
        # Example, one stream, B = 2, a window of 3 batches with lengths [5, 1, 4, 9, 2, 8]:
        #   sorted by length  [1, 2 | 4, 5 | 8, 9]     batches of similar length
        #   batches permuted  [8, 9 | 1, 2 | 4, 5]     by the key of each batch's first sample
        arranged = []
        for start in range(0, self.steps, _SORTED):
            window = slice(start, start + _SORTED)
            batches = np.concatenate(
                [_ascending(rows[window], of[window]) for rows, of in zip(streams, lengths, strict=True)], 1
            )
            arranged.append(batches[self._permutation(lap, self._keys[batches[:, 0]])])
        return np.concatenate(arranged)

    def _shuffled(self, lap: int, view: int) -> Rows:
        """Return the rows of a lap (steps * B,), at least.

        Whole groups come first, so that batches do not split them. Odd groups come last, always kept.
        """
        # Example: mixed views, one block of 23 rows, B = 8, so 2 steps take 16 rows.
        #   groups (4, 4): four whole groups; odd: one group of 7, i.e. the last four and the 3 left over
        #   room = 16 - 7 = 9: groups 0 and 1, one row of group 2, then the 7 odd rows
        # A row whose partner is in another batch costs one more rendering, but its pixels are the same.
        # Without mixing, groups is (N, 1) and odd is empty: a plain shuffle.
        groups, odd = self._feed.pairing.groups(view)
        first = np.array([group[0] for group in odd], np.int64)
        last = [odd[place] for place in self._permutation(lap, self._keys[first]).tolist()]
        room = max(0, self.steps * self._batch_size - sum(map(len, odd)))
        shuffled = (self._in_blocks if self.in_blocks else self._at_once)(lap, groups, room)
        return np.concatenate([shuffled.ravel()[:room], *last])

    def _at_once(self, lap: int, groups: Rows, room: int) -> Rows:
        """Return all groups (M, g) in random order."""
        # Keyed by each group's first sample: the order follows the samples, not their rows in the split.
        return groups[self._permutation(lap, self._keys[groups[:, 0]])]

    def _in_blocks(self, lap: int, groups: Rows, room: int) -> Rows:
        """Return groups (m, g) with at least `room` rows: blocks in random order, then rows in windows."""
        keys, blocks = self._keys[groups[:, 0]], self._blocks[groups[:, 0]]
        place = self._places_of_blocks(lap, keys, blocks)
        # Inside a block, the groups that a cut separates from the others are random, too.
        order = permutation(seed=self._seed, epoch=lap, keys=keys, lane=_EDGES)
        order = order[np.argsort(place[order], kind="stable")][: -(-room // groups.shape[1])]
        window = self._windows(place[order], groups.shape[1])
        again = permutation(seed=self._seed, epoch=lap, keys=keys[order], lane=_ITEMS)
        return groups[order[again[np.argsort(window[again], kind="stable")]]]

    def _places_of_blocks(self, lap: int, keys: NDArray[np.uint64], blocks: Rows) -> Rows:
        """Return the place (M,) of each group's block in the lap's random order of blocks."""
        # A block is known by its smallest key, whatever its number and the order of its samples.
        names, numbers = np.unique(blocks, return_inverse=True)
        smallest = np.full(len(names), np.iinfo(np.uint64).max, np.uint64)
        np.minimum.at(smallest, numbers, keys)
        places = np.empty(len(names), np.int64)
        places[permutation(seed=self._seed, epoch=lap, keys=smallest, lane=_BLOCKS)] = np.arange(len(names))
        return places[numbers]

    def _windows(self, places: Rows, size: int) -> Rows:
        """Return the window (m,) of each group; no window is in two streams.

        Args:
            places: (m,) ascending, of the groups' blocks.
            size: rows per group.
        """
        # Example: window 2, streams of 3 groups each, blocks of 2 groups.
        #   places  0 0 1 | 1 2 2     the cut is inside block 1
        #   window  0 0 0 | 1 1 1     counted anew in each stream: blocks {0 1}, then {1 2}
        ends = np.array([part.stop for part in self._columns], np.int64) * self.steps
        stream = np.searchsorted(ends, np.arange(len(places)) * size, side="right")
        starts = places[np.searchsorted(stream, np.arange(len(ends)))[stream]]
        within = (places - starts) // self._spec.window
        windows: Rows = stream * (int(places.max(initial=0)) + 1) + within
        return windows

    def _permutation(self, lap: int, keys: NDArray[np.uint64]) -> Rows:
        return permutation(seed=self._seed, epoch=lap, keys=keys, lane=_ITEMS)


def _ascending(rows: Rows, lengths: NDArray[np.int64]) -> Rows:
    """Return rows (w, columns), sorted by their lengths."""
    return rows.ravel()[np.argsort(lengths, axis=None, kind="stable")].reshape(rows.shape)
