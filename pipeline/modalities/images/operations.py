"""Operations on rendered pixels: names, units of strength, search spaces, and the steps of a view.

A strength is up to six integers: a factor in 1024ths, a threshold, a number of bits, or the six of an
affine map.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core import random
from pipeline.core.random import Draws, Lane
from pipeline.modalities.images import geometry
from pipeline.modalities.images.augmentations import ColorJitter, RandAugment, RandomAffine, TrivialAugment
from pipeline.modalities.images.spec import ViewSpec

FACTOR = 1024  # a factor of 1; also one turn of the colour circle
OPERANDS = 6
Operands = NDArray[np.int32]


class Op(IntEnum):
    """The operation of one step; the comments give its first operand."""

    NOTHING = 0
    BRIGHTNESS = 1  # factor
    CONTRAST = 2  # factor
    SATURATION = 3  # factor; 0 is grey
    HUE = 4  # shift
    SHARPNESS = 5  # factor
    POSTERIZE = 6  # number of bits kept
    SOLARIZE = 7  # threshold
    AUTOCONTRAST = 8
    EQUALIZE = 9
    AFFINE = 10  # a map of six


@dataclass(frozen=True, slots=True)
class Space:
    """A set of operations to draw from, each at every magnitude and with both signs.

    Args:
        ops: (K,) uint8.
        operands: (K, magnitudes, 2, 6) int32; the second sign is the negative one.
    """

    ops: NDArray[np.uint8]
    operands: Operands


def operand(value: NDArray[np.int64] | int, count: int) -> Operands:
    """Return operands (N, 6) with one number per sample, in the first column."""
    result = np.zeros((count, OPERANDS), np.int32)
    result[:, 0] = value
    return result


@cache
def rand_augment_space() -> Space:
    """Return RandAugment's operations over 31 magnitudes, in torchvision's ranges."""
    return _space(31, shear=0.3, shift=150 / 331, degrees=30, factor=0.9, lost_bits=4)


@cache
def wide_space(magnitudes: int) -> Space:
    """Return TrivialAugment's wide space; the largest shift is 1/7 of the side, e.g. 32 of 224 pixels."""
    return _space(magnitudes, shear=0.99, shift=1 / 7, degrees=135, factor=0.99, lost_bits=6)


def _space(
    magnitudes: int, *, shear: float, shift: float, degrees: int, factor: float, lost_bits: int
) -> Space:
    """Tabulate the fourteen operations; magnitude m of M is the share m / (M - 1) of the range."""
    # All arrays below are (M, 2): magnitudes, then the sign, + and -.
    part = np.arange(magnitudes) / (magnitudes - 1)
    signs = np.array([1, -1])
    signed = part[:, None] * signs
    none = np.zeros_like(signed)
    degrees_drawn = np.floor(np.abs(signed) * degrees * geometry.DEGREE + 0.5).astype(np.int64) * signs
    factors = np.floor((1 + signed * factor) * FACTOR + 0.5).astype(np.int64)
    bits = 8 - np.rint(part * lost_bits).astype(np.int64)[:, None] * np.abs(signs)
    last = magnitudes - 1
    # Rounded upwards in integers: the last bit of a float would move some thresholds by one.
    thresholds = -((np.arange(magnitudes) - last) * 255 // last)[:, None] * np.abs(signs)
    table = [
        (Op.NOTHING, _first(none)),
        (Op.AFFINE, _sheared(signed * shear, horizontal=True)),
        (Op.AFFINE, _sheared(signed * shear, horizontal=False)),
        (Op.AFFINE, geometry.matrix(none.astype(np.int64), signed * shift, none)),
        (Op.AFFINE, geometry.matrix(none.astype(np.int64), none, signed * shift)),
        # Torchvision's `rotate` and `affine` turn in opposite directions.
        (Op.AFFINE, geometry.matrix(-degrees_drawn, none, none)),
        (Op.BRIGHTNESS, _first(factors)),
        (Op.SATURATION, _first(factors)),
        (Op.CONTRAST, _first(factors)),
        (Op.SHARPNESS, _first(factors)),
        (Op.POSTERIZE, _first(bits)),
        (Op.SOLARIZE, _first(thresholds)),
        (Op.AUTOCONTRAST, _first(none)),
        (Op.EQUALIZE, _first(none)),
    ]
    return Space(np.array([op for op, _ in table], np.uint8), np.stack([values for _, values in table]))


def _first(values: NDArray[np.float64] | NDArray[np.int64]) -> Operands:
    result = np.zeros((*values.shape, OPERANDS), np.int32)
    result[..., 0] = values
    return result


def _sheared(tangents: NDArray[np.float64], *, horizontal: bool) -> Operands:
    """Shear about the top left corner, as in AutoAugment; the tangent is the magnitude."""
    rows = np.zeros((*tangents.shape, OPERANDS))
    rows[..., 0] = rows[..., 3] = 1
    # Maps are centred: a corner shear adds half a side of the other axis.
    rows[..., 1 if horizontal else 2] = tangents
    rows[..., 4 if horizontal else 5] = tangents / 2
    return geometry.encode(rows)


@dataclass(frozen=True, slots=True)
class Step:
    """One operation, or none, for each of N samples; a view has a sequence of steps.

    Args:
        ops: (N,) uint8, of `Op`.
        operands: (N, 6) int32, the strengths.
        possible: operations that this spec can put into the step, drawn or not. A device runs them all.
    """

    ops: NDArray[np.uint8]
    operands: Operands
    possible: tuple[Op, ...]

    def __getitem__(self, rows: NDArray[Any]) -> Step:
        return Step(self.ops[rows], self.operands[rows], self.possible)


def draw_steps(spec: ViewSpec, draws: Draws) -> tuple[Step, ...]:
    """Draw the steps of one view, in execution order."""
    steps: list[Step] = []
    for name, drawn in _DRAWN.items():
        augmentation = getattr(spec, name)
        if augmentation is not None:
            steps.extend(drawn(augmentation, draws))
    return tuple(steps)


def _rand_augment(augmentation: RandAugment, draws: Draws) -> Iterable[Step]:
    for number in range(augmentation.num_ops):
        words = draws.words(Lane.RAND_AUGMENT + number)
        yield _of_space(rand_augment_space(), words, np.int64(augmentation.magnitude))


def _trivial_augment(augmentation: TrivialAugment, draws: Draws) -> Iterable[Step]:
    words = draws.words(Lane.TRIVIAL_AUGMENT)
    magnitudes = random.between(words[2], 0, augmentation.num_magnitude_bins - 1)
    yield _of_space(wide_space(augmentation.num_magnitude_bins), words, magnitudes)


def _of_space(space: Space, words: random.Words, magnitudes: NDArray[np.int64] | np.int64) -> Step:
    # words (4, N): operation, sign and, for TrivialAugment, magnitude.
    chosen = random.between(words[0], 0, len(space.ops) - 1)
    negative = random.between(words[1], 0, 1)
    possible = tuple(sorted({Op(int(op)) for op in space.ops} - {Op.NOTHING}))
    return Step(space.ops[chosen], space.operands[chosen, magnitudes, negative], possible)


def _random_affine(augmentation: RandomAffine, draws: Draws) -> Iterable[Step]:
    first, second = draws.words(Lane.RANDOM_AFFINE), draws.words(Lane.RANDOM_AFFINE + 1)
    degrees = round(augmentation.degrees * geometry.DEGREE)
    shear_x, shear_y = (round(shear * geometry.DEGREE) for shear in augmentation.shear)
    low, high = (round(scale * FACTOR) for scale in augmentation.scale)
    shifts = [
        random.between(words, -limit, limit) / (1 << geometry.UNIT_BITS)
        for words, limit in zip(second, _in_sides(augmentation.translate), strict=False)
    ]
    maps = geometry.matrix(
        random.between(first[1], -degrees, degrees),
        shifts[0],
        shifts[1],
        random.between(first[2], low, high) / FACTOR,
        random.between(first[3], -shear_x, shear_x),
        random.between(second[2], -shear_y, shear_y),
    )
    happens = random.chance(first[0], augmentation.probability)
    yield Step(np.where(happens, Op.AFFINE, Op.NOTHING).astype(np.uint8), maps, (Op.AFFINE,))


def _in_sides(shares: tuple[float, float]) -> list[int]:
    return [round(share * (1 << geometry.UNIT_BITS)) for share in shares]


def _color_jitter(augmentation: ColorJitter, draws: Draws) -> Iterable[Step]:
    """Yield one step per strength that is set; each sample has a random order of them."""
    ranges = _jitter_ranges(augmentation)
    choice, levels = draws.words(Lane.COLOR_JITTER), draws.words(Lane.COLOR_JITTER + 1)
    # Each strength has a fixed word, so adding one leaves the draws of the others alone.
    drawn = np.stack(
        [random.between(levels[_JITTER.index(op)], low, high) for op, (low, high) in ranges.items()], axis=1
    )
    # (K!, K), then one row per sample: order (N, K).
    # E.g. brightness and hue: orders (0, 1) and (1, 0). With order [[1, 0], [0, 1]], step 0 shifts the hue
    # of sample 0 and changes the brightness of sample 1.
    orders = np.array(list(itertools.permutations(range(len(ranges)))))
    order = orders[random.between(choice[1], 0, len(orders) - 1)]
    happens = random.chance(choice[0], augmentation.probability)
    ops = np.array(list(ranges), np.uint8)
    for place in order.T:
        done = np.where(happens, ops[place], Op.NOTHING).astype(np.uint8)
        level = np.take_along_axis(drawn, place[:, None], 1)[:, 0]
        yield Step(done, operand(level, len(draws)), tuple(ranges))


def _jitter_ranges(augmentation: ColorJitter) -> dict[Op, tuple[int, int]]:
    """Return the lowest and highest level of each strength that is set."""
    ranges = {}
    for op, name in zip(_JITTER, ("brightness", "contrast", "saturation"), strict=False):
        value = getattr(augmentation, name)
        if value:
            ranges[op] = round(max(0.0, 1 - value) * FACTOR), round((1 + value) * FACTOR)
    if augmentation.hue:
        turn = round(augmentation.hue * FACTOR)
        ranges[Op.HUE] = -turn, turn
    return ranges


_JITTER = (Op.BRIGHTNESS, Op.CONTRAST, Op.SATURATION, Op.HUE)


def _now_and_then(
    lane: Lane, op: Op, level: Callable[[Any], int]
) -> Callable[[Any, Draws], Iterable[Step]]:
    """Return a function that draws one operation of fixed strength for a share of the samples."""

    def drawn(augmentation: Any, draws: Draws) -> Iterable[Step]:
        happens = random.chance(draws.words(lane)[0], augmentation.probability)
        ops = np.where(happens, op, Op.NOTHING).astype(np.uint8)
        yield Step(ops, operand(level(augmentation), len(draws)), (op,))

    return drawn


_DRAWN: Mapping[str, Callable[[Any, Draws], Iterable[Step]]] = {
    "rand_augment": _rand_augment,
    "trivial_augment": _trivial_augment,
    "random_affine": _random_affine,
    "color_jitter": _color_jitter,
    "grayscale": _now_and_then(Lane.GRAYSCALE, Op.SATURATION, lambda _: 0),
    "posterize": _now_and_then(Lane.POSTERIZE, Op.POSTERIZE, lambda a: a.bits),
    "solarize": _now_and_then(Lane.SOLARIZE, Op.SOLARIZE, lambda a: a.threshold),
    "sharpness": _now_and_then(Lane.SHARPNESS, Op.SHARPNESS, lambda a: round(a.factor * FACTOR)),
    "autocontrast": _now_and_then(Lane.AUTOCONTRAST, Op.AUTOCONTRAST, lambda _: 0),
    "equalize": _now_and_then(Lane.EQUALIZE, Op.EQUALIZE, lambda _: 0),
}
