"""The content of a shard: what a teacher says of its rows, encoded, and what is told of each row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.caching.watch import Watch
from pipeline.codecs import ArraySpec, Codec, TeacherOutput
from pipeline.codecs.fidelity import Fidelity, divergences, same_top1
from pipeline.store.records import Witness, witness_rows

Rows = NDArray[np.int64]

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
