"""Draw a view: everything that a `ViewSpec` leaves to chance, as integers per sample.

Crop boxes are in source pixels. Boxes on the model's image are in units of its side, so models of
different resolutions share a view.
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
    """Erased boxes.

    Args:
        boxes: (N, 4) int32, top, left, height, width in units of the side; all 0 for none.
        value: grey level of the boxes.
    """

    boxes: NDArray[np.int32]
    value: int

    def __getitem__(self, rows: NDArray[Any]) -> Erasure:
        return Erasure(boxes=self.boxes[rows], value=self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnStep:
    """Calls of the user's augmentation for N samples.

    Args:
        augmentation: the code and its settings.
        happens: (N,) bool, whether it runs on a sample.
        words: (N, 4) uint64, its random integers below 2^32.
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
        boxes: (N, 4) int32, top, left, height, width in source pixels; pixels outside the image are black.
        flips: (N,) bool, mirrored left to right after the crop.
        side: side of all boxes in pixels if they are known to be squares of one size, else None.
        steps: operations on the resized pixels, in execution order.
        own: calls of user code after the steps, or None.
        erasure: erased boxes after that, or None.
        mixture: mixing with partners at the end, or None.

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
        spec: the operations and their ranges.
        view: index of the view, 0 <= view < 2**32.
        keys: (N,) sample keys.
        shapes: (N, 2) heights and widths of the source images in pixels.

    Returns:
        The same values for the same (seed, view, key), for any selection of samples.

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
    # Seed, view and key decide, and each consumer has its lane: no state, order or batch takes part.
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
    # (4, N) -> (N, 4): user code gets the words of one sample. The first lane has decided whether it runs.
    words = np.ascontiguousarray(draws.words(Lane.OWN + 1).T)
    return OwnStep(augmentation=augmentation, happens=happens, words=words)


def centre_parameters(shapes: NDArray[np.int32], crop_fraction: float) -> ViewParameters:
    """Return the un-augmented view: the centred square of `crop_fraction` of the short side."""
    # Geometry computes in int64; the boxes that renderers get are int32.
    heights, widths = shapes[:, 0].astype(np.int64), shapes[:, 1].astype(np.int64)
    boxes = centre_boxes(heights, widths, crop_fraction)
    flipped = np.zeros(len(shapes), np.bool_)
    return ViewParameters(boxes=boxes.astype(np.int32), flips=flipped, side=_side(boxes))


def _side(boxes: NDArray[np.integer[Any]]) -> int | None:
    """Return the common side of boxes (N, 4) if they are squares of one size, else None."""
    # E.g. [[0, 0, 28, 28], [-2, 1, 28, 28]] -> 28. Crops of the model's size are copied, not resized.
    one_size = len(boxes) > 0 and bool((boxes[:, 2:] == boxes[0, 2]).all())
    return int(boxes[0, 2]) if one_size else None
