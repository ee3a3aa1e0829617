"""The encoder: runs a teacher over the batches of shards and a codec over what it says, on their device.

Nothing waits for the device from batch to batch: while it is at one, of the next shard too, the host takes
in the one before.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.codecs import ArraySpec, Codec, TeacherOutput
from pipeline.codecs.fidelity import Fidelity, divergences, same_top1
from pipeline.core.device import naming_memory, to_device
from pipeline.dump.spec import DumpSpec
from pipeline.dump.speed import Stopwatch
from pipeline.models.teacher import CompiledTeacher, Teacher
from pipeline.samples.packed import Images
from pipeline.store.layout import ShardId
from pipeline.store.records import Witness, witness_rows

# Tensors of batches from the device to the host, without making it wait: while it works on one batch, the
# host reads the one before.
#
# A slot is room on the host, pinned where the device is a GPU, with two events: the batch is there to be
# copied, and the copy has arrived. Slots are used again and again; copies go through one stream that
# lives as long as the receiver, and nothing is allocated on it. On a CPU a slot is the batch itself.


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


# The watch over a shard: picks its witnesses from its batches, as the teacher is given them.


Rows = NDArray[np.int64]


class Watch:
    """Picks on the device, and keeps on the host.

    Args:
        places: (W,) where each witness is among the shard's rendered rows.
        device: where batches are.
    """

    def __init__(self, places: Rows, device: torch.device) -> None:
        self._order = np.argsort(places)
        self._places = places[self._order]
        self._there = to_device(self._places, device)
        self._first = 0
        self._kept: list[NDArray[np.uint8]] = []

    def pick(self, pixels: Tensor) -> Tensor:
        """Return the witnesses (w, S, S, channels) among the next batch (B, S, S, channels) uint8."""
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


# The content of a shard: what a teacher says of its rows, encoded, and what is told of each row.


# What is told of a row, and the pixels of a batch's witnesses: under names that no codec uses.
TOLD: Mapping[str, ArraySpec] = {
    "finite": ArraySpec("bool", ()),
    "top1": ArraySpec("int64", ()),
    "same_top1": ArraySpec("bool", ()),
    "kl": ArraySpec("float64", (2,)),
}
PICKED = "picked"


def examine(output: TeacherOutput, codec: Codec) -> dict[str, Tensor]:
    """Encode a batch and look at it, all on its device and without waiting for it.

    Returns:
        The codec's arrays, and of each of the B rows whether it is finite, its first class, whether the
        codec keeps that, and KL(teacher || decoded) in nats (B, 2) float64 at temperatures 1 and 4.
    """
    encoded = codec.encode(output)
    decoded = codec.decode(encoded)
    return {
        **encoded,
        "finite": output.are_finite(),
        "top1": output.logits.argmax(1),
        "same_top1": same_top1(output.logits, decoded),
        "kl": divergences(output.logits, decoded),
    }


class ShardContent:
    """Takes in what was examined, batch by batch; rows come in the order in which they are rendered.

    Args:
        arrays: the codec's.
        order: (n,) which of the shard's rows comes first, second and so on.
        device: where batches are.
    """

    def __init__(self, arrays: Mapping[str, ArraySpec], order: Rows, device: torch.device) -> None:
        self._order, self._count = order, 0
        self._columns = {
            name: np.empty((len(order), *spec.shape), spec.dtype)
            for name, spec in {**arrays, **TOLD}.items()
        }
        self._watch = Watch(np.argsort(order)[witness_rows(len(order))], device)
        self.arrays = {name: self._columns[name] for name in arrays}
        # The first row to come that is not finite.
        self.bad: int | None = None
        # The first row to come that is, and is not when it is decoded.
        self.lost: int | None = None

    def pick(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return the witnesses among the next batch of pixels, to go with what is examined."""
        return {PICKED: self._watch.pick(pixels)}

    def add(self, batch: Mapping[str, NDArray[Any]]) -> None:
        """Take in a batch on the host."""
        finite = batch["finite"]
        rows = self._order[self._count : self._count + len(finite)]
        for name, column in self._columns.items():
            column[rows] = batch[name]
        self._watch.keep(batch[PICKED])
        self._count += len(rows)
        if self.bad is None and not finite.all():
            self.bad = int(rows[finite.argmin()])
        kept = np.isfinite(batch["kl"]).all(1)
        if self.lost is None and not kept.all():
            self.lost = int(rows[kept.argmin()])

    @property
    def is_whole(self) -> bool:
        """Whether all rows have come."""
        return self._count == len(self._order)

    def fidelity(self) -> Fidelity:
        """Return what the codec cost."""
        return Fidelity.of(self._columns["kl"], self._columns["same_top1"])

    def correct(self, labels: NDArray[np.int64]) -> int:
        """Return how many rows have their label (n,) as their first class."""
        return int((self._columns["top1"] == labels).sum())

    def witness(self) -> Witness:
        """Return what some of the rows looked like."""
        return self._watch.witness()


_LESS_MEMORY = "lower batch_size of the dump, use precision: bf16, or render elsewhere: --render cpu"
Begun = deque[tuple[ShardId, ShardContent]]


class Encoder:
    """Encodes shards one after the other.

    Args:
        teacher: on the device.
        codec: of the store.
        spec: what to dump.
        device: where batches are.
    """

    def __init__(self, teacher: Teacher, codec: Codec, spec: DumpSpec, device: torch.device) -> None:
        self._teacher, self._codec, self._spec, self._device = teacher, codec, spec, device
        self._receiver = Receiver(device)
        self.stopwatch = Stopwatch(spec.batch_size)

    @cached_property
    def forward(self) -> Callable[[Tensor], TeacherOutput]:
        """The teacher's forward pass; where it is to be compiled, that is done when it is first needed.

        Raises:
            ModelError: it cannot be compiled here.
        """
        if not self._spec.compile:
            return self._teacher.output
        return CompiledTeacher(self._teacher, self._spec.batch_size, self._device).output

    def encode(
        self, shards: Iterable[tuple[ShardId, Rows, Iterator[Tensor]]]
    ) -> Iterator[tuple[ShardId, ShardContent]]:
        """Yield the content of each shard when it is whole, or as soon as a row is not finite.

        Args:
            shards: each with which of its rows is rendered first, second and so on, and with its batches of
                pixels (B, S, S, channels) uint8 on the device.
        """
        begun: Begun = deque()
        for batch in self._receiver.receive(self._examined(shards, begun)):
            shard, content = begun[0]
            content.add(batch)
            if content.is_whole:
                begun.popleft()
            if content.is_whole or content.bad is not None:
                yield shard, content

    def _examined(
        self, shards: Iterable[tuple[ShardId, Rows, Iterator[Tensor]]], begun: Begun
    ) -> Iterator[Sent]:
        for shard, order, batches in shards:
            content = ShardContent(self._codec.arrays, order, self._device)
            begun.append((shard, content))
            for pixels in batches:
                picked = content.pick(pixels)
                images = self._teacher.card.preprocessing.normalise(pixels)
                self.stopwatch.see(images)
                with naming_memory(self._device, f"a forward pass of {len(images)} images", _LESS_MEMORY):
                    examined = examine(self.forward(images), self._codec)
                yield {**examined, **picked}


# Pixels of a dump are compared with their digests while they are read: each image once, for all its
# views.
#
# A flipped bit in a packed file would otherwise go into logits that look right. Threads compare a block
# from the moment it is rendered, and no shard of it is written before that is done. Encoded images need
# none of this: they are compared whenever they are read.


_BYTES_AT_ONCE = 4 << 20


class PixelChecks:
    """Compares the images of each block once.

    Args:
        splits: the images, by section.
        workers: threads.
    """

    def __init__(self, splits: Mapping[str, Images], workers: int) -> None:
        self._splits = {name: images for name, images in splits.items() if not images.decodes_at_use}
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="pixel-check")
        self._blocks: dict[tuple[str, int], list[Future[None]]] = {}

    def begin(self, shard: ShardId, rows: Rows) -> None:
        """Begin to compare a shard's images (n,), unless those of its block have been."""
        place = shard.section, shard.block
        if shard.section in self._splits and place not in self._blocks:
            images = self._splits[shard.section]
            parts = np.array_split(rows, _parts(images, rows))
            self._blocks[place] = [self._pool.submit(images.require_unchanged, part) for part in parts]

    def finish(self, shard: ShardId) -> None:
        """Wait until a shard's images are compared.

        Raises:
            DataError: one is not what was prepared.
        """
        for part in self._blocks.get((shard.section, shard.block), []):
            part.result()


def _parts(images: Images, rows: Rows) -> int:
    total = int(images.shapes[rows].astype(np.int64).prod(1).sum()) * images.channels
    return 1 + total // _BYTES_AT_ONCE
