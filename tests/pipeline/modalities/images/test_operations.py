"""Steps of a view: what is drawn has torchvision's distribution, and nobody's draws depend on another's."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace
from functools import cache

import numpy as np
import pytest
import torch
from torchvision import transforms as v1
from torchvision.transforms import v2

from pipeline.core.random import Draws
from pipeline.modalities.images.augmentations import (
    ColorJitter,
    Posterize,
    RandAugment,
    RandomAffine,
    RandomErasing,
    Sharpness,
    Solarize,
    TrivialAugment,
)
from pipeline.modalities.images.draw import ViewParameters, view_parameters
from pipeline.modalities.images.operations import FACTOR, Op, Step, draw_steps, rand_augment_space
from pipeline.modalities.images.spec import AUGMENTATIONS, ViewSpec
from tests.pipeline.modalities.images.distributions import COUNT, KEYS, correlated, differ, far_from, uneven
from tests.pipeline.modalities.images.examples import ALTERNATIVES, EVERYTHING, EXAMPLES

SHAPES = np.tile(np.array([[40, 30]], np.int32), (COUNT, 1))
STEPS = {
    name: example
    for name, example in EXAMPLES.items()
    if draw_steps(ViewSpec(**{name: example}), Draws(0, 0, KEYS))
}
NOW_AND_THEN = {
    "grayscale": Op.SATURATION,
    "posterize": Op.POSTERIZE,
    "solarize": Op.SOLARIZE,
    "sharpness": Op.SHARPNESS,
    "autocontrast": Op.AUTOCONTRAST,
    "equalize": Op.EQUALIZE,
}


def _drawn(view: int = 0, seed: int = 2, **augmentations) -> ViewParameters:
    spec = ViewSpec(seed=seed, **augmentations)
    return view_parameters(spec, view=view, keys=KEYS, shapes=SHAPES)


def _steps(view: int = 0, seed: int = 2, **augmentations) -> tuple[Step, ...]:
    return _drawn(view, seed, **augmentations).steps


def _same(one: ViewParameters, other: ViewParameters, name: str) -> bool:
    """Whether two views have the same draws of one augmentation; where it has steps, and no others."""
    if name in ("pad_crop", "random_resized_crop"):
        return np.array_equal(one.boxes, other.boxes)
    if name == "random_erasing":
        return np.array_equal(one.erasure.boxes, other.erasure.boxes)
    if name in ("mixup", "cutmix"):
        pairs = ((one.mixture.levels, other.mixture.levels), (one.mixture.boxes, other.mixture.boxes))
        return all(np.array_equal(a, b) for a, b in pairs)
    return len(one.steps) == len(other.steps) and all(
        np.array_equal(a.ops, b.ops) and np.array_equal(a.operands, b.operands)
        for a, b in zip(one.steps, other.steps, strict=True)
    )


# Who draws what.


@pytest.mark.parametrize("example", STEPS.values(), ids=STEPS)
def test_steps_have_their_documented_shapes_and_types(example):
    for step in _steps(**{example.name: example}):
        assert (step.ops.shape, step.ops.dtype) == ((COUNT,), np.uint8)
        assert (step.operands.shape, step.operands.dtype) == ((COUNT, 6), np.int32)
        assert {Op(int(op)) for op in step.ops} - {Op.NOTHING} <= set(step.possible)


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_a_subset_in_another_order_gets_what_it_has_in_the_whole(example):
    spec = ViewSpec(seed=2, **{example.name: example})
    rows = np.random.default_rng(2).permutation(COUNT)[:300]
    whole = view_parameters(spec, view=3, keys=KEYS, shapes=SHAPES)
    part = view_parameters(spec, view=3, keys=KEYS[rows], shapes=SHAPES[rows])
    assert _same(part, whole[rows], example.name)


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_views_and_seeds_differ(example):
    augmentation = {example.name: example}
    one = _drawn(**augmentation)
    assert _same(one, _drawn(**augmentation), example.name)
    for other in (_drawn(view=1, **augmentation), _drawn(seed=3, **augmentation)):
        assert not _same(one, other, example.name)


def _compatible(one: str, other: str) -> bool:
    # Mixup and cutmix share a draw: a sample gets one of them. Their tests are with mixing.
    return (
        ALTERNATIVES.get(one) != other
        and ALTERNATIVES.get(other) != one
        and {one, other} != {"mixup", "cutmix"}
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [pair for pair in itertools.combinations(EXAMPLES, 2) if _compatible(*pair)],
)
def test_an_augmentation_leaves_anothers_draws_as_they_are(one, other):
    both = _drawn(**{name: EXAMPLES[name] for name in (one, other)}, flip="random")
    first, second = (_drawn(**{name: EXAMPLES[name]}) for name in (one, other))
    parts = np.cumsum([0, *(len(alone.steps) for alone in (first, second))])
    assert len(both.steps) == parts[-1]
    assert np.array_equal(both.flips, _drawn(flip="random").flips)
    assert _same(replace(both, steps=both.steps[: parts[1]]), first, one)
    assert _same(replace(both, steps=both.steps[parts[1] :]), second, other)


def test_steps_are_in_the_order_of_the_spec():
    drawn = iter(_steps(**EVERYTHING))
    for name in (field.name for field in fields(ViewSpec) if field.name in EVERYTHING):
        for alone in _steps(**{name: EVERYTHING[name]}):
            step = next(drawn)
            assert step.possible == alone.possible
            assert np.array_equal(step.ops, alone.ops)
            assert np.array_equal(step.operands, alone.operands)
    assert next(drawn, None) is None


def test_no_two_augmentations_happen_together_more_often_than_by_chance():
    happens = {
        name: _steps(**{name: AUGMENTATIONS[name](probability=0.5)})[0].ops > 0 for name in NOW_AND_THEN
    }
    happens["random_affine"] = _steps(random_affine=RandomAffine(degrees=5, probability=0.5))[0].ops > 0
    happens["color_jitter"] = _steps(color_jitter=ColorJitter(hue=0.1, probability=0.5))[0].ops > 0
    happens["random_erasing"] = _drawn(random_erasing=RandomErasing()).erasure.boxes[:, 2] > 0
    for (one, a), (other, b) in itertools.combinations(happens.items(), 2):
        assert not correlated(a, b), (one, other)


# Now and then, at one strength.


@pytest.mark.parametrize("probability", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("name", NOW_AND_THEN)
def test_what_happens_now_and_then_happens_as_often_as_it_should(name, probability):
    (step,) = _steps(**{name: AUGMENTATIONS[name](probability=probability)})
    assert set(step.ops) <= {Op.NOTHING, NOW_AND_THEN[name]}
    assert not far_from(step.ops != Op.NOTHING, probability)


@pytest.mark.parametrize(
    ("example", "level"),
    [
        (Posterize(bits=0), 0),
        (Posterize(bits=3), 3),
        (Solarize(threshold=200), 200),
        (Sharpness(factor=0.3), round(0.3 * FACTOR)),
        (Sharpness(factor=9), 9 * FACTOR),
        (EXAMPLES["grayscale"], 0),
    ],
)
def test_one_strength_is_that_of_the_spec(example, level):
    (step,) = _steps(**{example.name: example})
    assert (step.operands == [level, 0, 0, 0, 0, 0]).all()


# Colour jitter.

STRENGTHS = {
    Op.BRIGHTNESS: "brightness",
    Op.CONTRAST: "contrast",
    Op.SATURATION: "saturation",
    Op.HUE: "hue",
}


def _levels(steps: tuple[Step, ...], op: Op) -> np.ndarray:
    """The first operand of an operation, of the samples that are jittered at all."""
    ops, levels = (
        np.stack(parts) for parts in zip(*((s.ops, s.operands[:, 0]) for s in steps), strict=True)
    )
    happens = ops[0] != Op.NOTHING
    places = ops[:, happens] == op
    assert (places.sum(0) == 1).all()
    return levels[:, happens].T[places.T] / FACTOR


def _jitters(**strengths) -> list[dict]:
    jitter = v2.ColorJitter(**strengths)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [jitter.make_params([]) for _ in range(COUNT)]


@pytest.mark.parametrize(
    "strengths",
    [
        {"brightness": 0.4, "contrast": 0.3, "saturation": 0.8, "hue": 0.2},
        {"brightness": 1.5, "contrast": 8.0, "saturation": 1.0, "hue": 0.5},
        {"saturation": 0.5},
        {"contrast": 0.2, "hue": 0.1},
    ],
)
@pytest.mark.parametrize("probability", [0.5, 1.0])
def test_jittered_strengths_are_distributed_as_torchvisions_and_independent(strengths, probability):
    steps = _steps(color_jitter=ColorJitter(**strengths, probability=probability))
    theirs = _jitters(**strengths)
    assert len(steps) == len(strengths)
    ours = {name: _levels(steps, op) for op, name in STRENGTHS.items() if name in strengths}
    for name, levels in ours.items():
        assert not differ(levels, np.array([drawn[f"{name}_factor"] for drawn in theirs])), name
    for one, other in itertools.combinations(ours.values(), 2):
        assert not correlated(one, other)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("probability", [0.5, 1.0])
def test_every_order_of_the_strengths_is_as_likely_as_torchvisions(count, probability):
    chosen = list(STRENGTHS)[:count]
    strengths = dict.fromkeys([STRENGTHS[op] for op in chosen], 0.1)
    steps = _steps(color_jitter=ColorJitter(**strengths, probability=probability))
    ours = [tuple(ops) for ops in zip(*(step.ops for step in steps), strict=True) if ops[0] != Op.NOTHING]
    theirs = [
        tuple(chosen[i] for i in drawn["fn_idx"].tolist() if i < count) for drawn in _jitters(hue=0.1)
    ]
    orders = list(itertools.permutations(chosen))
    for drawn in (ours, theirs):
        assert not uneven(
            np.array([orders.index(order) for order in drawn]), [1 / len(orders)] * len(orders)
        )


@pytest.mark.parametrize("left_out", STRENGTHS.values())
def test_a_strength_does_not_depend_on_which_others_there_are(left_out):
    strengths = {"brightness": 0.4, "contrast": 0.3, "saturation": 0.8, "hue": 0.2}
    every = _steps(color_jitter=ColorJitter(**strengths))
    some = _steps(
        color_jitter=ColorJitter(**{name: s for name, s in strengths.items() if name != left_out})
    )
    for op, name in STRENGTHS.items():
        if name != left_out:
            assert np.array_equal(_levels(every, op), _levels(some, op))


def test_jitter_happens_to_all_of_a_samples_steps_or_to_none():
    steps = _steps(color_jitter=ColorJitter(brightness=0.1, hue=0.1, probability=0.3))
    first, second = (step.ops != Op.NOTHING for step in steps)
    assert np.array_equal(first, second)
    assert not far_from(first, 0.3)


# Affine.


def _affine_of(maps: np.ndarray, axis: str = "shear_x") -> dict[str, np.ndarray]:
    """What maps (N, 6) with a shear of one axis were made of."""
    source = maps.astype(float) / 2**24
    inverse = np.linalg.inv(source[:, :4].reshape(-1, 2, 2))
    right, down = -np.einsum("nij,nj->ni", inverse, source[:, 4:]).T
    scale = np.sqrt(np.linalg.det(inverse))
    (a, b), (c, d) = np.moveaxis(inverse, 0, 2) / scale
    # The column that the shear leaves as the rotation has it.
    angle = np.arctan2(c, a) if axis == "shear_x" else np.arctan2(-b, d)
    cos, sin = np.cos(angle), np.sin(angle)
    tangent = -(cos * b + sin * d) if axis == "shear_x" else sin * a - cos * c
    shear = np.rad2deg(np.arctan(tangent))
    return {"angle": np.rad2deg(angle), "scale": scale, axis: shear, "right": right, "down": down}


def _torchvision_affines(augmentation: RandomAffine, side: int) -> np.ndarray:
    """Angle, right, down, scale, shear of x, shear of y (6, N); shifts in sides."""
    (x, y), degrees = augmentation.shear, augmentation.degrees
    ranges = [-degrees, degrees], list(augmentation.translate), list(augmentation.scale), [-x, x, -y, y]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [v1.RandomAffine.get_params(*ranges, [side, side]) for _ in range(COUNT)]
    return np.array(
        [(angle, tx / side, ty / side, scale, *shear) for angle, (tx, ty), scale, shear in drawn]
    ).T


@pytest.mark.parametrize("axis", ["shear_x", "shear_y"])
@pytest.mark.parametrize("probability", [0.5, 1.0])
def test_affine_parameters_are_distributed_as_torchvisions_and_independent(axis, probability):
    augmentation = RandomAffine(
        degrees=70,
        translate=(0.3, 0.1),
        scale=(0.5, 2),
        shear=(25, 0) if axis == "shear_x" else (0, 25),
        probability=probability,
    )
    (step,) = _steps(random_affine=augmentation)
    ours = _affine_of(step.operands[step.ops == Op.AFFINE], axis)
    names = ("angle", "right", "down", "scale", "shear_x", "shear_y")
    theirs = dict(zip(names, _torchvision_affines(augmentation, 1_000_000), strict=True))
    for name, values in ours.items():
        assert not differ(values, theirs[name]), name
    for (one, a), (other, b) in itertools.combinations(ours.items(), 2):
        assert not correlated(a, b), (one, other)


def test_shears_of_the_two_axes_are_independent():
    maps = _steps(random_affine=RandomAffine(shear=(20, 40)))[0].operands
    assert not correlated(maps[:, 1], maps[:, 2])


@pytest.mark.parametrize("column", range(6))
def test_affine_maps_with_both_shears_are_distributed_as_torchvisions(column):
    augmentation = RandomAffine(degrees=180, translate=(0.2, 0.4), scale=(0.8, 1.25), shear=(20, 40))
    ours = _steps(random_affine=augmentation)[0].operands[:, column] / 2**24
    rows = _torchvision_affines(augmentation, 1_000_000).T
    theirs = [
        v1.functional._get_inverse_affine_matrix([0, 0], angle, [x, y], scale, shear)
        for angle, x, y, scale, *shear in rows.tolist()
    ]
    assert not differ(ours, np.array(theirs)[:, [0, 1, 3, 4, 2, 5][column]])


@pytest.mark.parametrize(
    ("settings", "still"),
    [
        ({"degrees": 30}, ("scale", "shear_x", "right", "down")),
        ({"translate": (0.1, 0.0)}, ("angle", "scale", "shear_x", "down")),
        ({"scale": (0.5, 1.0)}, ("angle", "shear_x", "right", "down")),
        ({"shear": (10, 0)}, ("angle", "scale", "right", "down")),
    ],
)
def test_what_an_affine_spec_leaves_out_stays(settings, still):
    drawn = _affine_of(_steps(random_affine=RandomAffine(**settings))[0].operands)
    for name, values in drawn.items():
        assert (np.ptp(values) < 1e-4) == (name in still), name


@pytest.mark.parametrize("probability", [0.2, 1.0])
def test_affine_maps_happen_as_often_as_they_should(probability):
    (step,) = _steps(random_affine=RandomAffine(degrees=10, probability=probability))
    assert not far_from(step.ops == Op.AFFINE, probability)


# RandAugment and TrivialAugment.


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


@pytest.mark.parametrize("op", sorted(set(SPACE_OPS.values()) - {Op.NOTHING, Op.AUTOCONTRAST, Op.EQUALIZE}))
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
