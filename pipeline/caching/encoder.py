"""The encoder: runs a teacher over the batches of shards and a codec over what it says, on their device.

Nothing waits for the device from batch to batch: while it is at one, of the next shard too, the host takes
in the one before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.caching.content import ShardContent, examine
from pipeline.caching.receiver import Receiver, Sent
from pipeline.caching.spec import DumpSpec
from pipeline.caching.speed import Stopwatch
from pipeline.codecs import Codec, TeacherOutput
from pipeline.core.device import naming_memory
from pipeline.models.teacher import CompiledTeacher, Teacher
from pipeline.store.layout import ShardId

Rows = NDArray[np.int64]
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
