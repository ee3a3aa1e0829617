"""Pixels of a view: byte for byte those of torchvision's v2 transforms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from pipeline.modalities.images.augmentations import PadCrop, RandomResizedCrop
from pipeline.modalities.images.draw import ViewParameters, view_parameters
from pipeline.modalities.images.rendering.render import render
from pipeline.modalities.images.spec import ViewSpec
from tests.pipeline.modalities.images.rendering.geometries import GEOMETRIES

INTERPOLATIONS = ["bilinear", "bicubic"]


def _parameters(boxes, flips=None) -> ViewParameters:
    flips = [False] * len(boxes) if flips is None else flips
    return ViewParameters(boxes=np.array(boxes, np.int32), flips=np.array(flips, np.bool_))


def _chw(image_HWC: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image_HWC).permute(2, 0, 1).contiguous()


def _torchvision(
    image_HWC: np.ndarray, box, flip: bool, size: int, interpolation: str = "bilinear"
) -> torch.Tensor:
    mode = v2.InterpolationMode(interpolation)
    out = v2.functional.resized_crop(_chw(image_HWC), *box, [size, size], mode, antialias=True)
    out = v2.functional.horizontal_flip(out) if flip else out
    return out.permute(1, 2, 0)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("flip", [False, True], ids=["straight", "flipped"])
@pytest.mark.parametrize(("shape", "box", "size"), GEOMETRIES)
def test_a_resized_crop_is_torchvisions_byte_for_byte(
    random_image, pack_images, interpolation, channels, flip, shape, box, size
):
    image = random_image(*shape, channels)
    packed, parameters = pack_images([image]), _parameters([box], [flip])
    out = render(packed, np.array([0]), parameters, size=size, interpolation=interpolation)
    assert out.dtype == torch.uint8
    assert out.shape == (1, size, size, channels)
    assert torch.equal(out[0], _torchvision(image, box, flip, size, interpolation))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [24, 40])
def test_drawn_views_of_many_images_are_torchvisions_byte_for_byte(
    random_image, pack_images, interpolation, channels, size
):
    rng = np.random.default_rng(3)
    images = [random_image(*rng.integers(1, 90, 2), channels, seed) for seed in range(60)]
    packed = pack_images(images)
    spec = ViewSpec(random_resized_crop=RandomResizedCrop(), flip="random")
    drawn = view_parameters(spec, view=1, keys=packed.keys, shapes=packed.shapes)
    out = render(packed, np.arange(60), drawn, size=size, interpolation=interpolation)
    for row, (image, box, flip) in enumerate(zip(images, drawn.boxes.tolist(), drawn.flips, strict=True)):
        theirs = _torchvision(image, box, flip, size, interpolation)
        assert torch.equal(out[row], theirs), (image.shape, box)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("padding", [1, 4, 28])
def test_pad_crop_is_torchvisions_pad_and_crop(random_image, pack_images, channels, padding):
    images = [random_image(28, 28, channels, seed) for seed in range(20)]
    packed = pack_images(images)
    spec = ViewSpec(pad_crop=PadCrop(padding=padding), flip="random")
    drawn = view_parameters(spec, view=0, keys=packed.keys, shapes=packed.shapes)
    out = render(packed, np.arange(20), drawn, size=28)
    for row, (top, left, height, width) in enumerate(drawn.boxes.tolist()):
        padded = v2.functional.pad(_chw(images[row]), [padding] * 4)
        expected = v2.functional.crop(padded, top + padding, left + padding, height, width)
        expected = v2.functional.horizontal_flip(expected) if drawn.flips[row] else expected
        assert torch.equal(out[row], expected.permute(1, 2, 0))


def test_pad_crop_to_another_size_is_torchvisions_resize_of_the_padded_crop(random_image, pack_images):
    image = random_image(28, 28)
    out = render(pack_images([image]), np.array([0]), _parameters([(-3, 2, 28, 28)]), size=40)
    assert torch.equal(out[0], _torchvision(image, (-3, 2, 28, 28), False, 40))


@pytest.mark.parametrize("box", [(-28, 0, 28, 28), (0, 28, 28, 28), (-99, -99, 28, 28)])
@pytest.mark.parametrize("size", [28, 32])
def test_outside_the_image_is_black(random_image, pack_images, box, size):
    packed = pack_images([random_image(28, 28)])
    assert not render(packed, np.array([0]), _parameters([box]), size=size).any()


def test_a_flip_mirrors_left_to_right(random_image, pack_images):
    image = random_image(9, 9)
    out = render(pack_images([image]), np.array([0]), _parameters([(0, 0, 9, 9)], [True]), size=9)
    assert np.array_equal(out[0].numpy(), image[:, ::-1])


@pytest.mark.parametrize("channels", [1, 3])
def test_the_gather_gives_what_sample_by_sample_rendering_gives(random_image, pack_images, channels):
    images = [random_image(16, 16, channels, seed) for seed in range(30)]
    uniform = pack_images(images)
    # One image of another size at the end keeps the batch from being gathered.
    mixed = pack_images([*images, random_image(5, 7, channels)])
    assert uniform.uniform is not None
    assert mixed.uniform is None
    spec = ViewSpec(pad_crop=PadCrop(padding=5), flip="random")
    drawn = view_parameters(spec, view=2, keys=uniform.keys, shapes=uniform.shapes)
    rows = np.arange(30)
    assert torch.equal(render(uniform, rows, drawn, size=16), render(mixed, rows, drawn, size=16))


def test_a_crop_smaller_than_uniform_oblong_images_is_gathered_at_its_place(random_image, pack_images):
    images = [random_image(10, 14, 3, seed) for seed in range(4)]
    boxes = [(0, 0, 6, 6), (4, 8, 6, 6), (-2, 3, 6, 6), (7, 11, 6, 6)]
    flips = [False, True, False, True]
    out = render(pack_images(images), np.arange(4), _parameters(boxes, flips), size=6)
    for row in range(4):
        assert torch.equal(out[row], _torchvision(images[row], boxes[row], flips[row], 6))


@pytest.mark.parametrize("size", [20, 24], ids=["gathered", "resized"])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_pixels_do_not_depend_on_the_batch(random_image, pack_images, size, batch_size):
    packed = pack_images([random_image(20, 20, 3, seed) for seed in range(64)])
    spec = ViewSpec(pad_crop=PadCrop(padding=2), flip="random")
    drawn = view_parameters(spec, view=0, keys=packed.keys, shapes=packed.shapes)
    whole = render(packed, np.arange(64), drawn, size=size)
    order = np.random.default_rng(0).permutation(64)
    for start in range(0, 64, batch_size):
        rows = order[start : start + batch_size]
        assert torch.equal(render(packed, rows, drawn[rows], size=size), whole[rows])


def test_rows_may_repeat_and_skip(random_image, pack_images):
    packed = pack_images([random_image(6, 6, 1, seed) for seed in range(5)])
    out = render(packed, np.array([4, 4, 1]), _parameters([(0, 0, 6, 6)] * 3), size=6)
    expected = [packed.array(row) for row in (4, 4, 1)]
    assert np.array_equal(out.numpy(), np.stack(expected))


def test_rendering_leaves_the_source_as_it_is(random_image, pack_images):
    packed = pack_images([random_image(8, 8)])
    before = packed.values.copy()
    for size in (8, 12):
        out = render(packed, np.array([0]), _parameters([(-1, 0, 8, 8)], [True]), size=size)
        out.zero_()
    for size in (8, 12):
        out = render(packed, np.array([0]), _parameters([(0, 0, 8, 8)]), size=size)
        out.zero_()
    assert np.array_equal(packed.values, before)


@pytest.fixture
def _every_warning():
    """Torch shows some warnings once a process only; a test shall not depend on its place."""
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)


@pytest.mark.usefixtures("_every_warning")
@pytest.mark.parametrize("size", [8, 12], ids=["gathered", "resized"])
def test_whole_images_of_a_read_only_file_are_rendered_without_a_warning(random_image, pack_images, size):
    packed = pack_images([random_image(8, 8)])
    packed.values.flags.writeable = False
    render(packed, np.array([0]), _parameters([(0, 0, 8, 8)]), size=size)


def test_no_rows_render_to_an_empty_batch(random_image, pack_images):
    packed = pack_images([random_image(8, 8)])
    empty = ViewParameters(boxes=np.zeros((0, 4), np.int32), flips=np.zeros(0, np.bool_))
    assert render(packed, np.zeros(0, np.int64), empty, size=8).shape == (0, 8, 8, 3)
