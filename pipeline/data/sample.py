"""A sample before it is packed: its stable name, its label, and how to decode it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

UNLABELLED = -1
NO_DECODER = "none"


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a source.

    Args:
        name: stable over additions, removals and reorderings of other samples, unique in its source.
        label: index into the source's classes, or -1 for unlabelled.
        load: decodes the image to (H, W, C) uint8; safe to call from any thread.

    """

    name: str
    label: int
    load: Callable[[], NDArray[np.uint8]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A dataset as it is found: what there is to train on and what is held out for the test.

    Args:
        classes: class names in label order.
        channels: 1 or 3, of every decoded image.
        train, test: the samples in the source's own order.
        decoder: what turns their files into pixels, with its version; none for arrays.

    """

    classes: tuple[str, ...]
    channels: int
    train: Sequence[Sample]
    test: Sequence[Sample]
    decoder: str = NO_DECODER
