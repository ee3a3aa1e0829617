"""Boxes and affine maps in integers, against torchvision's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchvision import transforms as v1
from torchvision.transforms.functional import _get_inverse_affine_matrix

from pipeline.core.random import Draws
from pipeline.modalities.images import geometry
from pipeline.modalities.images.augmentations import RandomErasing
from pipeline.modalities.images.geometry import UNIT, erased_boxes
from tests.pipeline.modalities.images.distributions import COUNT, KEYS, differ, far_from

MAPS = 3000
ONE = 1 << geometry.UNIT_BITS
ANGLES = np.arange(-3 * 360 * geometry.DEGREE, 3 * 360 * geometry.DEGREE + 1)
STILL = np.zeros(1)


def _radians(angles: np.ndarray) -> np.ndarray:
    return np.deg2rad(angles / geometry.DEGREE)


def test_the_table_holds_the_sines_of_a_quarter_in_2_to_the_minus_30():
    angles = np.arange(90 * 16 + 1)
    assert geometry.SINES.shape == (90 * 16 + 1,)
    assert np.abs(geometry.SINES - np.sin(_radians(angles)) * 2**30).max() <= 0.5 + 1e-6
    assert [geometry.SINES[0], geometry.SINES[30 * geometry.DEGREE], geometry.SINES[-1]] == [
        0,
        2**29,
        2**30,
    ]
    assert (np.diff(geometry.SINES) > 0).all()


def test_no_entry_of_the_table_is_near_a_rounding_boundary():
    """As the module says: none nearer than 100 times the last bit of a double below 1."""
    last_bit = 2.0**-53
    sines = [math.sin(math.radians(step / geometry.DEGREE)) for step in range(90 * geometry.DEGREE + 1)]
    assert min(abs(sine * 2**30 % 1 - 0.5) for sine in sines) > 100 * last_bit * 2**30


@pytest.mark.parametrize(
    ("ours", "exact"), [(geometry.sine, np.sin), (geometry.cosine, np.cos)], ids=["sine", "cosine"]
)
def test_sine_and_cosine_are_those_of_any_angle(ours, exact):
    assert np.abs(ours(ANGLES) - exact(_radians(ANGLES))).max() < 2.0**-31 + 1e-13


def test_sine_is_odd_and_periodic_to_the_last_bit():
    turn = 360 * geometry.DEGREE
    assert np.array_equal(geometry.sine(-ANGLES), -geometry.sine(ANGLES))
    assert np.array_equal(geometry.sine(ANGLES + turn), geometry.sine(ANGLES))
    assert np.array_equal(geometry.sine(ANGLES + turn // 2), -geometry.sine(ANGLES))


@pytest.mark.parametrize(
    ("quarters", "rows"), [(0, (1, 0, 0, 1)), (1, (0, 1, -1, 0)), (2, (-1, 0, 0, -1)), (-1, (0, -1, 1, 0))]
)
def test_quarter_turns_are_whole_numbers(quarters, rows):
    drawn = geometry.matrix(np.array([quarters * 90 * geometry.DEGREE]), STILL, STILL)
    assert drawn.dtype == np.int32
    assert drawn.tolist() == [[*(row * ONE for row in rows), 0, 0]]


def test_a_shift_moves_the_source_the_other_way():
    drawn = geometry.matrix(np.array([0]), np.array([0.25]), np.array([-0.5]))
    assert drawn.tolist() == [[ONE, 0, 0, ONE, -ONE // 4, ONE // 2]]


def _random(scale: tuple[float, float], degrees: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shear = round(degrees * geometry.DEGREE)
    return {
        "angle": rng.integers(-180 * geometry.DEGREE, 180 * geometry.DEGREE + 1, MAPS),
        "shift_x": rng.uniform(-1, 1, MAPS),
        "shift_y": rng.uniform(-1, 1, MAPS),
        "scale": rng.uniform(*scale, MAPS),
        "shear_x": rng.integers(-shear, shear + 1, MAPS),
        "shear_y": rng.integers(-shear, shear + 1, MAPS),
    }


def _torchvisions(drawn: dict[str, np.ndarray]) -> np.ndarray:
    """The same maps (N, 6) by torchvision in doubles, for an image of side 1."""
    degrees = [drawn[name] / geometry.DEGREE for name in ("angle", "shear_x", "shear_y")]
    rows = zip(*degrees, drawn["shift_x"], drawn["shift_y"], drawn["scale"], strict=True)
    matrices = [
        _get_inverse_affine_matrix([0.0, 0.0], angle, [x, y], scale, [shear_x, shear_y])
        for angle, shear_x, shear_y, x, y, scale in rows
    ]
    return np.array(matrices)[:, [0, 1, 3, 4, 2, 5]]


def test_a_map_is_torchvisions_inverse_within_a_unit():
    drawn = _random(scale=(0.5, 2), degrees=30)
    assert np.abs(geometry.matrix(**drawn) - _torchvisions(drawn) * ONE).max() < 0.6


@pytest.mark.parametrize("scale", [(0.1, 0.1), (0.1, 10)])
def test_a_map_at_the_limits_of_shear_and_scale_is_torchvisions_inverse_within_two_units(scale):
    """An entry of the table is off by a 128th of a unit; shears make 10 times that, 1 / scale more."""
    drawn = _random(scale=scale, degrees=60)
    errors = np.abs(geometry.matrix(**drawn) - _torchvisions(drawn) * ONE)
    assert (errors <= 0.5 + 10 / 128 / drawn["scale"][:, None]).all()


def test_maps_of_every_allowed_strength_fit_their_integers():
    """The strongest that `RandomAffine` takes: 60 degrees of shear, a tenth of the size, a whole side."""
    angles = np.arange(-180 * geometry.DEGREE, 180 * geometry.DEGREE + 1)
    ones, shear = np.ones(len(angles)), 60 * geometry.DEGREE
    for x in (-1, 1):
        for y in (-1, 1):
            drawn = {"angle": angles, "shift_x": x * ones, "shift_y": y * ones, "scale": 0.1 * ones}
            drawn |= {
                "shear_x": np.full(len(angles), x * shear),
                "shear_y": np.full(len(angles), y * shear),
            }
            assert np.abs(geometry.matrix(**drawn) / ONE - _torchvisions(drawn)).max() < 1e-6


def test_encoding_takes_the_nearest_integer():
    values = np.array([0.0, 1.0, -1.0, 0.4 / ONE, 0.6 / ONE, -0.6 / ONE, 100.0])
    assert geometry.encode(values).tolist() == [0, ONE, -ONE, 0, 1, -1, 100 * ONE]


# Erased boxes


def _erased(**settings) -> np.ndarray:
    return erased_boxes(RandomErasing(**settings), Draws(2, 0, KEYS)) / UNIT


def _torchvision_erased(scale, ratio) -> np.ndarray:
    """Boxes (N, 4) in sides of an image of `UNIT` pixels; where none fits, torchvision gives the whole."""
    image = torch.empty(1, 1, 1).expand(1, UNIT, UNIT)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [v1.RandomErasing.get_params(image, scale, ratio, [0.0])[:4] for _ in range(COUNT)]
    boxes = np.array(drawn) / UNIT
    boxes[(boxes[:, 2:] == 1).all(1)] = 0
    return boxes


@pytest.mark.parametrize(
    ("scale", "ratio"), [((0.02, 0.33), (0.3, 3.3)), ((0.3, 0.9), (0.2, 8.0)), ((0.9, 1.0), (3.0, 9.0))]
)
def test_erased_boxes_are_distributed_as_torchvisions(scale, ratio):
    ours, theirs = _erased(probability=1.0, scale=scale, ratio=ratio), _torchvision_erased(scale, ratio)
    for figure in (_top, _left, _area, _aspect):
        assert not differ(figure(ours), figure(theirs)), figure.__name__


@pytest.mark.parametrize("probability", [0.25, 0.75])
def test_erased_boxes_do_not_depend_on_how_seldom_they_are(probability):
    ours, theirs = _erased(probability=probability), _torchvision_erased((0.02, 0.33), (0.3, 3.3))
    for figure in (_top, _left, _area, _aspect):
        assert not differ(figure(ours[ours.any(1)]), figure(theirs)), figure.__name__


def _top(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, 0]


def _left(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, 1]


def _area(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, 2] * boxes[:, 3]


def _aspect(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, 2] / np.maximum(boxes[:, 3], 1e-9)


def test_erased_boxes_lie_inside_and_within_the_spec():
    boxes = _erased(probability=1.0, scale=(0.1, 0.2), ratio=(0.5, 3.0))
    assert boxes.min() >= 0
    assert (boxes[:, :2] + boxes[:, 2:]).max() <= 1
    area, aspect = _area(boxes), _aspect(boxes)
    assert 0.0999 < area.min() < area.max() < 0.2001
    assert 0.4999 < aspect.min() < aspect.max() < 3.0001


@pytest.mark.parametrize("probability", [0.1, 0.5, 1.0])
def test_erasing_happens_as_often_as_it_should(probability):
    boxes = _erased(probability=probability)
    assert not far_from(boxes.any(1), probability)
    assert np.array_equal(boxes.any(1), (boxes[:, 2:] > 0).all(1))
