"""The images of a dump are read once for all views that are made of them: decoded, or compared.

A dump goes block by block, each with all its views. While one is dumped, its encoded images lie decoded in
memory, and those of the next are decoded ahead. Packed images are compared with their digests instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.core.arrays import Rows
from pipeline.core.progress import note
from pipeline.dump.spec import splits_of
from pipeline.evaluation.context import RunContext
from pipeline.samples.packed import Split
from pipeline.store.layout import CHUNK_ROWS, ShardId

# Of one block's decoded images. Two blocks are held, the one that is dumped and the next, and more only
# where blocks are so small that rendering is further ahead.
BLOCK_BYTES = 3 << 30
_AT_ONCE = 2
# Of images that one thread compares at a time.
_CHECKED_AT_ONCE_BYTES = 4 << 20


@dataclass(frozen=True, eq=False, kw_only=True)
class HeldImages(Split):
    """Images of which some are held decoded.

    Args:
        source: where the others come from.
        held: by row, decoded or about to be.
    """

    source: Split
    held: dict[int, Future[NDArray[np.uint8]]]

    @classmethod
    def of(cls, source: Split) -> Self:
        """Return the same images; none is held yet."""
        shared = {field.name: getattr(source, field.name) for field in fields(Split)}
        return cls(source=source, held={}, **shared)

    def array(self, row: int) -> NDArray[np.uint8]:
        """Return one image (H, W, C) uint8, when it is decoded."""
        decoded = self.held.get(row)
        return self.source.array(row) if decoded is None else decoded.result()

    def faults(self, rows: Rows) -> list[str]:
        """Return a line for each of some images (n,) that is not the one that was prepared."""
        return self.source.faults(rows)

    def require_unchanged(self, rows: Rows) -> None:
        """Refuse images (n,) that are not those that were prepared; see `Images.require_unchanged`."""
        self.source.require_unchanged(rows)

    def subset(self, rows: Rows) -> Split:
        """Return some of the images, of which none is held."""
        return self.source.subset(rows)


@dataclass(slots=True)
class _Block:
    """A block whose shards are to be made.

    Args:
        images: of its split.
        rows: which of them.
        shards: that are not made yet.
        is_held: whether decoding has begun.
    """

    images: HeldImages
    rows: Rows
    shards: int = 0
    is_held: bool = False


class DecodedBlocks:
    """Decodes what is dumped.

    Args:
        context: the data and the number of threads.
        batch_size: images that are rendered at once.
    """

    def __init__(self, context: RunContext, batch_size: int) -> None:
        # Rendering is ahead by a batch a thread, and some more; see `prefetch.py`.
        self._rendered_ahead = (context.workers + 2) * batch_size
        self._held = {
            name: HeldImages.of(images)
            for name, images in splits_of(context.data).items()
            if images.decodes_at_use
        }
        splits: dict[str, Any] = {**self._held}
        self.context = replace(context, data=replace(context.data, **splits))
        self._blocks: dict[tuple[str, int], _Block] = {}
        self._pool = ThreadPoolExecutor(context.workers, thread_name_prefix="decode")

    @contextmanager
    def expecting(self, shards: Mapping[ShardId, Rows]) -> Iterator[None]:
        """Be ready for shards, given with their rows in the order in which they will be made."""
        for shard, rows in shards.items():
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
        """Decode ahead for a shard that is about to be dumped, and for those rendered meanwhile."""
        if block := self._blocks.get((shard.section, shard.block)):
            self._hold(block)
            self._hold_next()

    def end(self, shard: ShardId) -> None:
        """Forget the images of a block whose last shard is dumped."""
        place = shard.section, shard.block
        if block := self._blocks.get(place):
            block.shards -= 1
            if not block.shards:
                _forget(self._blocks.pop(place))
                self._hold_next()

    def _hold_next(self) -> None:
        rows = 0
        for place, block in enumerate(self._blocks.values()):
            if place >= _AT_ONCE and rows >= self._rendered_ahead:
                return
            self._hold(block)
            rows += len(block.rows) * block.shards if place else 0

    def _hold(self, block: _Block) -> None:
        # Of a single view every image is asked for once.
        if not block.is_held and block.shards > 1:
            for row in block.rows[: _fitting(block)].tolist():
                block.images.held[row] = self._pool.submit(block.images.source.array, row)
        block.is_held = True

    def _tell(self) -> None:
        """Say so where a block does not fit, and images will be decoded more often than once."""
        large = [block for block in self._blocks.values() if _fitting(block) < len(block.rows)]
        if any(block.shards > 1 for block in large):
            size = max(int(block.images.array_bytes(block.rows).sum()) for block in large)
            note(
                f"a shard's images are up to {size / 1e9:.1f} GB decoded; {BLOCK_BYTES / 1e9:.1f} GB "
                "of them are decoded once, the others for every view; a lower data.short_side, or a new "
                "dump with fewer shard_rows, decodes each once"
            )


def fitting_shard_rows(images: Split, wanted: int) -> int:
    """Return rows of a shard, at most `wanted`, whose images can be held decoded: whole chunks."""
    if not images.decodes_at_use:
        return wanted
    chunks = BLOCK_BYTES * len(images) // (images.size_bytes * CHUNK_ROWS)
    return max(CHUNK_ROWS, min(wanted, chunks * CHUNK_ROWS))


def held_bytes(images: Split, shard_rows: int) -> int:
    """Return how much decoded images take while a dump is made."""
    if not images.decodes_at_use:
        return 0
    return _AT_ONCE * min(BLOCK_BYTES, shard_rows * images.size_bytes // len(images))


def _fitting(block: _Block) -> int:
    """Return how many of a block's images can be held, from the first on."""
    ends = np.cumsum(block.images.array_bytes(block.rows))
    return int(np.searchsorted(ends, BLOCK_BYTES, side="right"))


def _forget(block: _Block) -> None:
    for row in block.rows.tolist():
        if decoded := block.images.held.pop(row, None):
            decoded.cancel()


class PixelChecks:
    """Compares the images of each block with their digests once, for all its views.

    A flipped bit in a packed file would otherwise go into logits that look right. Threads compare a block
    while it is dumped, and no shard of it is written before that is done. Encoded images need none of this:
    they are compared whenever they are read.

    Args:
        splits: the images, by section.
        workers: threads.
    """

    def __init__(self, splits: Mapping[str, Split], workers: int) -> None:
        self._splits = {name: images for name, images in splits.items() if not images.decodes_at_use}
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="pixel-check")
        self._blocks: dict[tuple[str, int], list[Future[None]]] = {}

    def begin(self, shard: ShardId, rows: Rows) -> None:
        """Begin to compare a shard's images (n,), unless those of its block have been."""
        place = shard.section, shard.block
        if shard.section in self._splits and place not in self._blocks:
            images = self._splits[shard.section]
            parts = np.array_split(rows, _parts(images, rows))
            self._blocks[place] = [self._pool.submit(images.require_unchanged, part) for part in parts]

    def finish(self, shard: ShardId) -> None:
        """Wait until a shard's images are compared.

        Raises:
            DataError: one is not what was prepared.
        """
        for part in self._blocks.get((shard.section, shard.block), []):
            part.result()


def _parts(images: Split, rows: Rows) -> int:
    return 1 + int(images.array_bytes(rows).sum()) // _CHECKED_AT_ONCE_BYTES
