"""Boxes on a model's own pixels: what is erased and mixed, and labels shared as the pixels are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from pipeline.core.random import Draws
from pipeline.modalities.images.augmentations import Cutmix, Mixup, RandomErasing
from pipeline.modalities.images.draw import Erasure
from pipeline.modalities.images.geometry import UNIT, erased_boxes
from pipeline.modalities.images.mixing import Mixture, draw_mixture
from pipeline.modalities.images.rendering.pixel_ops import blend, erase, mix
from pipeline.modalities.images.spec import ViewSpec
from pipeline.views.shares import WHOLE

COUNT = 200
DRAWS = Draws(7, 0, np.arange(COUNT, dtype=np.uint64))
SIZES = (1, 2, 3, 8, 33, 97)

each_size = pytest.mark.parametrize("size", SIZES)
each_channels = pytest.mark.parametrize("channels", [1, 3])


def _pixels(count: int, size: int, channels: int) -> torch.Tensor:
    shape = (count, size, size, channels)
    return torch.from_numpy(np.random.default_rng(size).integers(0, 256, shape).astype(np.uint8))


def _edges(box, size: int) -> tuple[int, int, int, int]:
    """A box in units to its first and last edges in pixels, the nearest ones: top, left, bottom, right."""
    top, left, height, width = (int(value) for value in box)
    return tuple(
        int(np.floor(edge * size / UNIT + 0.5)) for edge in (top, left, top + height, left + width)
    )


def _mixture(levels, boxes) -> Mixture:
    return Mixture(levels=np.array(levels, np.int32), boxes=np.array(boxes, np.int32))


def _mixed(pixels: torch.Tensor, mixture: Mixture) -> np.ndarray:
    """Mix each of the first half with its counterpart in the second."""
    count = len(pixels) // 2
    return mix(pixels, np.arange(count), np.arange(count) + count, mixture).numpy()


@each_size
@each_channels
@pytest.mark.parametrize("value", [0, 255, 130])
def test_erasing_is_v2s_erase_of_the_nearest_pixels(size, channels, value):
    erasing = RandomErasing(probability=0.7, scale=(0.02, 0.6), value=value)
    boxes = erased_boxes(erasing, DRAWS).astype(np.int32)
    pixels = _pixels(COUNT, size, channels)
    out = erase(pixels, Erasure(boxes=boxes, value=value))
    assert out.dtype == torch.uint8
    for image, erased, box in zip(pixels, out, boxes, strict=True):
        top, left, bottom, right = _edges(box, size)
        expected = v2.functional.erase(
            image.permute(2, 0, 1),
            *(top, left, bottom - top, right - left),
            v=torch.tensor([[[value]]], dtype=torch.uint8),
        )
        assert torch.equal(erased, expected.permute(1, 2, 0))


@each_size
@pytest.mark.parametrize(
    ("box", "share"), [((0, 0, UNIT, UNIT), 1.0), ((0, 0, 0, 0), 0.0), ((UNIT, UNIT, 0, 0), 0.0)]
)
def test_an_erased_whole_and_an_erased_nothing(size, box, share):
    pixels = torch.full((1, size, size, 3), 200, dtype=torch.uint8)
    out = erase(pixels, Erasure(boxes=np.array([box], np.int32), value=7))
    assert (out == 7).float().mean() == share


@pytest.mark.parametrize(("edge", "first"), [(4095, 0), (4096, 1), (12287, 1), (12288, 2)])
def test_an_edge_half_way_between_pixels_goes_on(edge, first):
    """Of 8 pixels, each 8192 units wide."""
    pixels = torch.full((1, 8, 8, 1), 200, dtype=torch.uint8)
    out = erase(pixels, Erasure(boxes=np.array([[edge, 0, UNIT - edge, UNIT]], np.int32), value=0))
    assert out[0, :, 0, 0].tolist() == [200] * first + [0] * (8 - first)


def test_erasing_leaves_the_rest_and_its_source_as_they_are():
    pixels = _pixels(1, 8, 3)
    before = pixels.clone()
    quarter = np.array([[0, UNIT // 2, UNIT // 2, UNIT // 2]], np.int32)
    out = erase(pixels, Erasure(boxes=quarter, value=0))
    assert not out[0, :4, 4:].any()
    assert torch.equal(out[0, 4:], before[0, 4:])
    assert torch.equal(out[0, :, :4], before[0, :, :4])
    assert torch.equal(pixels, before)


@each_size
@each_channels
@pytest.mark.parametrize("spec", [ViewSpec(mixup=Mixup(alpha=0.8)), ViewSpec(cutmix=Cutmix())])
def test_mixing_is_the_blend_in_integers_inside_the_box(spec, size, channels):
    pixels, mixture = _pixels(2 * COUNT, size, channels), draw_mixture(spec, DRAWS)
    out = _mixed(pixels, mixture)
    assert out.dtype == np.uint8
    mine, theirs = np.split(pixels.numpy().astype(int), 2)
    for row, (level, box) in enumerate(zip(mixture.levels.tolist(), mixture.boxes, strict=True)):
        top, left, bottom, right = _edges(box, size)
        inside = (slice(top, bottom), slice(left, right))
        expected = mine[row].copy()
        blend = mine[row][inside] * level + theirs[row][inside] * (WHOLE - level)
        expected[inside] = (blend + WHOLE // 2) // WHOLE
        assert np.array_equal(out[row], expected)


def test_a_blend_of_any_two_values_is_the_level_nearest_to_the_exact_one():
    values = torch.arange(256, dtype=torch.uint8)
    grid = torch.stack(torch.meshgrid(values, values, indexing="ij"))[..., None]  # two images of 256 x 256
    mine, theirs = grid.double().numpy()
    for level in range(WHOLE + 1):
        out = _mixed(grid, _mixture([level], [(0, 0, UNIT, UNIT)]))[0]
        assert np.abs(out - (mine * level + theirs * (WHOLE - level)) / WHOLE).max() <= 0.5


@each_size
def test_mixing_at_its_limits_gives_the_one_image_or_the_other(size):
    pixels, whole = _pixels(2, size, 3), (0, 0, UNIT, UNIT)
    own, partner = pixels.numpy()
    for level, box, expected in (
        (WHOLE, whole, own),
        (0, whole, partner),
        (0, (0, 0, 0, 0), own),
        (0, (UNIT, 0, 0, UNIT), own),
    ):
        assert np.array_equal(_mixed(pixels, _mixture([level], [box]))[0], expected)


@pytest.mark.parametrize("level", [0, 1, 77, 255, 256])
def test_an_image_mixed_with_itself_is_itself(level):
    pixels = _pixels(3, 9, 3)
    rows = np.array([2, 0])
    box = [(5000, 9000, 40000, 30000)]
    out = mix(pixels, rows, rows, _mixture([level] * 2, box * 2))
    assert torch.equal(out, pixels[torch.from_numpy(rows)])


def test_mixing_leaves_its_source_as_it_is():
    pixels = _pixels(2, 9, 3)
    before = pixels.clone()
    _mixed(pixels, _mixture([100], [(0, 0, UNIT, UNIT)]))
    assert torch.equal(pixels, before)


@pytest.mark.parametrize("size", [8, 32, 33, 224])
def test_the_label_of_a_cutmix_has_the_share_of_its_pixels_within_an_edge(size):
    """Both edges of an axis move by half a pixel at most, so each side by one."""
    mixture = draw_mixture(ViewSpec(cutmix=Cutmix()), DRAWS)
    pixels = torch.zeros((2 * COUNT, size, size, 1), dtype=torch.uint8)
    pixels[:COUNT] = 255
    own = (_mixed(pixels, mixture) == 255).mean((1, 2, 3))
    sides = mixture.boxes[:, 2:] / UNIT
    assert (np.abs(own - mixture.shares) <= sides.sum(1) / size + 1 / size**2).all()
    assert abs((own - mixture.shares).mean()) < 0.5 / size  # and to neither side


def test_the_label_of_a_mixup_has_the_share_of_its_levels():
    mixture = draw_mixture(ViewSpec(mixup=Mixup(alpha=0.8)), DRAWS)
    pixels = torch.zeros((2 * COUNT, 4, 4, 1), dtype=torch.uint8)
    pixels[:COUNT] = 255
    own = _mixed(pixels, mixture)[:, 0, 0, 0] / 255
    assert np.abs(own - mixture.shares).max() <= 0.5 / 255


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [1, 7, 32])
def test_samples_mixed_one_by_one_equal_samples_mixed_as_a_batch(size, channels):
    generator = np.random.default_rng(size)
    count, pixels = COUNT, _pixels(COUNT, size, channels)
    own, partners = generator.permutation(count), generator.permutation(count)
    levels = generator.integers(0, WHOLE + 1, count).astype(np.int32)
    levels[:4] = 0, 0, WHOLE, 1
    ends = np.sort(generator.integers(0, UNIT + 1, (2, count, 2)), axis=0)
    boxes = np.concatenate([ends[0], ends[1] - ends[0]], axis=1).astype(np.int32)
    boxes[::2] = 0, 0, UNIT, UNIT
    given = [torch.from_numpy(values) for values in (own, partners, levels, boxes)]
    mixed = mix(pixels, own, partners, Mixture(levels=levels, boxes=boxes))
    assert torch.equal(mixed, blend(pixels, *given))
    assert torch.equal(mixed[2], pixels[own[2]])
