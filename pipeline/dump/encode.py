"""What a teacher says of a batch becomes rows of a shard: encoded and measured on its device, then copied.

Nothing waits for the device from batch to batch: while it is at one, of the next shard too, the host takes
in the one before.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.codecs import ArraySpec, Codec, TeacherOutput
from pipeline.codecs.fidelity import Fidelity, divergences, same_top1
from pipeline.core.arrays import Rows
from pipeline.core.device import to_device
from pipeline.store.layout import ShardId
from pipeline.store.records import Witness, witness_rows

# By field and name, so that a codec may call its arrays what it likes: on the device, and on the host.
Tensors = dict[tuple[str, str], Tensor]
Received = Mapping[tuple[str, str], NDArray[Any]]
# What is known of each row beside its arrays.
ROW_STATISTICS: Mapping[str, ArraySpec] = {
    "finite": ArraySpec("bool", ()),
    "top1": ArraySpec("int64", ()),
    "same_top1": ArraySpec("bool", ()),
    "kl": ArraySpec("float64", (2,)),
}
_SLOTS = 2


def examine(output: TeacherOutput, codec: Codec) -> Tensors:
    """Encode a batch of B rows and measure what that costs, on its device and without waiting for it.

    Returns:
        ("arrays", name): the codec's, B rows each.
        ("statistics", name): of `ROW_STATISTICS`: whether each row is finite, its first class, whether the
        codec keeps that, and KL(teacher || decoded) in nats (B, 2) at temperatures 1 and 4.
    """
    encoded = codec.encode(output)
    decoded = codec.decode(encoded)
    statistics = {
        "finite": output.are_finite(),
        "top1": output.logits.argmax(1),
        "same_top1": same_top1(output.logits, decoded),
        "kl": divergences(output.logits, decoded),
    }
    return {
        **{("arrays", name): values for name, values in encoded.items()},
        **{("statistics", name): values for name, values in statistics.items()},
    }


class ShardBuffer:
    """The rows of one shard on the host; they come in the order in which they are rendered.

    Args:
        shard: which.
        arrays: the codec's.
        order: (n,) which of the shard's rows comes first, second and so on.
        device: where batches are.
    """

    def __init__(
        self, shard: ShardId, arrays: Mapping[str, ArraySpec], order: Rows, device: torch.device
    ) -> None:
        self.shard, self._order, self._count = shard, order, 0
        self.arrays, self._statistics = _columns(arrays, len(order)), _columns(ROW_STATISTICS, len(order))
        self._checked = _Checked(np.argsort(order)[witness_rows(len(order))], device)
        # The first row to come that is not finite, and the first that is, but not when it is decoded.
        self.bad: int | None = None
        self.lost: int | None = None

    def pick(self, pixels: Tensor) -> Tensor:
        """Return those of the next batch of rendered samples whose checksums are kept."""
        return self._checked.pick(pixels)

    def add(self, batch: Received) -> None:
        """Take in a batch."""
        finite = batch["statistics", "finite"]
        rows = self._order[self._count : self._count + len(finite)]
        for name, column in self.arrays.items():
            column[rows] = batch["arrays", name]
        for name, column in self._statistics.items():
            column[rows] = batch["statistics", name]
        self._checked.keep(batch["pixels", ""])
        self._count += len(rows)
        if self.bad is None and not finite.all():
            self.bad = int(rows[finite.argmin()])
        kept = np.isfinite(batch["statistics", "kl"]).all(1)
        if self.lost is None and not kept.all():
            self.lost = int(rows[kept.argmin()])

    @property
    def is_refused(self) -> bool:
        """Whether a row that has come cannot be kept."""
        return self.bad is not None or self.lost is not None

    @property
    def is_whole(self) -> bool:
        """Whether all rows have come."""
        return self._count == len(self._order)

    def fidelity(self) -> Fidelity:
        """Return what the codec cost."""
        return Fidelity.of(self._statistics["kl"], self._statistics["same_top1"])

    def correct(self, labels: NDArray[np.int64]) -> int:
        """Return how many rows have their label (n,) as their first class."""
        return int((self._statistics["top1"] == labels).sum())

    def witness(self) -> Witness:
        """Return what some of the rows looked like."""
        return self._checked.witness()


class ShardBuffers:
    """The shards of a dump on their way to the host.

    Args:
        codec: of the store.
        device: where batches are.
    """

    def __init__(self, codec: Codec, device: torch.device) -> None:
        self._codec, self._device = codec, device
        self._downloader = Downloader(device)
        self._begun: deque[ShardBuffer] = deque()

    def begin(self, shard: ShardId, order: Rows) -> None:
        """Expect the batches of a shard, whose rows (n,) come in this order."""
        self._begun.append(ShardBuffer(shard, self._codec.arrays, order, self._device))

    def put(self, output: TeacherOutput, pixels: Tensor) -> ShardBuffer | None:
        """Take a batch of the shard that was begun last.

        Args:
            output: of B rows.
            pixels: (B, ...) that the teacher was given.

        Returns:
            A shard that is whole now, or has a row that cannot be kept.
        """
        examined = examine(output, self._codec)
        examined["pixels", ""] = self._begun[-1].pick(pixels)
        return self._take(self._downloader.send(examined))

    def finish(self) -> ShardBuffer | None:
        """Return the last shard, when its last batch has arrived."""
        return self._take(self._downloader.finish())

    def _take(self, batch: Received | None) -> ShardBuffer | None:
        if batch is None:
            return None
        first = self._begun[0]
        first.add(batch)
        if first.is_whole:
            self._begun.popleft()
        return first if first.is_whole or first.is_refused else None


def _columns(specs: Mapping[str, ArraySpec], count: int) -> dict[str, NDArray[Any]]:
    return {name: np.empty((count, *spec.shape), spec.dtype) for name, spec in specs.items()}


class _Checked:
    """Rendered samples whose checksums are kept: picked on the device, kept on the host.

    Args:
        places: (W,) where each is among the shard's rendered rows.
        device: where batches are.
    """

    def __init__(self, places: Rows, device: torch.device) -> None:
        self._order = np.argsort(places)
        self._places = places[self._order]
        self._there = to_device(self._places, device)
        self._first = 0
        self._kept: list[NDArray[Any]] = []

    def pick(self, pixels: Tensor) -> Tensor:
        """Return those (w, ...) among the next batch (B, ...)."""
        ends = self._first, self._first + len(pixels)
        start, stop = np.searchsorted(self._places, ends).tolist()
        chosen = pixels.index_select(0, self._there[start:stop] - self._first)
        self._first += len(pixels)
        return chosen

    def keep(self, chosen: NDArray[Any]) -> None:
        """Take what was picked, in the same order."""
        self._kept.append(chosen.copy())

    def witness(self) -> Witness:
        """Return what was seen, in the order of the shard's rows."""
        return Witness.of(np.concatenate(self._kept)[np.argsort(self._order)])


class Downloader:
    """Batches from the device to the host, without making it wait: the host reads one behind.

    A slot is room on the host, pinned where the device is a GPU, with two events: the batch is there to be
    copied, and the copy has arrived. Slots are used again and again; copies go through one stream that
    lives as long as the downloader, and nothing is allocated on it. On a CPU a slot is the batch itself.

    Args:
        device: where batches are.
    """

    def __init__(self, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]
        self._slots = itertools.cycle([_Slot(on_gpu=on_gpu) for _ in range(_SLOTS)])
        self._on_the_way: deque[_Slot] = deque()

    def send(self, batch: Tensors) -> Received | None:
        """Begin to copy a batch; return the one before, which lasts until the next call.

        Args:
            batch: tensors of any first dimension; dtypes and other dimensions stay the same.
        """
        slot = next(self._slots)
        slot.send(batch, self._stream)
        self._on_the_way.append(slot)
        return self._on_the_way.popleft().read() if len(self._on_the_way) == _SLOTS else None

    def finish(self) -> Received | None:
        """Return the last batch."""
        return self._on_the_way.popleft().read() if self._on_the_way else None


class _Slot:
    """Room for one batch; it grows to the largest that it has held."""

    def __init__(self, *, on_gpu: bool) -> None:
        self._there: Tensors = {}
        self._host: Tensors = {}
        self._ready, self._arrived = (_event() if on_gpu else None for _ in range(2))

    def send(self, batch: Tensors, stream: torch.cuda.Stream | None) -> None:
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

    def _room(self, name: tuple[str, str], values: Tensor) -> Tensor:
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
