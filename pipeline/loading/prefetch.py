"""The staged path: threads render into reused slots, which are copied to the device while it works.

A slot is a host buffer, pinned for a GPU, and a device buffer, with two events: the copy has arrived, and
the device has finished with it. Slots are reused. Copies go through one stream that lives as long as the
queue, and nothing is allocated on that stream. On a CPU a slot is only its host buffer.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import pairwise

import torch
from torch import Tensor

from pipeline.core.arrays import Rows
from pipeline.core.device import long_lived_stream

# Batches ready beyond those being rendered; and bytes per thread, below which a batch is not split.
_AHEAD = 1
_BYTES_A_PART = 2 << 20

# Samples (n, ...) on the CPU -> length, or slice, of each axis without their padding.
Used = Callable[[Tensor], tuple[int | slice, ...]]
Render = Callable[[int, Rows], Tensor]  # (view, rows (n,)) -> pixels (n, S, S, C) uint8 on the CPU


class _Slot:
    """Buffers for one batch; they grow to the largest batch so far.

    Args:
        shape: shape of a rendered sample, e.g. (S, S, C) for images.
        dtype: dtype of its values.
        device: target device.
        used: shape of a batch without its padding; None if nothing is padded.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, used: Used | None = None
    ) -> None:
        self._shape, self._dtype, self._device, self._find_used = shape, dtype, device, used
        self._on_gpu = device.type == "cuda"
        self._make_room(0)
        # The life of a slot on a GPU; each event stops the next user of a buffer from overtaking.
        #   fill  host waits for `_arrived`, then threads write the host buffer
        #   send  the copy stream waits for `_done`, copies host to device, records `_arrived`
        #   take  the model's stream waits for `_arrived`; the model reads the device buffer
        #   give_back  the model's stream records `_done`; the next `fill` may follow at once
        self._arrived, self._done = (_event() if self._on_gpu else None for _ in range(2))
        self._count, self._sent = 0, False
        self._filling: list[Future[None]] = []
        self._used: tuple[int | slice, ...] = ()

    def _make_room(self, count: int) -> None:
        # Slots created during evaluation also serve training, and autograd refuses inference tensors.
        with torch.inference_mode(False):
            self._host = torch.empty((count, *self._shape), dtype=self._dtype, pin_memory=self._on_gpu)
            self._there = torch.empty_like(self._host, device=self._device) if self._on_gpu else self._host

    def fill(self, pool: ThreadPoolExecutor, parts: int, render: Render, view: int, rows: Rows) -> None:
        """Start to render a batch, in parts."""
        if self._arrived is not None:
            # The previous copy must have left the host buffer; usually it did long ago, so nobody waits.
            self._arrived.synchronize()
        if len(rows) > len(self._host):
            self._make_room(len(rows))
        self._count, self._sent = len(rows), False
        # E.g. 10 rows in 3 parts: ends 0, 3, 6, 10.
        ends = sorted({len(rows) * part // parts for part in range(parts + 1)})
        self._filling = [
            pool.submit(self._render, render, view, rows, start, stop) for start, stop in pairwise(ends)
        ]

    def _render(self, render: Render, view: int, rows: Rows, start: int, stop: int) -> None:
        self._host[start:stop] = render(view, rows[start:stop])

    @property
    def is_full(self) -> bool:
        """Whether the batch is rendered without an error; `send` raises errors in order."""
        return all(part.done() and part.exception() is None for part in self._filling)

    def send(self, stream: torch.cuda.Stream | None) -> None:
        """Wait for the rendering and start the copy, unless it was started."""
        if self._sent:
            return
        for part in self._filling:
            part.result()
        # Found on the host, which has the samples anyway: the device is never asked for a length.
        whole = self._host[: self._count]
        self._used = tuple(whole.shape) if self._find_used is None else self._find_used(whole)
        if stream is not None and self._arrived is not None and self._done is not None:
            with torch.cuda.stream(stream):
                stream.wait_event(self._done)
                self._there[: self._count].copy_(self._host[: self._count], non_blocking=True)
                self._arrived.record(stream)
        self._sent = True

    def take(self) -> Tensor:
        """Return the used part of the device buffer; the device, not the host, waits for the copy."""
        if self._arrived is not None:
            torch.cuda.current_stream(self._device).wait_event(self._arrived)
        return self._there[tuple(one if isinstance(one, slice) else slice(one) for one in self._used)]

    def give_back(self) -> None:
        """Mark the slot as free once the device finishes the work queued so far."""
        if self._done is not None:
            self._done.record(torch.cuda.current_stream(self._device))

    def drop(self) -> None:
        """Cancel the rendering of this batch."""
        for part in self._filling:
            part.cancel()
        # Parts that already run cannot be cancelled, and they still write into the buffer.
        wait(self._filling)


class PrefetchQueue:
    """Reused slots that threads fill ahead of the consumer.

    Args:
        render: function that renders rows of a view.
        shape: shape of a rendered sample, e.g. (S, S, C) for images.
        device: target device.
        workers: number of rendering threads.
        dtype: dtype of a rendered sample's values.
        used: shape of a batch without its padding; None if nothing is padded.
    """

    def __init__(
        self,
        render: Render,
        shape: tuple[int, ...],
        device: torch.device,
        *,
        workers: int,
        dtype: torch.dtype = torch.uint8,
        used: Used | None = None,
    ) -> None:
        self._dtype, self._used = dtype, used
        self._render, self._shape, self._device, self._workers = render, shape, device, workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="render")
        self._stream = long_lived_stream(device) if device.type == "cuda" else None
        self._idle: list[_Slot] = []

    def stream(self, requests: Iterable[tuple[int, Rows]]) -> Generator[Tensor, None, None]:
        """Yield rendered samples (n, *shape) per (view, rows), each valid until the next is requested."""
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
                    # The consumer asks for the next batch: its work on this one is queued by now.
                    slot.give_back()
                    self._idle.append(slot)
                self._fill(filled, upcoming)
        finally:
            # The consumer stopped early, or rendering failed: keep the slots for the next call.
            for slot in filled:
                slot.drop()
                self._idle.append(slot)

    def _fill(self, filled: deque[_Slot], upcoming: Iterator[tuple[int, Rows]]) -> None:
        """Start to render batches, up to the limit."""
        # Example: 8 threads, batches of 128.
        #   32x32x3:   0.4 MB, 1 part: one thread per batch, up to 10 slots in use
        #   224x224x3: 19 MB, 8 parts: all threads on one batch, up to 3 slots in use
        parts = 1
        while len(filled) <= _AHEAD + self._workers // parts:
            request = next(upcoming, None)
            if request is None:
                return
            view, rows = request
            parts = self._parts(len(rows))
            slot = self._idle.pop() if self._idle else self._new_slot()
            filled.append(slot)
            slot.fill(self._pool, parts, self._render, view, rows)

    def _new_slot(self) -> _Slot:
        return _Slot(self._shape, self._dtype, self._device, self._used)

    def _parts(self, count: int) -> int:
        """Return the number of parts of a batch; large batches are rendered by all threads together."""
        size_bytes = count * math.prod(self._shape) * self._dtype.itemsize
        return max(1, min(self._workers, size_bytes // _BYTES_A_PART))

    def _send_ahead(self, filled: Iterable[_Slot]) -> None:
        for slot in filled:
            if not slot.is_full:
                return
            slot.send(self._stream)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]
