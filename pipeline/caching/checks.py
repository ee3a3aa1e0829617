"""Pixels of a dump are compared with their digests while they are read: each image once, for all its views.

A flipped bit in a packed file would otherwise go into logits that look right. Threads compare a block from
the moment it is rendered, and no shard of it is written before that is done. Encoded images need none of
this: they are compared whenever they are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from pipeline.samples.packed import Images
from pipeline.store.layout import ShardId

Rows = NDArray[np.int64]
_BYTES_AT_ONCE = 4 << 20


class PixelChecks:
    """Compares the images of each block once.

    Args:
        splits: the images, by section.
        workers: threads.
    """

    def __init__(self, splits: Mapping[str, Images], workers: int) -> None:
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


def _parts(images: Images, rows: Rows) -> int:
    total = int(images.shapes[rows].astype(np.int64).prod(1).sum()) * images.channels
    return 1 + total // _BYTES_AT_ONCE
