"""A job for loaders, from uint8 images on disk to float32 batches on a device, and our loader for it.

All loaders read the same packed file from the page cache. Their batches have the same shapes, the same
normalisation, and crops and flips of the same distributions.
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

# Maps an epoch number to its batches: normalised images (B, 3, S, S) float32 and labels (B,) on the device.
Epochs = Callable[[int], Iterator[tuple[Tensor, Tensor]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The job of every loader.

    Args:
        folder: prepared data; its training images are loaded.
        count: images per epoch: the first ones, or all of them repeatedly if there are fewer.
        size: height and width of the result in pixels.
        padding: largest shift in pixels; None for random resized crops.
        batch_size: images per batch; an incomplete last batch is dropped.
        device: device of the batches.
        workers: rendering threads, or processes for loaders that use them.
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
        """The images (count), with unique keys."""
        return _images(self.folder, self.count)

    @property
    def moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel, of pixels scaled to 0..1."""
        data = _data(self.folder)
        return data.statistics["mean"], data.statistics["std"]

    @property
    def rows_on_disk(self) -> int:
        """Number of distinct images."""
        return len(_data(self.folder).train)

    def touch(self) -> None:
        """Read the images into the page cache."""
        int(self.images.values[::1024].max())


@functools.cache
def _data(folder: Path) -> PreparedData:
    return PreparedData.open(folder)


@functools.cache
def _images(folder: Path, count: int) -> PackedSplit:
    whole = _data(folder).train
    # Mapped copy-on-write, though never written: torch takes no read-only array.
    pixels = np.memmap(folder / "train.pixels", np.uint8, "c").view(np.ndarray)
    images = replace(whole, values=pixels).subset(np.arange(count) % len(whole))
    keys = np.array([sample_key(f"{row}") for row in range(count)], np.uint64)
    return replace(images, keys=keys)


def ours(job: Job, *, workers: int | None = None, on_device: bool | None = None) -> Epochs:
    """Load with `Feed` and `Loader`, without targets.

    Args:
        job: the job.
        workers: rendering threads; None for the job's number.
        on_device: render on the device; None chooses.
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
