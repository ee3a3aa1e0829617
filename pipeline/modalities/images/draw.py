"""What one view does to each sample: all that is drawn from a `ViewSpec`, as integers.

Boxes of crops are in source pixels and boxes on the model's own image in parts of its side, so models of
different resolutions can look at the same view.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.random import Draws, Lane, Words, chance
from pipeline.modalities.images.augmentations import OwnAugmentation
from pipeline.modalities.images.geometry import centre_boxes, crop_boxes, erased_boxes, flips
from pipeline.modalities.images.mixing import Mixture, draw_mixture
from pipeline.modalities.images.operations import Step, draw_steps
from pipeline.modalities.images.spec import ViewSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """Boxes that are painted over.

    Args:
        boxes: (N, 4) int32, top, left, height, width in units of the side; empty where nothing is.
        value: grey level of the paint.
    """

    boxes: NDArray[np.int32]
    value: int

    def __getitem__(self, rows: NDArray[Any]) -> Erasure:
        return Erasure(boxes=self.boxes[rows], value=self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnStep:
    """What code of the user's own is given for N samples.

    Args:
        augmentation: the code and its settings.
        happens: (N,) bool, whose pixels it is given.
        words: (N, 4) uint64, random integers below 2^32.
    """

    augmentation: OwnAugmentation
    happens: NDArray[np.bool_]
    words: Words

    def __getitem__(self, rows: NDArray[Any]) -> OwnStep:
        return OwnStep(augmentation=self.augmentation, happens=self.happens[rows], words=self.words[rows])


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewParameters:
    """One view of N samples.

    Args:
        boxes: (N, 4) int32, top, left, height, width in source pixels; may reach outside the image,
            where everything is black.
        flips: (N,) bool, mirrored left to right after the crop.
        side: height and width of all boxes in pixels, if they are squares of one size and known to be.
        steps: operations on the resized pixels, in their order.
        own: what code of the user's own does after them, or None.
        erasure: what is painted over then, or None.
        mixture: how samples are mixed with their partners in the end, or None.

    """

    boxes: NDArray[np.int32]
    flips: NDArray[np.bool_]
    side: int | None = None
    steps: tuple[Step, ...] = ()
    own: OwnStep | None = None
    erasure: Erasure | None = None
    mixture: Mixture | None = None

    def __getitem__(self, rows: NDArray[Any]) -> ViewParameters:
        return ViewParameters(
            boxes=self.boxes[rows],
            flips=self.flips[rows],
            side=self.side,
            steps=tuple(step[rows] for step in self.steps),
            own=None if self.own is None else self.own[rows],
            erasure=None if self.erasure is None else self.erasure[rows],
            mixture=None if self.mixture is None else self.mixture[rows],
        )


def view_parameters(
    spec: ViewSpec, *, view: int, keys: NDArray[np.uint64], shapes: NDArray[np.int32]
) -> ViewParameters:
    """Draw one view of N samples.

    Args:
        spec: what may be drawn.
        view: index of the view, 0 <= view < 2**32.
        keys: (N,) sample keys.
        shapes: (N, 2) heights and widths of the source images in pixels.

    Returns:
        The same values for the same (seed, view, key), whichever other samples are asked for.

    Example:
        >>> import numpy as np
        >>> from pipeline import ViewSpec, view_parameters
        >>> from pipeline.modalities.images.augmentations import PadCrop
        >>> keys = np.array([11, 22, 33], np.uint64)
        >>> shapes = np.array([[28, 28]] * 3, np.int32)
        >>> spec = ViewSpec(seed=1, pad_crop=PadCrop(padding=2), flip="random")
        >>> drawn = view_parameters(spec, view=0, keys=keys, shapes=shapes)
        >>> drawn.boxes.tolist()
        [[0, 0, 28, 28], [-2, 1, 28, 28], [-2, -2, 28, 28]]
        >>> drawn.flips.tolist()
        [False, False, True]
    """
    draws = Draws(spec.seed, view, keys)
    boxes, erasing = crop_boxes(spec, draws, shapes).astype(np.int32), spec.random_erasing
    return ViewParameters(
        boxes=boxes,
        flips=flips(spec, draws),
        side=_side(boxes),
        steps=draw_steps(spec, draws),
        own=None if spec.own is None else _own_step(spec.own, draws),
        erasure=None
        if erasing is None
        else Erasure(boxes=erased_boxes(erasing, draws).astype(np.int32), value=erasing.value),
        mixture=draw_mixture(spec, draws),
    )


def _own_step(augmentation: OwnAugmentation, draws: Draws) -> OwnStep:
    happens = chance(draws.words(Lane.OWN)[0], augmentation.probability)
    words = np.ascontiguousarray(draws.words(Lane.OWN + 1).T)
    return OwnStep(augmentation=augmentation, happens=happens, words=words)


def centre_parameters(shapes: NDArray[np.int32], crop_fraction: float) -> ViewParameters:
    """Return the un-augmented view: the centred square of `crop_fraction` of the short side."""
    heights, widths = shapes[:, 0].astype(np.int64), shapes[:, 1].astype(np.int64)
    boxes = centre_boxes(heights, widths, crop_fraction)
    flipped = np.zeros(len(shapes), np.bool_)
    return ViewParameters(boxes=boxes.astype(np.int32), flips=flipped, side=_side(boxes))


def _side(boxes: NDArray[np.integer[Any]]) -> int | None:
    """Return the common side of boxes (N, 4) that are squares of one size."""
    one_size = len(boxes) > 0 and bool((boxes[:, 2:] == boxes[0, 2]).all())
    return int(boxes[0, 2]) if one_size else None
