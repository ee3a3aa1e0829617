"""A sample before it is prepared: its stable name, its label, and how to decode it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from pipeline.data.left_out import LeftOut

UNLABELLED = -1
NO_DECODER = "none"


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a source.

    Args:
        name: stable over additions, removals and reorderings of other samples, unique in its source.
        label: index into the source's classes, or -1 for unlabelled.
        load: decodes the image to (H, W, C) uint8; safe to call from any thread.
        file: what it is read from: while this file stays the same, so does the sample. None where there is
            no telling.

    """

    name: str
    label: int
    load: Callable[[], NDArray[np.uint8]]
    file: str | None = None


class Samples(Sequence[Sample]):
    """Samples that are made when they are asked for: a million are no million objects.

    Args:
        make: from a position to its sample.
        rows: (N,) the positions, in order.
    """

    def __init__(self, make: Callable[[int], Sample], rows: NDArray[np.int64]) -> None:
        self._make, self._rows = make, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, row: int) -> Sample: ...

    @overload
    def __getitem__(self, row: slice) -> Samples: ...

    def __getitem__(self, row: int | slice) -> Sample | Samples:
        if isinstance(row, slice):
            return Samples(self._make, self._rows[row])
        return self._make(int(self._rows[row]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A dataset as it is found: what there is to train on and what is held out for the test.

    Args:
        classes: class names in label order.
        channels: 1 or 3, of every decoded image.
        train, test: the samples in the source's own order.
        validation: the samples that choose epochs; None where they are to be drawn from `train`.
        decoder: what turns their files into pixels, with its version; none for arrays.
        root: where each sample is an image file, the folder that its name is relative to.
        left_out: what the source holds beside these samples.

    """

    classes: tuple[str, ...]
    channels: int
    train: Sequence[Sample]
    test: Sequence[Sample]
    decoder: str = NO_DECODER
    root: Path | None = None
    validation: Sequence[Sample] | None = None
    left_out: LeftOut = field(default_factory=LeftOut)
