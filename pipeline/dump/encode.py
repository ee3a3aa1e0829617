"""What a teacher says of a batch becomes rows of a shard: encoded and measured on its device, then copied.

Nothing waits for the device from batch to batch: while it is at one, of the next shard too, the host takes
in the one before.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.codecs import ArraySpec, Codec, TeacherOutput
from pipeline.codecs.fidelity import Fidelity
from pipeline.core.arrays import Rows
from pipeline.core.device import to_device
from pipeline.store.layout import ShardId
from pipeline.store.records import Witness, witness_rows
from pipeline.tasks.task import Task

_SLOTS = 2
T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFigures(Generic[T]):
    """What is known of B rows beside their arrays: tensors on the device, arrays on the host.

    Args:
        finite: (B,) bool, whether all that the teacher says is.
        answers: (B, ...) as the task gives them, to be compared with labels.
        same: (B,) bool, whether the codec keeps the answer.
        divergences: (B, K) float64, of what the codec keeps.
    """

    finite: T
    answers: T
    same: T
    divergences: T

    def map(self, work: Callable[[str, T], U]) -> RowFigures[U]:
        """Return what some work makes of each field, given its name."""
        return RowFigures(
            finite=work("finite", self.finite),
            answers=work("answers", self.answers),
            same=work("same", self.same),
            divergences=work("divergences", self.divergences),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined(Generic[T]):
    """A batch of B rows on its way to the host.

    Args:
        arrays: the codec's, B rows each; it may call them what it likes.
        rows: what else is known of these.
        checked: (w, ...) those of the rendered samples whose checksums are kept.
    """

    arrays: Mapping[str, T]
    rows: RowFigures[T]
    checked: T

    def map(self, work: Callable[[tuple[str, str], T], U]) -> Examined[U]:
        """Return what some work makes of each tensor, given a name that no other has."""
        return Examined(
            arrays={name: work(("arrays", name), values) for name, values in self.arrays.items()},
            rows=self.rows.map(lambda name, values: work(("rows", name), values)),
            checked=work(("checked", ""), self.checked),
        )


Received = Examined[NDArray[Any]]


def examine(output: TeacherOutput, codec: Codec, task: Task, checked: Tensor) -> Examined[Tensor]:
    """Encode a batch of B rows and measure what that costs, on its device and without waiting for it.

    Args:
        output: of the teacher.
        codec: of the store.
        task: what the output means.
        checked: (w, ...) rendered samples to go along.
    """
    encoded = codec.encode(output, task)
    decoded = codec.decode(encoded)
    rows = RowFigures(
        finite=output.are_finite(),
        answers=task.answers(output.logits),
        same=task.agree(output.logits, decoded),
        divergences=task.diverge(output.logits, decoded),
    )
    return Examined(arrays=encoded, rows=rows, checked=checked)


class ShardBuffer:
    """The rows of one shard on the host; they come in the order in which they are rendered.

    Args:
        shard: which.
        arrays: the codec's.
        order: (n,) which of the shard's rows comes first, second and so on.
        task: what the teacher's outputs mean.
        device: where batches are.
    """

    def __init__(
        self, shard: ShardId, arrays: Mapping[str, ArraySpec], order: Rows, task: Task, device: torch.device
    ) -> None:
        self.shard, self._order, self._task, self._count = shard, order, task, 0
        self.arrays = {
            name: np.empty((len(order), *spec.shape), spec.dtype) for name, spec in arrays.items()
        }
        self._same = np.empty(len(order), np.bool_)
        self._divergences = np.empty((len(order), len(task.measures.divergences)), np.float64)
        self._answers: list[NDArray[Any]] = []
        self._checked = _Checked(np.argsort(order)[witness_rows(len(order))], device)
        # The first row to come that is not finite, and the first that is, but not when it is decoded.
        self.bad: int | None = None
        self.lost: int | None = None

    def pick(self, pixels: Tensor) -> Tensor:
        """Return those of the next batch of rendered samples whose checksums are kept."""
        return self._checked.pick(pixels)

    def add(self, batch: Received) -> None:
        """Take in a batch."""
        found = batch.rows
        rows = self._order[self._count : self._count + len(found.finite)]
        for name, column in self.arrays.items():
            column[rows] = batch.arrays[name]
        self._same[rows], self._divergences[rows] = found.same, found.divergences
        self._answers.append(found.answers.copy())
        self._checked.keep(batch.checked)
        self._count += len(rows)
        if self.bad is None and not found.finite.all():
            self.bad = int(rows[found.finite.argmin()])
        kept = np.isfinite(found.divergences).all(1)
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
        return Fidelity.of(self._task.measures, self._divergences, self._same)

    def tally(self, labels: NDArray[np.int64]) -> tuple[int, int]:
        """Return how many of the rows' labels (n,) are known, and how many of these the teacher names."""
        return self._task.tally(np.concatenate(self._answers)[np.argsort(self._order)], labels)

    def witness(self) -> Witness:
        """Return what some of the rows looked like."""
        return self._checked.witness()


class ShardBuffers:
    """The shards of a dump on their way to the host.

    Args:
        codec: of the store.
        task: what the teacher's outputs mean.
        device: where batches are.
    """

    def __init__(self, codec: Codec, task: Task, device: torch.device) -> None:
        self._codec, self._task, self._device = codec, task, device
        self._downloader = Downloader(device)
        self._begun: deque[ShardBuffer] = deque()

    def begin(self, shard: ShardId, order: Rows) -> None:
        """Expect the batches of a shard, whose rows (n,) come in this order."""
        self._begun.append(ShardBuffer(shard, self._codec.arrays, order, self._task, self._device))

    def put(self, output: TeacherOutput, pixels: Tensor) -> ShardBuffer | None:
        """Take a batch of the shard that was begun last.

        Args:
            output: of B rows.
            pixels: (B, ...) that the teacher was given.

        Returns:
            A shard that is whole now, or has a row that cannot be kept.
        """
        checked = self._begun[-1].pick(pixels)
        return self._take(self._downloader.send(examine(output, self._codec, self._task, checked)))

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

    def send(self, batch: Examined[Tensor]) -> Received | None:
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
        self._batch: Examined[Tensor] | None = None
        self._arriving: Examined[Tensor] | None = None
        self._host: dict[tuple[str, str], Tensor] = {}
        self._ready, self._arrived = (_event() if on_gpu else None for _ in range(2))

    def send(self, batch: Examined[Tensor], stream: torch.cuda.Stream | None) -> None:
        """Begin to copy a batch as soon as the device has made it."""
        # Kept until they have arrived, so that nothing else gets their memory.
        self._batch = self._arriving = batch.map(lambda _, values: values.contiguous())
        if stream is None or self._ready is None or self._arrived is None:
            return
        self._ready.record(torch.cuda.current_stream(stream.device))
        with torch.cuda.stream(stream):
            stream.wait_event(self._ready)
            self._arriving = self._batch.map(self._copy)
            self._arrived.record(stream)

    def _copy(self, name: tuple[str, str], values: Tensor) -> Tensor:
        """Begin to copy a tensor into its room."""
        room = self._host.get(name)
        if room is None or len(room) < len(values):
            room = self._host[name] = torch.empty_like(values, device="cpu", pin_memory=True)
        return room[: len(values)].copy_(values, non_blocking=True)

    def read(self) -> Received:
        """Wait until the batch has arrived, and return it."""
        if self._arriving is None:
            raise RuntimeError("nothing was sent")
        if self._arrived is not None:
            self._arrived.synchronize()
        received = self._arriving.map(lambda _, values: values.numpy())
        self._batch = self._arriving = None
        return received


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]
