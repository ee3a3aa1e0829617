"""Speed of a dump, compared with its bare teacher on the same device: the rest is overhead."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

# Limits on timing the teacher alone: seconds, and share of the dump's time.
_MOST_SECONDS = 1.0
_SHARE = 0.02

Forward = Callable[[Tensor], object]  # of images (B, channels, S, S) on their device


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Measured speed of a dump.

    Args:
        images: number of forward passes, in samples.
        seconds: from the first sample to the end of the last shard, without preparation and completion.
        alone: samples per second of the teacher's bare forward pass; None if the dump was too small.
    """

    images: int
    seconds: float
    alone: float | None

    @property
    def images_per_second(self) -> float:
        """Samples per second of the dump."""
        return self.images / self.seconds

    def __str__(self) -> str:
        done = f"{self.images:,} forward passes in {self.seconds:,.0f} s"
        text = f"{done}, {self.images_per_second:,.0f} samples/s"
        if self.alone is None:
            return text
        share = self.images_per_second / self.alone
        return f"{text}; the teacher alone {self.alone:,.0f} samples/s, utilisation {share:.0%}"


class Stopwatch:
    """Time a dump and, at its end, the teacher alone.

    At the end the teacher is warm, no rendering or writing slows it down, and the dump's duration limits
    that of the measurement.

    Args:
        batch_size: samples per full batch.
    """

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._forward: Forward | None = None
        self._resident: Tensor | None = None
        self._images, self._seconds = 0, 0.0

    @contextmanager
    def running(self, forward: Forward, images: int) -> Iterator[None]:
        """Time the body, in which `images` samples pass through the teacher and into the store."""
        start = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - start
        self._images, self._forward = self._images + images, forward

    def see(self, images: Tensor) -> None:
        """Keep the first full batch, as the teacher's input on its device."""
        if self._resident is None and len(images) == self._batch_size:
            self._resident = images

    @property
    def seconds_per_image(self) -> float | None:
        """Mean seconds per sample so far; None before the first one."""
        return self._seconds / self._images if self._images else None

    def speed(self) -> Speed | None:
        """Return the speed so far; None before the first sample."""
        if not self._images:
            return None
        return Speed(images=self._images, seconds=self._seconds, alone=self._alone())

    def _alone(self) -> float | None:
        batches = self._images // self._batch_size
        if self._forward is None or self._resident is None or batches * _SHARE < 1:
            return None
        once = _timed(self._forward, self._resident, 1)
        more = int(min(_MOST_SECONDS, _SHARE * self._seconds) / once)
        seconds = _timed(self._forward, self._resident, more) / more if more else once
        return self._batch_size / seconds


def _timed(forward: Forward, images: Tensor, repetitions: int) -> float:
    """Return the seconds of repeated forward passes, device work included."""
    _wait_for(images.device)
    start = time.perf_counter()
    for _ in range(repetitions):
        forward(images)
    _wait_for(images.device)
    return time.perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
