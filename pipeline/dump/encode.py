"""Turn batches of teacher outputs into rows of a shard: encode and measure on the device, then copy.

    put(output (B, C), pixels (B, ...))
      -> pick        pixels (w, ...) of the samples with render checksums        device
      -> examine     codec arrays (B, ...) and RowFigures (B,) ... (B, K)        device
      -> Downloader  the same as numpy arrays, one batch late                    host
      -> ShardBuffer rows at their places in arrays (n, ...) of the shard        host

The host never waits for the batch that it just sent. While the device computes batch i, the host stores
batch i - 1, which may belong to the shard before.
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
from pipeline.store.records import RenderChecksums, checksum_rows
from pipeline.tasks.task import Task

# Two slots: one batch on its way, one being read. Each costs one batch of pinned memory.
_SLOTS = 2
# T is a Tensor on the device and an ndarray on the host, so both ends share one set of field names.
T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFigures(Generic[T]):
    """Measurements of B rows besides their arrays: tensors on the device, ndarrays on the host.

    Args:
        finite: (B,) bool, whether all outputs of the row are finite.
        answers: (B, ...) the task's answers, e.g. top-1 classes, to compare with labels.
        same: (B,) bool, whether the codec preserves the answer.
        divergences: (B, K) float64, between original and decoded outputs.
    """

    finite: T
    answers: T
    same: T
    divergences: T

    def map(self, work: Callable[[str, T], U]) -> RowFigures[U]:
        """Apply a function of (name, values) to each field."""
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
        arrays: the codec's arrays, B rows each, under any names.
        rows: measurements of these rows.
        checked: (w, ...) rendered samples with stored checksums; w may be 0.
    """

    arrays: Mapping[str, T]
    rows: RowFigures[T]
    checked: T

    def map(self, work: Callable[[tuple[str, str], T], U]) -> Examined[U]:
        """Apply a function of (unique name, values) to each tensor."""
        # A pair is unique even if a codec names an array like a field of `rows`, e.g. "same".
        return Examined(
            arrays={name: work(("arrays", name), values) for name, values in self.arrays.items()},
            rows=self.rows.map(lambda name, values: work(("rows", name), values)),
            checked=work(("checked", ""), self.checked),
        )


Received = Examined[NDArray[Any]]


def examine(output: TeacherOutput, codec: Codec, task: Task, checked: Tensor) -> Examined[Tensor]:
    """Encode a batch of B rows and measure the codec's error, on the device and without synchronising.

    Args:
        output: the teacher's outputs for the batch.
        codec: the store's codec.
        task: the meaning of outputs.
        checked: (w, ...) rendered samples that travel with the batch.
    """
    encoded = codec.encode(output, task)
    # Decoded from the encoded rows, so that the error is that of the stored values.
    decoded = codec.decode(encoded)
    rows = RowFigures(
        finite=output.are_finite(),
        answers=task.answers(output.logits),
        same=task.agree(output.logits, decoded),
        divergences=task.diverge(output.logits, decoded),
    )
    return Examined(arrays=encoded, rows=rows, checked=checked)


class ShardBuffer:
    """The n rows of one shard on the host, filled in rendering order.

    Rendering order differs from row order if views mix samples. The four of a group, which mix among
    themselves, are then side by side, and a batch of whole groups contains all partners. Batches are slices
    of `order`. A shard of 6 rows in batches of 4:

        order    [4, 1, 5, 0 | 2, 3]       row of the shard, by rendering position
        batch 0  arrays[[4, 1, 5, 0]] = the batch's 4 rows
        batch 1  arrays[[2, 3]]       = the batch's 2 rows
        argsort(order) = [3, 1, 4, 5, 0, 2], the rendering position of each row

    Args:
        shard: the shard's section, view and block.
        arrays: the codec's arrays, by name.
        order: (n,) rows of the shard in rendering order.
        task: the meaning of the teacher's outputs.
        device: the device of batches.
    """

    def __init__(
        self, shard: ShardId, arrays: Mapping[str, ArraySpec], order: Rows, task: Task, device: torch.device
    ) -> None:
        self.shard, self._order, self._task, self._count = shard, order, task, 0
        # (n, ...) each, allocated once per shard; `add` scatters batches into them.
        self.arrays = {
            name: np.empty((len(order), *spec.shape), spec.dtype) for name, spec in arrays.items()
        }
        self._same = np.empty(len(order), np.bool_)
        self._divergences = np.empty((len(order), len(task.measures.divergences)), np.float64)
        self._answers: list[NDArray[Any]] = []
        # Rendering positions of the rows with checksums: argsort inverts `order`.
        self._checked = _Checked(np.argsort(order)[checksum_rows(len(order))], device)
        # The first row with outputs that are not finite, and the first whose codec error is not finite.
        self.bad: int | None = None
        self.lost: int | None = None

    def pick(self, pixels: Tensor) -> Tensor:
        """Return the samples (w, ...) of the next batch (B, ...) whose checksums are stored."""
        return self._checked.pick(pixels)

    def add(self, batch: Received) -> None:
        """Store a batch of B rows at their places in the shard."""
        found = batch.rows
        rows = self._order[self._count : self._count + len(found.finite)]
        for name, column in self.arrays.items():
            column[rows] = batch.arrays[name]
        self._same[rows], self._divergences[rows] = found.same, found.divergences
        # Copied: the batch is a view of a slot's pinned memory, which the next batch overwrites.
        self._answers.append(found.answers.copy())
        self._checked.keep(batch.checked)
        self._count += len(rows)
        if self.bad is None and not found.finite.all():
            # argmin of booleans is the position of the first False.
            self.bad = int(rows[found.finite.argmin()])
        kept = np.isfinite(found.divergences).all(1)
        if self.lost is None and not kept.all():
            self.lost = int(rows[kept.argmin()])

    @property
    def is_refused(self) -> bool:
        """Whether a received row cannot be stored."""
        return self.bad is not None or self.lost is not None

    @property
    def is_whole(self) -> bool:
        """Whether all rows were received."""
        return self._count == len(self._order)

    def fidelity(self) -> Fidelity:
        """Return the codec's error over the shard."""
        return Fidelity.of(self._task.measures, self._divergences, self._same)

    def tally(self, labels: NDArray[Any]) -> tuple[int, int | None]:
        """Return the number of known labels among (n, ...), and of those that the teacher predicts."""
        # Answers are in rendering order; argsort brings them into row order, that of the labels.
        return self._task.tally(np.concatenate(self._answers)[np.argsort(self._order)], labels)

    def checksums(self) -> RenderChecksums:
        """Return the render checksums of the shard."""
        return self._checked.checksums()


class ShardBuffers:
    """The shards that are being filled: at most two, since batches arrive one late.

    Args:
        codec: the store's codec.
        task: the meaning of the teacher's outputs.
        device: the device of batches.
    """

    def __init__(self, codec: Codec, task: Task, device: torch.device) -> None:
        self._codec, self._task, self._device = codec, task, device
        self._downloader = Downloader(device)
        self._begun: deque[ShardBuffer] = deque()

    def begin(self, shard: ShardId, order: Rows) -> None:
        """Expect the batches of a shard, with its rows (n,) in rendering order."""
        self._begun.append(ShardBuffer(shard, self._codec.arrays, order, self._task, self._device))

    def put(self, output: TeacherOutput, pixels: Tensor) -> ShardBuffer | None:
        """Send a batch of the newest shard to the host, and store the batch before it.

        Args:
            output: the teacher's outputs, B rows.
            pixels: (B, ...) the rendered samples that the teacher saw.

        Returns:
            A shard that became whole, or that has a row that cannot be stored.
        """
        # Picked for the newest shard; `_take` below may still fill the one before.
        checked = self._begun[-1].pick(pixels)
        return self._take(self._downloader.send(examine(output, self._codec, self._task, checked)))

    def finish(self) -> ShardBuffer | None:
        """Wait for the last batch, and return the last shard."""
        return self._take(self._downloader.finish())

    def _take(self, batch: Received | None) -> ShardBuffer | None:
        if batch is None:
            return None
        # Batches arrive in order, so the oldest shard owns this one until it is whole.
        first = self._begun[0]
        first.add(batch)
        if first.is_whole:
            self._begun.popleft()
        return first if first.is_whole or first.is_refused else None


class _Checked:
    """Rendered samples with stored checksums: picked on the device, collected on the host.

    Only w of B samples are copied, so checksums cost no bandwidth. For places [7, 2, 5] and batches of 4:

        sorted places  [2, 5, 7], from order [1, 2, 0]
        batch 0 (0-3)  picks 2          -> row 2 of the batch
        batch 1 (4-7)  picks 5 and 7    -> rows 1 and 3 of the batch
        checksums      argsort(order) = [2, 0, 1] restores 7, 2, 5

    Args:
        places: (W,) rendering positions within the shard, in the order of its rows.
        device: the device of batches.
    """

    def __init__(self, places: Rows, device: torch.device) -> None:
        self._order = np.argsort(places)
        self._places = places[self._order]
        # Copied once per shard: `pick` then slices on the device and never synchronises.
        self._there = to_device(self._places, device)
        self._first = 0
        self._kept: list[NDArray[Any]] = []

    def pick(self, pixels: Tensor) -> Tensor:
        """Return the picked samples (w, ...) of the next batch (B, ...)."""
        # Binary search on the host copy gives plain integers, so no size comes from the device.
        ends = self._first, self._first + len(pixels)
        start, stop = np.searchsorted(self._places, ends).tolist()
        chosen = pixels.index_select(0, self._there[start:stop] - self._first)
        self._first += len(pixels)
        return chosen

    def keep(self, chosen: NDArray[Any]) -> None:
        """Collect picked samples (w, ...), in the order of `pick`; copied, as slots are reused."""
        self._kept.append(chosen.copy())

    def checksums(self) -> RenderChecksums:
        """Return the render checksums, in the order of the shard's rows."""
        return RenderChecksums.of(np.concatenate(self._kept)[np.argsort(self._order)])


class Downloader:
    """Copy batches from the device to the host without stalling the device: the host reads one late.

    A slot is host memory (pinned if the device is a GPU) with two events: "batch ready" and "copy arrived".
    Slots are reused. All copies use one stream that lives as long as the downloader; nothing is allocated
    on that stream. On a CPU, a slot is the batch itself.

        send(0) -> None    send(1) -> 0    send(2) -> 1    finish() -> 2

    Args:
        device: the device of batches.
    """

    def __init__(self, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]
        self._slots = itertools.cycle([_Slot(on_gpu=on_gpu) for _ in range(_SLOTS)])
        self._on_the_way: deque[_Slot] = deque()

    def send(self, batch: Examined[Tensor]) -> Received | None:
        """Start to copy a batch, and return the one before; that one is valid until the next call.

        Args:
            batch: tensors of any first dimension; dtypes and other dimensions are equal in all batches.
        """
        slot = next(self._slots)
        slot.send(batch, self._stream)
        self._on_the_way.append(slot)
        return self._on_the_way.popleft().read() if len(self._on_the_way) == _SLOTS else None

    def finish(self) -> Received | None:
        """Wait for the last batch and return it."""
        return self._on_the_way.popleft().read() if self._on_the_way else None


class _Slot:
    """Host memory for one batch; it grows to the largest batch so far."""

    def __init__(self, *, on_gpu: bool) -> None:
        self._batch: Examined[Tensor] | None = None
        self._arriving: Examined[Tensor] | None = None
        self._host: dict[tuple[str, str], Tensor] = {}
        self._ready, self._arrived = (_event() if on_gpu else None for _ in range(2))

    def send(self, batch: Examined[Tensor], stream: torch.cuda.Stream | None) -> None:
        """Start to copy a batch as soon as the device has computed it."""
        # Referenced until the copy has arrived: the allocator, which knows only the stream of the kernels,
        # would otherwise give this memory to the next batch. Cost: two encoded batches on the device.
        self._batch = self._arriving = batch.map(lambda _, values: values.contiguous())
        if stream is None or self._ready is None or self._arrived is None:
            return
        # The copy stream waits on the device for the kernels; the host continues at once.
        self._ready.record(torch.cuda.current_stream(stream.device))
        with torch.cuda.stream(stream):
            stream.wait_event(self._ready)
            self._arriving = self._batch.map(self._copy)
            self._arrived.record(stream)

    def _copy(self, name: tuple[str, str], values: Tensor) -> Tensor:
        """Start to copy a tensor (B, ...) into its host memory, and return the view (B, ...) of it."""
        # Pinning is slow, so memory is replaced only for a longer batch, not for a short last one.
        room = self._host.get(name)
        if room is None or len(room) < len(values):
            room = self._host[name] = torch.empty_like(values, device="cpu", pin_memory=True)
        return room[: len(values)].copy_(values, non_blocking=True)

    def read(self) -> Received:
        """Wait for the copy, and return the batch as arrays that share the slot's memory."""
        if self._arriving is None:
            raise RuntimeError("nothing was sent")
        if self._arrived is not None:
            self._arrived.synchronize()
        received = self._arriving.map(lambda _, values: values.numpy())
        self._batch = self._arriving = None
        return received


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]
