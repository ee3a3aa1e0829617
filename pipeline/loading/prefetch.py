"""The staged path: threads render into a ring of slots, which are sent to the device while it works.

A slot is a buffer on the host, pinned where the device is a GPU, and one on the device, with two events:
the copy has arrived, and the device is done with it. Slots are used again and again; copies go through one
stream that lives as long as the ring, and nothing is allocated on it. On a CPU a slot is its buffer alone.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import pairwise

import torch
from torch import Tensor

from pipeline.core.arrays import Rows
from pipeline.core.device import long_lived_stream

# Batches beyond those that threads are at, and below which size one thread renders a batch alone.
_AHEAD = 1
_BYTES_A_PART = 2 << 20

Render = Callable[[int, Rows], Tensor]  # (view, rows (n,)) to pixels (n, S, S, C) uint8 on the CPU


class _Slot:
    """Room for one batch; it grows to the largest that it has held.

    Args:
        shape: of a rendered sample; of an image (S, S, C).
        dtype: of its values.
        device: where batches are wanted.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self._shape, self._dtype, self._device = shape, dtype, device
        self._on_gpu = device.type == "cuda"
        self._make_room(0)
        self._arrived, self._done = (_event() if self._on_gpu else None for _ in range(2))
        self._count, self._sent = 0, False
        self._filling: list[Future[None]] = []

    def _make_room(self, count: int) -> None:
        # Slots made while a model is evaluated also serve training.
        with torch.inference_mode(False):
            self._host = torch.empty((count, *self._shape), dtype=self._dtype, pin_memory=self._on_gpu)
            self._there = torch.empty_like(self._host, device=self._device) if self._on_gpu else self._host

    def fill(self, pool: ThreadPoolExecutor, parts: int, render: Render, view: int, rows: Rows) -> None:
        """Begin to render a batch, in parts."""
        if self._arrived is not None:
            # What was in it before has long been sent.
            self._arrived.synchronize()
        if len(rows) > len(self._host):
            self._make_room(len(rows))
        self._count, self._sent = len(rows), False
        ends = sorted({len(rows) * part // parts for part in range(parts + 1)})
        self._filling = [
            pool.submit(self._render, render, view, rows, start, stop) for start, stop in pairwise(ends)
        ]

    def _render(self, render: Render, view: int, rows: Rows, start: int, stop: int) -> None:
        self._host[start:stop] = render(view, rows[start:stop])

    @property
    def is_full(self) -> bool:
        """Whether all of it is rendered; what failed is told in its turn."""
        return all(part.done() and part.exception() is None for part in self._filling)

    def send(self, stream: torch.cuda.Stream | None) -> None:
        """Wait until it is rendered and begin to copy it, unless that has been done."""
        if self._sent:
            return
        for part in self._filling:
            part.result()
        if stream is not None and self._arrived is not None and self._done is not None:
            with torch.cuda.stream(stream):
                stream.wait_event(self._done)
                self._there[: self._count].copy_(self._host[: self._count], non_blocking=True)
                self._arrived.record(stream)
        self._sent = True

    def take(self) -> Tensor:
        """Let the device wait for the copy, and return it."""
        if self._arrived is not None:
            torch.cuda.current_stream(self._device).wait_event(self._arrived)
        return self._there[: self._count]

    def give_back(self) -> None:
        """Say that all work on it has been given to the device."""
        if self._done is not None:
            self._done.record(torch.cuda.current_stream(self._device))

    def drop(self) -> None:
        """Forget what is being rendered."""
        for part in self._filling:
            part.cancel()
        wait(self._filling)


class PrefetchQueue:
    """Slots that threads fill in turn.

    Args:
        render: what renders.
        shape: of a rendered sample; of an image (S, S, C).
        device: where batches are wanted.
        workers: rendering threads.
        dtype: of a rendered sample's values.
    """

    def __init__(
        self,
        render: Render,
        shape: tuple[int, ...],
        device: torch.device,
        *,
        workers: int,
        dtype: torch.dtype = torch.uint8,
    ) -> None:
        self._dtype = dtype
        self._render, self._shape, self._device, self._workers = render, shape, device, workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="render")
        self._stream = long_lived_stream(device) if device.type == "cuda" else None
        self._idle: list[_Slot] = []

    def stream(self, requests: Iterable[tuple[int, Rows]]) -> Iterator[Tensor]:
        """Yield for each (view, rows) pixels (n, S, S, C) uint8; they last until the next are asked for."""
        upcoming = iter(requests)
        filled: deque[_Slot] = deque()
        try:
            self._fill(filled, upcoming)
            while filled:
                slot = filled.popleft()
                try:
                    slot.send(self._stream)
                    self._send_ahead(filled)
                    yield slot.take()
                finally:
                    slot.give_back()
                    self._idle.append(slot)
                self._fill(filled, upcoming)
        finally:
            for slot in filled:
                slot.drop()
                self._idle.append(slot)

    def _fill(self, filled: deque[_Slot], upcoming: Iterator[tuple[int, Rows]]) -> None:
        """Begin to render as many batches as may be ahead."""
        parts = 1
        while len(filled) <= _AHEAD + self._workers // parts:
            request = next(upcoming, None)
            if request is None:
                return
            view, rows = request
            parts = self._parts(len(rows))
            slot = self._idle.pop() if self._idle else _Slot(self._shape, self._dtype, self._device)
            filled.append(slot)
            slot.fill(self._pool, parts, self._render, view, rows)

    def _parts(self, count: int) -> int:
        """Return in how many parts a batch is rendered: a large one by all threads together."""
        size_bytes = count * math.prod(self._shape) * self._dtype.itemsize
        return max(1, min(self._workers, size_bytes // _BYTES_A_PART))

    def _send_ahead(self, filled: Iterable[_Slot]) -> None:
        for slot in filled:
            if not slot.is_full:
                return
            slot.send(self._stream)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]
