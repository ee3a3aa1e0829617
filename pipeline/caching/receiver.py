"""Tensors of batches from the device to the host, without making it wait: while it works on one batch, the
host reads the one before.

A slot is room on the host, pinned where the device is a GPU, with two events: the batch is there to be
copied, and the copy has arrived. Slots are used again and again; copies go through one stream that lives as
long as the receiver, and nothing is allocated on it. On a CPU a slot is the batch itself.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

_SLOTS = 2

Sent = Mapping[str, Tensor]
Received = dict[str, NDArray[Any]]


class Receiver:
    """Slots that take batches in turn.

    Args:
        device: where batches are.
    """

    def __init__(self, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]
        self._slots = [_Slot(on_gpu=on_gpu) for _ in range(_SLOTS)]

    def receive(self, batches: Iterable[Sent]) -> Iterator[Received]:
        """Yield each batch on the host, when the next one has been given to the device.

        Args:
            batches: tensors by name, of any first dimension; dtypes and other dimensions stay the same.

        Returns:
            The arrays of each batch, in order; they last until the next ones are asked for.
        """
        on_the_way: deque[_Slot] = deque()
        for batch, slot in zip(batches, itertools.cycle(self._slots)):
            slot.send(batch, self._stream)
            on_the_way.append(slot)
            if len(on_the_way) == len(self._slots):
                yield on_the_way.popleft().read()
        for slot in on_the_way:
            yield slot.read()


class _Slot:
    """Room for one batch; it grows to the largest that it has held."""

    def __init__(self, *, on_gpu: bool) -> None:
        self._there: Sent = {}
        self._host: dict[str, Tensor] = {}
        self._ready, self._arrived = (_event() if on_gpu else None for _ in range(2))

    def send(self, batch: Sent, stream: torch.cuda.Stream | None) -> None:
        """Begin to copy a batch as soon as the device has made it."""
        # Kept until they have arrived, so that nothing else gets their memory.
        self._there = {name: values.contiguous() for name, values in batch.items()}
        if stream is None or self._ready is None or self._arrived is None:
            return
        self._ready.record(torch.cuda.current_stream(stream.device))
        with torch.cuda.stream(stream):
            stream.wait_event(self._ready)
            for name, values in self._there.items():
                self._room(name, values).copy_(values, non_blocking=True)
            self._arrived.record(stream)

    def _room(self, name: str, values: Tensor) -> Tensor:
        room = self._host.get(name)
        if room is None or len(room) < len(values):
            room = self._host[name] = torch.empty_like(values, device="cpu", pin_memory=True)
        return room[: len(values)]

    def read(self) -> Received:
        """Wait until the batch has arrived, and return it."""
        if self._arrived is None:
            there, self._there = self._there, {}
            return {name: values.numpy() for name, values in there.items()}
        self._arrived.synchronize()
        counts = {name: len(values) for name, values in self._there.items()}
        self._there = {}
        return {name: self._host[name][:count].numpy() for name, count in counts.items()}


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]
