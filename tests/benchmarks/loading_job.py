"""A job for loaders: from uint8 images on disk to batches of float32 on a device; and our way to do it.

Everyone reads the same packed file, which lies in the page cache, and makes of it batches of the same
shapes, normalised by the same moments, with crops and flips of the same distributions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.core.hashing import sample_key
from pipeline.loading.feed import Feed
from pipeline.loading.loader import Loader
from pipeline.modalities.images.augmentations import PadCrop, RandomResizedCrop
from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.modalities.images.spec import ViewSpec
from pipeline.modalities.prepared import PreparedData
from pipeline.samples.packed import PackedSplit

# From an epoch's number to its batches: images (B, 3, S, S) float32 normalised, labels (B,), on the device.
Epochs = Callable[[int], Iterator[tuple[Tensor, Tensor]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What every loader does.

    Args:
        folder: prepared data; its training images are loaded.
        count: images an epoch: the first ones, or all again and again where there are fewer.
        size: height and width of the result in pixels.
        padding: shifts of so many pixels; None for random resized crops.
        batch_size: images a batch; what is left over at the end of an epoch is left out.
        device: where batches are wanted.
        workers: rendering threads, or processes where a loader has those.
    """

    folder: Path
    count: int
    size: int
    padding: int | None
    batch_size: int
    device: torch.device
    workers: int

    @property
    def images(self) -> PackedSplit:
        """The images (count), each under a key of its own."""
        return _images(self.folder, self.count)

    @property
    def moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of the pixels scaled to 0..1, a channel each."""
        data = _data(self.folder)
        return data.statistics["mean"], data.statistics["std"]

    @property
    def rows_on_disk(self) -> int:
        """How many different images there are."""
        return len(_data(self.folder).train)

    def touch(self) -> None:
        """Bring the images into memory."""
        int(self.images.values[::1024].max())


@functools.cache
def _data(folder: Path) -> PreparedData:
    return PreparedData.open(folder)


@functools.cache
def _images(folder: Path, count: int) -> PackedSplit:
    whole = _data(folder).train
    # Mapped for writing, though nobody writes: torch takes no array that is read-only.
    pixels = np.memmap(folder / "train.pixels", np.uint8, "c").view(np.ndarray)
    images = replace(whole, values=pixels).subset(np.arange(count) % len(whole))
    keys = np.array([sample_key(f"{row}") for row in range(count)], np.uint64)
    return replace(images, keys=keys)


def ours(job: Job, *, workers: int | None = None, on_device: bool | None = None) -> Epochs:
    """Load with `Feed` and `Loader`, without targets.

    Args:
        job: what to load.
        workers: rendering threads; None for the job's.
        on_device: render on the device; None where it suits.
    """
    mean, std = job.moments
    spec = ViewSpec(
        seed=1,
        pad_crop=None if job.padding is None else PadCrop(padding=job.padding),
        random_resized_crop=RandomResizedCrop() if job.padding is None else None,
        flip="random",
    )
    feed = Feed(
        job.images,
        spec,
        Preprocessing(size=job.size, mean=mean, std=std),
        device=job.device,
        workers=workers or job.workers,
        on_device=on_device,
    )
    loader = Loader(feed, None, batch_size=job.batch_size, seed=0)

    def epochs(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in loader.epoch(epoch):
            yield batch.images, batch.labels

    return epochs
