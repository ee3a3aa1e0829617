"""What one view does to each sample: a crop box and a flip, drawn from a `ViewSpec`.

Parameters are integers, decided by integer arithmetic and by +, *, / and sqrt of IEEE doubles alone:
exp and log differ in the last bit between machines, these do not. Boxes are in source pixels, so
models of different resolutions can look at the same view.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import rng
from pipeline.views.spec import PadCrop, RandomResizedCrop, ViewSpec

Ints = NDArray[np.int64]

# Lanes of the counter, one range a consumer; the low byte is free for repeated attempts.
_LANE_CROP = 1 << 8
_LANE_FLIP = 2 << 8
LANE_ORDER = 3 << 8

_ATTEMPTS = 10
_RATIO_BITS = 16
_WORD = float(1 << 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewParameters:
    """One view of N samples.

    Args:
        boxes: (N, 4) int32, top, left, height, width in source pixels; may reach outside the image,
            where everything is black.
        flips: (N,) bool, mirrored left to right after the crop.

    """

    boxes: NDArray[np.int32]
    flips: NDArray[np.bool_]

    def __getitem__(self, rows: NDArray[Any]) -> ViewParameters:
        return ViewParameters(boxes=self.boxes[rows], flips=self.flips[rows])


def view_parameters(
    spec: ViewSpec, *, view: int, keys: NDArray[np.uint64], shapes: NDArray[np.int32]
) -> ViewParameters:
    """Draw one view of N samples.

    Args:
        spec: what may be drawn.
        view: index of the view, 0 <= view < 2**32.
        keys: (N,) sample keys.
        shapes: (N, 2) heights and widths of the source images in pixels.

    """
    heights, widths = shapes[:, 0].astype(np.int64), shapes[:, 1].astype(np.int64)
    if spec.random_resized_crop is not None:
        boxes = _resized_boxes(spec.random_resized_crop, spec.seed, view, keys, heights, widths)
    elif spec.pad_crop is not None:
        boxes = _shifted_boxes(spec.pad_crop, spec.seed, view, keys, heights, widths)
    else:
        boxes = _centre_boxes(heights, widths, 1.0)
    return ViewParameters(boxes=boxes.astype(np.int32), flips=_flips(spec, view, keys))


def centre_parameters(shapes: NDArray[np.int32], crop_fraction: float) -> ViewParameters:
    """Return the un-augmented view: the centred square of `crop_fraction` of the short side."""
    heights, widths = shapes[:, 0].astype(np.int64), shapes[:, 1].astype(np.int64)
    boxes = _centre_boxes(heights, widths, crop_fraction)
    return ViewParameters(boxes=boxes.astype(np.int32), flips=np.zeros(len(shapes), np.bool_))


def _centre_boxes(heights: Ints, widths: Ints, fraction: float) -> Ints:
    side = np.maximum(1, _rounded(np.minimum(heights, widths) * fraction))
    return np.stack([(heights - side) // 2, (widths - side) // 2, side, side], axis=1)


def _shifted_boxes(
    crop: PadCrop, seed: int, view: int, keys: rng.Words, heights: Ints, widths: Ints
) -> Ints:
    boxes = _centre_boxes(heights, widths, 1.0)
    words = rng.draw(seed=seed, view=view, keys=keys, lane=_LANE_CROP)
    shifts = rng.below(words[:2], 2 * crop.padding + 1).astype(np.int64) - crop.padding
    boxes[:, :2] += shifts.T
    return boxes


def _resized_boxes(
    crop: RandomResizedCrop, seed: int, view: int, keys: rng.Words, heights: Ints, widths: Ints
) -> Ints:
    boxes = _fallback_boxes(crop, heights, widths)
    open_rows = np.arange(len(keys))
    for attempt in range(_ATTEMPTS):
        words = rng.draw(seed=seed, view=view, keys=keys[open_rows], lane=_LANE_CROP + attempt)
        tall, wide = heights[open_rows], widths[open_rows]
        low, high = crop.scale
        area = (tall * wide) * (low + (high - low) * (words[0] / _WORD))
        ratio = _log_uniform(crop.ratio, words[1])
        box_h, box_w = _rounded(np.sqrt(area / ratio)), _rounded(np.sqrt(area * ratio))
        fits = (box_h > 0) & (box_h <= tall) & (box_w > 0) & (box_w <= wide)
        box_h, box_w = box_h[fits], box_w[fits]
        top = rng.below(words[2, fits], (tall[fits] - box_h + 1).astype(np.uint64))
        left = rng.below(words[3, fits], (wide[fits] - box_w + 1).astype(np.uint64))
        found = np.stack([top.astype(np.int64), left.astype(np.int64), box_h, box_w], axis=1)
        boxes[open_rows[fits]] = found
        open_rows = open_rows[~fits]
        if not len(open_rows):
            break
    return boxes


def _fallback_boxes(crop: RandomResizedCrop, heights: Ints, widths: Ints) -> Ints:
    """The centred box of the nearest allowed aspect ratio, for images where no attempt fits."""
    low, high = crop.ratio
    box_h = np.clip(_rounded(widths / low), 1, heights)
    box_w = np.clip(_rounded(heights * high), 1, widths)
    return np.stack([(heights - box_h) // 2, (widths - box_w) // 2, box_h, box_w], axis=1)


def _log_uniform(bounds: tuple[float, float], words: rng.Words) -> NDArray[np.float64]:
    """Low * (high / low)^u for u on a grid of 2^-16, by repeated square roots instead of exp."""
    low, high = bounds
    result = np.full(words.shape, low)
    factor = np.float64(high / low)
    for bit in range(_RATIO_BITS):
        factor = np.sqrt(factor)
        chosen = (words >> np.uint64(31 - bit)) & np.uint64(1)
        result = np.where(chosen == 1, result * factor, result)
    return result


def _flips(spec: ViewSpec, view: int, keys: rng.Words) -> NDArray[np.bool_]:
    if spec.flip == "none":
        return np.zeros(len(keys), np.bool_)
    drawn_view = view if spec.flip == "random" else 0
    words = rng.draw(seed=spec.seed, view=drawn_view, keys=keys, lane=_LANE_FLIP)
    parity = view & 1 if spec.flip == "alternating" else 0
    flips: NDArray[np.bool_] = (words[0] >> np.uint64(31)) != parity
    return flips


def _rounded(values: NDArray[np.floating[Any]]) -> Ints:
    rounded: Ints = np.floor(values + 0.5).astype(np.int64)
    return rounded
