"""RandAugment and TrivialAugment: operations, signs and magnitudes are drawn as torchvision draws them."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from pipeline.core.random import Draws
from pipeline.modalities.images.augmentations import RandAugment, TrivialAugment
from pipeline.modalities.images.operations import FACTOR, Op, Step, draw_steps, rand_augment_space
from pipeline.modalities.images.spec import ViewSpec
from tests.pipeline.modalities.images.distributions import COUNT, KEYS, differ, far_from, uneven


def _steps(view: int = 0, **augmentation) -> tuple[Step, ...]:
    return draw_steps(ViewSpec(seed=2, **augmentation), Draws(2, view, KEYS))


def _recorded(transform, count: int = COUNT) -> list[tuple[str, float]]:
    """Which operations torchvision carries out, and how strongly, one after the other."""
    done: list[tuple[str, float]] = []

    def note(image, transform_id, magnitude, **_):
        done.append((transform_id, magnitude))
        return image

    transform._apply_image_or_video_transform = note
    image = torch.zeros(1, 224, 224, dtype=torch.uint8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(count):
            transform(image)
    return done


NAMES = tuple(v2.RandAugment._AUGMENTATION_SPACE)
SPACE_OPS = dict(zip(NAMES, (Op(int(op)) for op in rand_augment_space().ops), strict=True))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"rand_augment": RandAugment(num_ops=1)}, v2.RandAugment(num_ops=1)),
        ({"trivial_augment": TrivialAugment()}, v2.TrivialAugmentWide()),
    ],
    ids=["rand_augment", "trivial_augment"],
)
def test_every_operation_is_as_likely_as_torchvisions(ours, theirs):
    shares = np.bincount(rand_augment_space().ops) / 14
    (step,) = _steps(**ours)
    assert not uneven(step.ops, shares)
    assert not uneven(np.array([SPACE_OPS[name] for name, _ in _recorded(theirs)]), shares)


def test_each_of_randaugments_operations_and_signs_is_as_likely_as_any():
    """Told apart by their operands: nine operations have a sign, the other five are the same with both."""
    space, magnitude = rand_augment_space(), 9
    both = np.repeat(space.ops, 2)[:, None], space.operands[:, magnitude].reshape(28, 6)
    kinds, drawn_twice = np.unique(np.hstack(both), axis=0, return_counts=True)
    assert len(kinds) == 2 * 9 + 5
    (step,) = _steps(rand_augment=RandAugment(num_ops=1, magnitude=magnitude))
    drawn = np.hstack([step.ops[:, None], step.operands])
    found = (drawn[:, None] == kinds).all(2)
    assert (found.sum(1) == 1).all()
    assert not uneven(found.argmax(1), drawn_twice / 28)


def test_operations_of_one_sample_are_independent():
    first, second = _steps(rand_augment=RandAugment(num_ops=2))
    shares = np.bincount(rand_augment_space().ops, minlength=11) / 14
    pairs = first.ops.astype(int) * 11 + second.ops
    assert not uneven(pairs, np.outer(shares, shares).ravel())


@pytest.mark.parametrize("count", [1, 2, 8])
def test_randaugment_has_as_many_steps_as_operations(count):
    steps = _steps(rand_augment=RandAugment(num_ops=count))
    assert len(steps) == count
    assert len({step.ops.tobytes() for step in steps}) == count


@pytest.mark.parametrize("magnitude", [0, 9, 30])
def test_randaugment_has_one_magnitude(magnitude):
    (step,) = _steps(rand_augment=RandAugment(num_ops=1, magnitude=magnitude))
    factors = {round(FACTOR * (1 + sign * 0.9 * magnitude / 30)) for sign in (1, -1)}
    for op in (Op.BRIGHTNESS, Op.CONTRAST, Op.SATURATION, Op.SHARPNESS):
        assert set(step.operands[step.ops == op, 0]) == factors


def _as_operands(name: str, magnitude: float) -> tuple[float, ...]:
    """Torchvision's magnitude in our first operand's unit, or as a map of 6 in sides of 224 pixels."""
    cos, sin = np.cos(np.deg2rad(magnitude)), np.sin(np.deg2rad(magnitude))
    maps = {
        "ShearX": (1, magnitude, 0, 1, magnitude / 2, 0),
        "ShearY": (1, 0, magnitude, 1, 0, magnitude / 2),
        "TranslateX": (1, 0, 0, 1, -magnitude / 224, 0),
        "TranslateY": (1, 0, 0, 1, 0, -magnitude / 224),
        "Rotate": (cos, -sin, sin, cos, 0, 0),
    }
    if name in maps:
        return maps[name]
    value = {Op.POSTERIZE: magnitude, Op.SOLARIZE: np.ceil(255 * magnitude - 1e-4)}
    return (value.get(SPACE_OPS[name], np.rint(FACTOR * (1 + magnitude))), 0, 0, 0, 0, 0)


@cache
def _trivial_augments() -> dict[Op, np.ndarray]:
    """Torchvision's operands of many draws, for each operation."""
    done = _recorded(v2.TrivialAugmentWide(), 5 * COUNT)
    return {
        op: np.array([_as_operands(*drawn) for drawn in done if SPACE_OPS[drawn[0]] == op])
        for op in set(SPACE_OPS.values())
    }


@pytest.mark.parametrize(
    "op", [op for op in Op if op not in (Op.NOTHING, Op.HUE, Op.AUTOCONTRAST, Op.EQUALIZE)]
)
def test_strengths_and_signs_of_trivialaugment_are_distributed_as_torchvisions(op):
    steps = [_steps(view, trivial_augment=TrivialAugment())[0] for view in range(5)]
    ours = np.concatenate([step.operands[step.ops == op] for step in steps])
    ours = ours / (2**24 if op is Op.AFFINE else 1)
    for column in range(6 if op is Op.AFFINE else 1):
        one, other = (np.round(operands[:, column], 3) for operands in (ours, _trivial_augments()[op]))
        assert not differ(one, other), column
        # Of so many draws, some have the largest magnitude.
        assert one.min() == pytest.approx(other.min(), abs=0.001)
        assert one.max() == pytest.approx(other.max(), abs=0.001)


@pytest.mark.parametrize("bins", [2, 5, 31])
def test_trivialaugment_draws_every_bin_as_often_as_any(bins):
    (step,) = _steps(trivial_augment=TrivialAugment(num_magnitude_bins=bins))
    factors = step.operands[step.ops == Op.BRIGHTNESS, 0] / FACTOR - 1
    drawn = np.rint(np.abs(factors) / 0.99 * (bins - 1))
    assert not uneven(drawn, [1 / bins] * bins)
    assert not far_from(factors[drawn > 0] < 0, 0.5)
