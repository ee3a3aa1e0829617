"""The steps of a view: which operation is done to which sample, one after the other, and how strongly.

A step holds one operation a sample, or none. A spec's steps are drawn here and carried out by
`pipeline/rendering/`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core import random
from pipeline.core.random import Draws, Lane
from pipeline.views import affine
from pipeline.views.augmentations import ColorJitter, RandAugment, RandomAffine, TrivialAugment
from pipeline.views.operations import (
    FACTOR,
    Op,
    Operands,
    Space,
    operand,
    rand_augment_space,
    wide_space,
)
from pipeline.views.spec import ViewSpec


@dataclass(frozen=True, slots=True)
class Step:
    """One operation on each of N samples.

    Args:
        ops: (N,) uint8, of `Op`.
        operands: (N, 6) int32, its strength.
        possible: the operations that a step of this spec may hold, whatever was drawn.
    """

    ops: NDArray[np.uint8]
    operands: Operands
    possible: tuple[Op, ...]

    def __getitem__(self, rows: NDArray[Any]) -> Step:
        return Step(self.ops[rows], self.operands[rows], self.possible)


def draw_steps(spec: ViewSpec, draws: Draws) -> tuple[Step, ...]:
    """Draw the steps of one view, in the order in which they are carried out."""
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
    chosen = random.between(words[0], 0, len(space.ops) - 1)
    negative = random.between(words[1], 0, 1)
    possible = tuple(sorted({Op(int(op)) for op in space.ops} - {Op.NOTHING}))
    return Step(space.ops[chosen], space.operands[chosen, magnitudes, negative], possible)


def _random_affine(augmentation: RandomAffine, draws: Draws) -> Iterable[Step]:
    first, second = draws.words(Lane.RANDOM_AFFINE), draws.words(Lane.RANDOM_AFFINE + 1)
    degrees = round(augmentation.degrees * affine.DEGREE)
    shear_x, shear_y = (round(shear * affine.DEGREE) for shear in augmentation.shear)
    low, high = (round(scale * FACTOR) for scale in augmentation.scale)
    shifts = [
        random.between(words, -limit, limit) / (1 << affine.UNIT_BITS)
        for words, limit in zip(second, _in_sides(augmentation.translate), strict=False)
    ]
    maps = affine.matrix(
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
    return [round(share * (1 << affine.UNIT_BITS)) for share in shares]


def _color_jitter(augmentation: ColorJitter, draws: Draws) -> Iterable[Step]:
    """As many steps as there are strengths, each sample with an order of its own."""
    ranges = _jitter_ranges(augmentation)
    choice, levels = draws.words(Lane.COLOR_JITTER), draws.words(Lane.COLOR_JITTER + 1)
    # Each strength has a word of its own, whichever others there are.
    drawn = np.stack(
        [random.between(levels[_JITTER.index(op)], low, high) for op, (low, high) in ranges.items()], axis=1
    )
    orders = np.array(list(itertools.permutations(range(len(ranges)))))
    order = orders[random.between(choice[1], 0, len(orders) - 1)]
    happens = random.chance(choice[0], augmentation.probability)
    ops = np.array(list(ranges), np.uint8)
    for place in order.T:
        done = np.where(happens, ops[place], Op.NOTHING).astype(np.uint8)
        level = np.take_along_axis(drawn, place[:, None], 1)[:, 0]
        yield Step(done, operand(level, len(draws)), tuple(ranges))


def _jitter_ranges(augmentation: ColorJitter) -> dict[Op, tuple[int, int]]:
    """Return the smallest and largest level of those that are set."""
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
    """Return what draws an operation of one strength for some of the samples."""

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
