"""A loader's turn in this process: one epoch or more, checked and timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.benchmarks.loading_job import Epochs, Job


class LoaderError(Exception):
    """A loader is missing, or fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A loader.

    Args:
        name: its name.
        open: makes the loader for a job, including its imports.
        convert: writes the job's images in the loader's own format, once; None if it has none.
        precision: dtype of its batches.
    """

    name: str
    open: Callable[[Job], Epochs]
    convert: Callable[[Job], None] | None = None
    precision: torch.dtype = torch.float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Measurements of a loader's turn.

    Args:
        images: number of images.
        seconds: duration, device work included.
        first_batch_seconds: from the request for an epoch to its first batch, median over the epochs.
        cpu_seconds: user and system time of all its processes.
        pinned_bytes, device_bytes: peak pinned host memory and device memory so far; 0 without a GPU.
        mean, std: mean and standard deviation of the values in the loader's first batch.
    """

    images: int
    seconds: float
    first_batch_seconds: float
    cpu_seconds: float = 0.0
    pinned_bytes: int = 0
    device_bytes: int = 0
    mean: float = 0.0
    std: float = 0.0


class OpenLoader:
    """A loader in this process.

    Args:
        contender: the loader.
        job: the job.
    """

    def __init__(self, contender: Contender, job: Job) -> None:
        self._contender, self._job = contender, job
        self._epochs: Epochs | None = None
        self._epoch = 0
        self._mean = self._std = 0.0

    def convert(self) -> None:
        """Write the images in the loader's format."""
        if self._contender.convert is not None:
            self._contender.convert(self._job)

    def open(self) -> float:
        """Make the loader and return the time for it in seconds."""
        start = time.perf_counter()
        self._epochs = self._contender.open(self._job)
        return time.perf_counter() - start

    def turn(self, at_least_seconds: float) -> Turn:
        """Run one epoch, and more until so many seconds have passed."""
        epochs = [self._whole_epoch()]
        while sum(epoch.seconds for epoch in epochs) < at_least_seconds:
            epochs.append(self._whole_epoch())
        pinned_bytes, device_bytes = gpu_peaks() if self._job.device.type == "cuda" else (0, 0)
        return Turn(
            images=sum(epoch.images for epoch in epochs),
            seconds=sum(epoch.seconds for epoch in epochs),
            first_batch_seconds=statistics.median(epoch.first_batch_seconds for epoch in epochs),
            pinned_bytes=pinned_bytes,
            device_bytes=device_bytes,
            mean=self._mean,
            std=self._std,
        )

    def _whole_epoch(self) -> Turn:
        if self._epochs is None:
            raise LoaderError("an epoch was requested before opening")
        start = time.perf_counter()
        batches = self._epochs(self._epoch)
        first, _ = next(batches)
        self._wait()
        first_batch_seconds = time.perf_counter() - start
        if not self._epoch:
            self._look_at(first)
        images = len(first)
        del first
        images += sum(len(batch) for batch, _ in batches)
        self._wait()
        self._epoch += 1
        seconds = time.perf_counter() - start
        return Turn(images=images, seconds=seconds, first_batch_seconds=first_batch_seconds)

    def _wait(self) -> None:
        if self._job.device.type == "cuda":
            torch.cuda.synchronize(self._job.device)

    def _look_at(self, images: Tensor) -> None:
        """Refuse batches of the wrong shape, dtype or device; record mean and standard deviation."""
        job, precision = self._job, self._contender.precision
        found = tuple(images.shape), images.dtype, images.device.type
        expected = (job.batch_size, 3, job.size, job.size), precision, job.device.type
        if found != expected:
            raise LoaderError(f"batches are {found}; expected {expected}")
        self._mean, self._std = images.float().mean().item(), images.float().std().item()


def gpu_peaks() -> tuple[int, int]:
    """Return the peak pinned memory and the peak device memory of this process so far, in bytes."""
    pinned = torch.cuda.host_memory_stats().get("allocated_bytes.peak", 0)
    return int(pinned), torch.cuda.max_memory_allocated()
