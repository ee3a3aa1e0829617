"""What a view does to each sample: ranges, distributions, independence of the other samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop as TorchvisionCrop

from pipeline.modalities.images.augmentations import PadCrop, RandomResizedCrop
from pipeline.modalities.images.draw import ViewParameters, centre_parameters, view_parameters
from pipeline.modalities.images.spec import ViewSpec

COUNT = 4000
KEYS = np.random.default_rng(0).integers(0, 2**64, COUNT, np.uint64)
# A two-sample Kolmogorov-Smirnov distance above this has a chance of 0.1 % under equality.
KS_LIMIT = 1.95 * np.sqrt(2 / COUNT)

SPECS = {
    "plain": ViewSpec(seed=1),
    "pad_crop": ViewSpec(seed=1, pad_crop=PadCrop(padding=3), flip="random"),
    "resized": ViewSpec(seed=1, random_resized_crop=RandomResizedCrop(), flip="alternating"),
    "narrow": ViewSpec(seed=1, random_resized_crop=RandomResizedCrop(scale=(0.9, 1.0), ratio=(2.0, 4.0))),
}


def _shapes(height: int, width: int, count: int = COUNT) -> np.ndarray:
    return np.tile(np.array([[height, width]], np.int32), (count, 1))


def _mixed_shapes() -> np.ndarray:
    return np.random.default_rng(1).integers(1, 400, (COUNT, 2)).astype(np.int32)


def _draw(spec: ViewSpec, shapes: np.ndarray, view: int = 0) -> ViewParameters:
    return view_parameters(spec, view=view, keys=KEYS[: len(shapes)], shapes=shapes)


def _ks_distance(a: np.ndarray, b: np.ndarray) -> float:
    grid = np.sort(np.concatenate([a, b]))
    shares = [np.searchsorted(np.sort(x), grid, "right") / len(x) for x in (a, b)]
    return float(np.abs(shares[0] - shares[1]).max())


def _torchvision_boxes(height: int, width: int, scale: tuple, ratio: tuple) -> np.ndarray:
    image = torch.empty(3, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [TorchvisionCrop.get_params(image, list(scale), list(ratio)) for _ in range(COUNT)]
    return np.array(drawn)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_subset_in_another_order_gets_the_parameters_that_it_has_in_the_whole(spec):
    shapes = _mixed_shapes()
    rows = np.random.default_rng(2).permutation(COUNT)[:300]
    whole = _draw(spec, shapes, view=5)
    part = view_parameters(spec, view=5, keys=KEYS[rows], shapes=shapes[rows])
    assert np.array_equal(part.boxes, whole.boxes[rows])
    assert np.array_equal(part.flips, whole.flips[rows])


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_parameters_have_their_documented_shapes_and_types(spec):
    drawn = _draw(spec, _mixed_shapes())
    assert (drawn.boxes.shape, drawn.boxes.dtype) == ((COUNT, 4), np.int32)
    assert (drawn.flips.shape, drawn.flips.dtype) == ((COUNT,), np.bool_)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_no_samples_have_no_parameters(spec):
    assert _draw(spec, _shapes(8, 8, 0)).boxes.shape == (0, 4)


def test_indexing_takes_rows_of_boxes_and_flips():
    whole = _draw(SPECS["resized"], _shapes(30, 40))
    rows = np.array([7, 3, 3])
    assert np.array_equal(whole[rows].boxes, whole.boxes[rows])
    assert np.array_equal(whole[rows].flips, whole.flips[rows])


@pytest.mark.parametrize("name", ["pad_crop", "resized"])
def test_views_and_seeds_differ(name):
    spec, shapes = SPECS[name], _shapes(60, 80)
    other_seed = ViewSpec(seed=2, pad_crop=spec.pad_crop, random_resized_crop=spec.random_resized_crop)
    boxes = _draw(spec, shapes).boxes
    for other in (_draw(spec, shapes, view=1).boxes, _draw(other_seed, shapes).boxes):
        assert (boxes == other).all(1).mean() < 0.05


@pytest.mark.parametrize("name", ["resized", "narrow"])
def test_resized_crops_lie_inside_images_of_any_size(name):
    shapes = _mixed_shapes()
    top, left, height, width = _draw(SPECS[name], shapes).boxes.T
    assert min(top.min(), left.min()) >= 0
    assert min(height.min(), width.min()) >= 1
    assert (top + height <= shapes[:, 0]).all()
    assert (left + width <= shapes[:, 1]).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (2, 300), (300, 2), (1, 2)])
def test_resized_crops_lie_inside_extreme_images(shape):
    height, width = shape
    boxes = _draw(SPECS["resized"], _shapes(height, width)).boxes
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= [height, width]).all()


@pytest.mark.parametrize("shape", [(1, 500), (500, 1), (2, 400), (400, 5)])
def test_where_no_box_fits_the_fallback_is_that_of_torchvision(shape):
    scale, ratio = (0.9, 1.0), (0.75, 4 / 3)
    spec = ViewSpec(random_resized_crop=RandomResizedCrop(scale=scale, ratio=ratio))
    expected = TorchvisionCrop.get_params(torch.empty(3, *shape), list(scale), list(ratio))
    assert (_draw(spec, _shapes(*shape)).boxes == expected).all()


@pytest.mark.parametrize("shape", [(224, 224), (300, 200), (150, 400)])
def test_area_and_aspect_are_distributed_as_torchvisions(shape):
    crop = RandomResizedCrop()
    ours = _draw(ViewSpec(random_resized_crop=crop), _shapes(*shape)).boxes
    theirs = _torchvision_boxes(*shape, crop.scale, crop.ratio)
    for figure in (_area, _aspect):
        assert _ks_distance(figure(ours), figure(theirs)) < KS_LIMIT


@pytest.mark.parametrize("axis", [0, 1])
def test_positions_are_distributed_as_torchvisions(axis):
    crop = RandomResizedCrop(scale=(0.2, 0.6))
    ours = _draw(ViewSpec(random_resized_crop=crop), _shapes(300, 200)).boxes
    theirs = _torchvision_boxes(300, 200, crop.scale, crop.ratio)
    assert _ks_distance(ours[:, axis], theirs[:, axis]) < KS_LIMIT


def _area(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, 2].astype(float) * boxes[:, 3]


def _aspect(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, 3] / boxes[:, 2]


def test_area_and_aspect_stay_within_the_spec_but_for_rounding():
    spec = RandomResizedCrop(scale=(0.25, 0.5), ratio=(0.8, 1.25))
    boxes = _draw(ViewSpec(random_resized_crop=spec), _shapes(1000, 1000)).boxes
    shares, aspects = _area(boxes) / 1e6, _aspect(boxes)
    assert shares.min() >= 0.25 * 0.995
    assert shares.max() <= 0.5 * 1.005
    assert aspects.min() >= 0.8 * 0.995
    assert aspects.max() <= 1.25 * 1.005


def test_the_whole_square_image_is_the_only_box_of_full_scale_and_ratio_one():
    spec = RandomResizedCrop(scale=(1.0, 1.0), ratio=(1.0, 1.0))
    boxes = _draw(ViewSpec(random_resized_crop=spec), _shapes(32, 32)).boxes
    assert (boxes == [0, 0, 32, 32]).all()


@pytest.mark.parametrize("axis", [0, 1])
def test_pad_crop_shifts_are_uniform(axis):
    padding = 4
    boxes = _draw(ViewSpec(pad_crop=PadCrop(padding=padding)), _shapes(32, 32)).boxes
    counts = np.bincount(boxes[:, axis] + padding, minlength=2 * padding + 1)
    expected = COUNT / (2 * padding + 1)
    assert len(counts) == 2 * padding + 1
    assert ((counts - expected) ** 2 / expected).sum() < 26.1  # 99.9 %, 8 degrees of freedom


def test_pad_crop_shifts_of_the_two_axes_are_independent():
    boxes = _draw(ViewSpec(pad_crop=PadCrop(padding=4)), _shapes(32, 32)).boxes
    assert abs(np.corrcoef(boxes[:, 0], boxes[:, 1])[0, 1]) < 4 / np.sqrt(COUNT)


def test_pad_crop_shifts_the_centred_square_of_an_oblong_image():
    boxes = _draw(ViewSpec(pad_crop=PadCrop(padding=2)), _shapes(20, 50)).boxes
    assert (boxes[:, 2:] == 20).all()
    assert set(boxes[:, 0]) == {-2, -1, 0, 1, 2}
    assert set(boxes[:, 1]) == {13, 14, 15, 16, 17}


@pytest.mark.parametrize("view", range(3))
def test_random_flips_are_half_of_a_view(view):
    flips = _draw(ViewSpec(flip="random"), _shapes(8, 8), view).flips
    assert abs(flips.mean() - 0.5) < 4 * 0.5 / np.sqrt(COUNT)


def test_random_flips_of_two_views_are_independent():
    first, second = (_draw(ViewSpec(flip="random"), _shapes(8, 8), view).flips for view in (0, 1))
    assert abs((first == second).mean() - 0.5) < 4 * 0.5 / np.sqrt(COUNT)


def test_flips_and_shifts_are_independent():
    drawn = _draw(ViewSpec(pad_crop=PadCrop(padding=4), flip="random"), _shapes(32, 32))
    for axis in (0, 1):
        correlation = np.corrcoef(drawn.boxes[:, axis], drawn.flips)[0, 1]
        assert abs(correlation) < 4 / np.sqrt(COUNT)


def test_no_flip_flips_nothing():
    assert not _draw(ViewSpec(flip="none"), _shapes(8, 8)).flips.any()


@pytest.mark.parametrize("view", range(4))
def test_alternating_flips_invert_between_consecutive_views(view):
    spec, shapes = ViewSpec(flip="alternating"), _shapes(8, 8)
    assert (_draw(spec, shapes, view).flips != _draw(spec, shapes, view + 1).flips).all()


def test_alternating_flips_are_half_of_a_view():
    flips = _draw(ViewSpec(flip="alternating"), _shapes(8, 8)).flips
    assert abs(flips.mean() - 0.5) < 4 * 0.5 / np.sqrt(COUNT)


def test_flips_do_not_depend_on_how_the_view_is_cropped():
    shapes = _shapes(32, 32)
    with_crop = _draw(ViewSpec(flip="random", pad_crop=PadCrop()), shapes)
    assert np.array_equal(_draw(ViewSpec(flip="random"), shapes).flips, with_crop.flips)


def test_a_spec_without_crop_shows_the_centred_square():
    assert (_draw(ViewSpec(), _shapes(20, 50, 3)).boxes == [0, 15, 20, 20]).all()


@pytest.mark.parametrize(
    ("shape", "fraction", "box"),
    [
        ((32, 32), 1.0, [0, 0, 32, 32]),
        ((256, 256), 0.875, [16, 16, 224, 224]),
        ((100, 200), 0.5, [25, 75, 50, 50]),
        ((1, 9), 0.875, [0, 4, 1, 1]),
        ((3, 3), 0.01, [1, 1, 1, 1]),
    ],
)
def test_the_centre_crop_is_the_centred_square_of_the_short_side(shape, fraction, box):
    drawn = centre_parameters(_shapes(*shape, 2), fraction)
    assert drawn.boxes.tolist() == [box, box]
    assert not drawn.flips.any()
