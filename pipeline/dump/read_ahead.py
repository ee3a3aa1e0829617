"""Read each sample of a dump once for all its views: decode encoded images, compare packed samples.

A dump visits blocks in order, each with all its views, so a sample is needed for V consecutive shards and
never again. Encoded images of the current block are held decoded, and those of the next block are decoded
ahead. Packed samples need no decoding; they are compared with their digests instead. With V = 2:

    shards    (block 0, view 0) (block 0, view 1) (block 1, view 0) (block 1, view 1)
    held      blocks 0, 1       blocks 0, 1       blocks 1, 2       blocks 1, 2

A dump that visits view by view decodes encoded images once per view, and holds none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.core.arrays import Rows
from pipeline.core.progress import note
from pipeline.dump.spec import splits_of
from pipeline.evaluation.context import RunContext
from pipeline.samples.packed import Split
from pipeline.store.layout import CHUNK_ROWS, ShardId

# Most bytes of one block's decoded images; later images of a larger block are decoded once per view. The
# current and the next block are held; more only if blocks are so small that rendering is further ahead.
BLOCK_BYTES = 3 << 30
_AT_ONCE = 2
# Bytes of samples that one task compares, small enough to balance tasks over threads.
_CHECKED_AT_ONCE_BYTES = 4 << 20


@dataclass(frozen=True, eq=False, kw_only=True)
class HeldImages(Split):
    """A split with some images held decoded.

    Args:
        source: the split itself, for images not held.
        held: row -> decoded image (H, W, C), or one being decoded.
    """

    source: Split
    held: dict[int, Future[NDArray[np.uint8]]]

    @classmethod
    def of(cls, source: Split) -> Self:
        """Wrap a split; no image is held yet."""
        shared = {field.name: getattr(source, field.name) for field in fields(Split)}
        return cls(source=source, held={}, **shared)

    def array(self, row: int) -> NDArray[np.uint8]:
        """Return one image (H, W, C) uint8; wait if it is being decoded."""
        # A decoding error is raised here, by `result`, in the thread that renders the image.
        decoded = self.held.get(row)
        return self.source.array(row) if decoded is None else decoded.result()

    def faults(self, rows: Rows) -> list[str]:
        """Return one line per image of rows (n,) that differs from the prepared one."""
        return self.source.faults(rows)

    def require_unchanged(self, rows: Rows) -> None:
        """Refuse rows (n,) whose images differ from the prepared ones; see `Split.require_unchanged`."""
        self.source.require_unchanged(rows)

    def subset(self, rows: Rows) -> Split:
        """Return a subset of the images, without held ones."""
        return self.source.subset(rows)


@dataclass(slots=True)
class _Block:
    """A block with shards still to make.

    Args:
        images: the images of its split.
        rows: (n,) the block's rows in the split.
        shards: number of shards still to make; at 0 its images are released.
        is_held: whether decoding has started.
    """

    images: HeldImages
    rows: Rows
    shards: int = 0
    is_held: bool = False


class DecodedBlocks:
    """Decode images ahead of the shards that need them.

    Args:
        context: the data and the number of threads.
        batch_size: images per batch of rendering.
    """

    def __init__(self, context: RunContext, batch_size: int) -> None:
        # Rendering runs ahead by one batch per thread plus two; see `prefetch.py`. In images.
        self._rendered_ahead = (context.workers + 2) * batch_size
        self._held = {
            name: HeldImages.of(images)
            for name, images in splits_of(context.data).items()
            if images.decodes_at_use
        }
        splits: dict[str, Any] = {**self._held}
        # Feeds of this context read held images where possible, and know nothing of blocks.
        self.context = replace(context, data=replace(context.data, **splits))
        # By (section, block), in the order of the dump: dicts keep insertion order.
        self._blocks: dict[tuple[str, int], _Block] = {}
        self._pool = ThreadPoolExecutor(context.workers, thread_name_prefix="decode")

    @contextmanager
    def expecting(self, shards: Mapping[ShardId, Rows]) -> Iterator[None]:
        """Expect shards with their rows (n,), in the order of the dump; release everything at the end."""
        # All views of a block have the same rows, so the first view's rows serve for the block.
        for shard, rows in shards.items() if _is_by_block(shards) else ():
            if shard.section in self._held:
                images = self._held[shard.section]
                place = shard.section, shard.block
                self._blocks.setdefault(place, _Block(images, rows)).shards += 1
        self._tell()
        try:
            yield
        finally:
            for block in self._blocks.values():
                _forget(block)
            self._blocks.clear()

    def start(self, shard: ShardId) -> None:
        """Decode ahead for a shard that is dumped next, and for shards rendered meanwhile."""
        if block := self._blocks.get((shard.section, shard.block)):
            self._hold(block)
            self._hold_next()

    def end(self, shard: ShardId) -> None:
        """Release the images of a block after its last shard."""
        place = shard.section, shard.block
        if block := self._blocks.get(place):
            block.shards -= 1
            if not block.shards:
                _forget(self._blocks.pop(place))
                self._hold_next()

    def _hold_next(self) -> None:
        # rows: images that rendering can do beyond the current block, each view counted. Two blocks suffice
        # if they are large. With blocks of 100 rows, 2 views and rendering 1,000 images ahead, blocks 1-5
        # give 5 * 200 = 1,000 rows: six blocks are held. Without this, rendering would decode by itself,
        # once per view, images of blocks beyond the second.
        rows = 0
        for place, block in enumerate(self._blocks.values()):
            if place >= _AT_ONCE and rows >= self._rendered_ahead:
                return
            self._hold(block)
            rows += len(block.rows) * block.shards if place else 0

    def _hold(self, block: _Block) -> None:
        # With a single missing view, each image is needed once, so the renderer decodes it itself.
        if not block.is_held and block.shards > 1:
            for row in block.rows[: _fitting(block)].tolist():
                block.images.held[row] = self._pool.submit(block.images.source.array, row)
        block.is_held = True

    def _tell(self) -> None:
        """Warn if a block exceeds `BLOCK_BYTES`, so that some images are decoded once per view."""
        large = [block for block in self._blocks.values() if _fitting(block) < len(block.rows)]
        if any(block.shards > 1 for block in large):
            size = max(int(block.images.array_bytes(block.rows).sum()) for block in large)
            note(
                f"a shard's decoded samples take up to {size / 1e9:.1f} GB; {BLOCK_BYTES / 1e9:.1f} GB of "
                "them are decoded once, the rest for every view; to decode all of them once, lower "
                "data.short_side, or make a new dump with fewer shard_rows"
            )


def fitting_shard_rows(images: Split, wanted: int) -> int:
    """Return rows per shard, in whole chunks and at most `wanted`, whose images fit `BLOCK_BYTES`."""
    if not images.decodes_at_use:
        return wanted
    # Images of 1.5 MB decoded: (3 << 30) // (1.5e6 * 4096) = 0 chunks, so one chunk, the least. At 150 kB
    # there are 5 chunks: 20,480 rows.
    chunks = BLOCK_BYTES * len(images) // (images.size_bytes * CHUNK_ROWS)
    return max(CHUNK_ROWS, min(wanted, chunks * CHUNK_ROWS))


def held_bytes(images: Split, shard_rows: int) -> int:
    """Return the bytes of decoded images during a dump: two blocks, or 0 for packed samples."""
    if not images.decodes_at_use:
        return 0
    return _AT_ONCE * min(BLOCK_BYTES, shard_rows * images.size_bytes // len(images))


def _is_by_block(shards: Iterable[ShardId]) -> bool:
    """Whether all views of each block follow one another; else a block would be held until the last view.

    >>> from pipeline.store.layout import ShardId
    >>> _is_by_block(ShardId("train", view, block) for view in (0, 1) for block in (0, 1))
    False
    """
    visits = [place for place, _ in groupby((shard.section, shard.block) for shard in shards)]
    return len(visits) == len(set(visits))


def _fitting(block: _Block) -> int:
    """Return the number of leading images of a block that fit `BLOCK_BYTES`."""
    # ends (n,): bytes up to and including each image. For a limit of 10, [4, 8, 12] give 2 images.
    ends = np.cumsum(block.images.array_bytes(block.rows))
    return int(np.searchsorted(ends, BLOCK_BYTES, side="right"))


def _forget(block: _Block) -> None:
    for row in block.rows.tolist():
        if decoded := block.images.held.pop(row, None):
            # No effect on an image that is already decoded; pending ones would only waste a thread.
            decoded.cancel()


class PixelChecks:
    """Compare the packed samples of each block with their digests, once for all views.

    Without this, a flipped bit in a packed file would end in plausible but wrong logits. Threads compare a
    block while it is dumped, and its shards are written only after the comparison. Encoded images are
    skipped: they are compared at every read.

    Args:
        splits: the samples, by section.
        workers: number of threads.
    """

    def __init__(self, splits: Mapping[str, Split], workers: int) -> None:
        self._splits = {name: images for name, images in splits.items() if not images.decodes_at_use}
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="pixel-check")
        self._blocks: dict[tuple[str, int], list[Future[None]]] = {}

    def begin(self, shard: ShardId, rows: Rows) -> None:
        """Start to compare a shard's samples, rows (n,), unless another view of its block did."""
        place = shard.section, shard.block
        if shard.section in self._splits and place not in self._blocks:
            images = self._splits[shard.section]
            parts = np.array_split(rows, _parts(images, rows))
            self._blocks[place] = [self._pool.submit(images.require_unchanged, part) for part in parts]

    @contextmanager
    def ending(self) -> Iterator[None]:
        """End the comparisons with a `with` block, also those of a dump that fails."""
        try:
            yield
        finally:
            parts = [part for block in self._blocks.values() for part in block]
            for part in parts:
                part.cancel()
            wait(parts)

    def finish(self, shard: ShardId) -> None:
        """Wait for the comparison of a shard's samples.

        Raises:
            DataError: a sample differs from the prepared one.
        """
        # A failed future raises again for every view, so no shard of a bad block is ever written.
        for part in self._blocks.get((shard.section, shard.block), []):
            part.result()


def _parts(images: Split, rows: Rows) -> int:
    return 1 + int(images.array_bytes(rows).sum()) // _CHECKED_AT_ONCE_BYTES
