"""Third-party loaders of arrays in memory, with torchvision v2: torch's DataLoader, timm's, SPDL's."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from tests.benchmarks.loading_job import Epochs, Job


def crop_and_flip(job: Job) -> list[v2.Transform]:
    """Return the job's crop and flip as v2 transforms."""
    if job.padding is not None:
        crop = v2.RandomCrop(job.size, padding=job.padding)
    else:
        crop = v2.RandomResizedCrop(job.size, antialias=True)
    return [crop, v2.RandomHorizontalFlip()]


class Recipe(Dataset[tuple[Tensor, int]]):
    """Images by the recipe of torchvision's documentation: (3, S, S) float32, normalised."""

    def __init__(self, job: Job) -> None:
        self._images = job.images
        floats = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(*job.moments)]
        self._transform = v2.Compose([v2.ToImage(), *crop_and_flip(job), *floats])

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self._transform(self._images.array(row)), int(self._images.labels[row])


class Bytes:
    """Transform arrays (H, W, 3) uint8 to tensors (S, S, 3) uint8, the fastest way through v2."""

    def __init__(self, job: Job) -> None:
        self._transform = v2.Compose(crop_and_flip(job))

    def __call__(self, image: NDArray[np.uint8]) -> Tensor:
        cropped: Tensor = self._transform(torch.from_numpy(image).permute(2, 0, 1))
        return cropped.permute(1, 2, 0)


class BytesDataset(Dataset[tuple[Tensor, int]]):
    """Images transformed by `Bytes`."""

    def __init__(self, job: Job) -> None:
        self._images, self._render = job.images, Bytes(job)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self._render(self._images.array(row)), int(self._images.labels[row])


def batched(dataset: Dataset[Any], job: Job, *, workers: int, **options: Any) -> DataLoader[Any]:
    """Return a DataLoader with the usual settings for training."""
    return DataLoader(
        dataset,
        job.batch_size,
        num_workers=workers,
        pin_memory=job.device.type == "cuda",
        drop_last=True,
        persistent_workers=workers > 0,
        **options,
    )


def sent(loader: Iterable[Any], job: Job) -> Epochs:
    """Return epochs of a loader's batches, sent to the device."""

    def epochs(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in loader:
            yield images.to(job.device, non_blocking=True), labels.to(job.device, non_blocking=True)

    return epochs


def normalised(loader: Iterable[Any], job: Job) -> Iterator[tuple[Tensor, Tensor]]:
    """Send batches (B, S, S, 3) uint8 to the device and normalise them there."""
    mean, std = (255 * torch.tensor(m, device=job.device).view(1, 3, 1, 1) for m in job.moments)
    for images, labels in loader:
        there = images.to(job.device, non_blocking=True).permute(0, 3, 1, 2)
        yield there.float().sub_(mean).div_(std), labels.to(job.device, non_blocking=True)


def data_loader(job: Job, *, workers: int | None = None) -> Epochs:
    """Load with torch's DataLoader and the usual recipe."""
    workers = job.workers if workers is None else workers
    return sent(batched(Recipe(job), job, workers=workers, shuffle=True), job)


def tuned_data_loader(job: Job) -> Epochs:
    """Load with torch's DataLoader, with bytes from its workers."""
    loader = batched(BytesDataset(job), job, workers=job.workers, shuffle=True)
    return lambda epoch: normalised(loader, job)


class Pictures(Dataset[tuple[Any, int]]):
    """Transformed PIL images, as in timm's datasets."""

    def __init__(self, job: Job) -> None:
        self._images = job.images
        self.transform: Any = None

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self._images.array(row))), int(self._images.labels[row])


def timm(job: Job) -> Epochs:
    """Load with timm's `create_loader`; it has no pad-crop, so torchvision's is used."""
    from timm.data import create_loader
    from timm.data.transforms import MaybePILToTensor

    dataset, (mean, std) = Pictures(job), job.moments
    loader = create_loader(
        dataset,
        input_size=(3, job.size, job.size),
        batch_size=job.batch_size,
        is_training=True,
        color_jitter=None,
        interpolation="bilinear",
        mean=mean,
        std=std,
        num_workers=job.workers,
        pin_memory=job.device.type == "cuda",
        device=job.device,
    )
    if job.padding is not None:
        dataset.transform = v2.Compose([*crop_and_flip(job), MaybePILToTensor()])
    return lambda epoch: iter(loader)


@functools.cache
def _bytes_dataset(job: Job) -> BytesDataset:
    return BytesDataset(job)


def _bytes_batch(job: Job, rows: list[int]) -> tuple[Tensor, Tensor]:
    dataset = _bytes_dataset(job)
    images, labels = zip(*(dataset[row] for row in rows), strict=True)
    return torch.stack(images), torch.tensor(labels)


def _seed_process() -> None:
    torch.manual_seed(os.getpid())
    torch.set_num_threads(1)


def spdl(job: Job, *, processes: bool = False) -> Epochs:
    """Load with an SPDL pipeline: rows of a batch, rendered by v2, then sent to the device."""
    from spdl.io import transfer_tensor_h2d
    from spdl.pipeline import PipelineBuilder

    _bytes_dataset(job)
    pool: Executor | None = None
    if processes:
        pool = ProcessPoolExecutor(job.workers, get_context("fork"), initializer=_seed_process)
        pool.submit(os.getpid).result()  # fork now, before threads exist whose locks would be copied

    def epochs(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = np.random.default_rng(epoch).permutation(job.count)
        batches = order[: job.count // job.batch_size * job.batch_size].reshape(-1, job.batch_size)
        builder = PipelineBuilder().add_source(batches.tolist())
        builder.pipe(
            partial(_bytes_batch, job), concurrency=job.workers, executor=pool, output_order="input"
        )
        if job.device.type == "cuda":
            builder.pipe(transfer_tensor_h2d)
        with (pipeline := builder.add_sink(3).build(num_threads=job.workers)).auto_stop():
            yield from normalised(pipeline, job)

    return epochs
