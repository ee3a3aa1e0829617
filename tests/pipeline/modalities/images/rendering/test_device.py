"""Rendering on a device: byte for byte the CPU's pixels, whatever the geometry, operations and batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pipeline.core.errors import ConfigError
from pipeline.loading.feed import Feed
from pipeline.modalities.images.draw import ViewParameters, view_parameters
from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.modalities.images.rendering import device as rendering
from pipeline.modalities.images.rendering import pixel_ops, resample
from pipeline.modalities.images.rendering.device import DeviceRenderer
from pipeline.modalities.images.rendering.render import render
from pipeline.modalities.images.spec import ViewSpec
from tests.pipeline.modalities.images.examples import EXAMPLES, SPECS
from tests.pipeline.modalities.images.rendering.geometries import GEOMETRIES
from tests.pipeline.waiting import NoWaiting, no_waiting_on_cuda

MORE_GEOMETRIES = [
    ((600, 450), (0, 0, 600, 450), 224),
    ((600, 600), (5, 7, 590, 433), 97),
    ((450, 600), (100, 3, 8, 590), 64),
    ((600, 1), (0, 0, 600, 1), 8),
    ((1, 600), (0, 0, 1, 600), 33),
    ((2, 599), (0, 1, 2, 598), 16),
    ((8, 8), (0, 0, 8, 8), 64),
    ((9, 9), (8, 0, 1, 1), 150),
    ((64, 64), (0, 0, 64, 64), 64),
    # Partly outside, in the output's size and in another; in the end nothing is left.
    ((40, 40), (-7, 9, 40, 40), 40),
    ((40, 40), (-7, 9, 40, 40), 32),
    ((40, 60), (-20, 30, 40, 40), 24),
    ((40, 60), (25, -30, 33, 60), 48),
    ((50, 50), (-49, 49, 50, 50), 16),
    ((50, 50), (-50, 0, 50, 50), 16),
    ((50, 50), (0, 50, 50, 50), 50),
]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request) -> torch.device:
    return torch.device(request.param)


def _parameters(boxes, flips) -> ViewParameters:
    return ViewParameters(boxes=np.array(boxes, np.int32), flips=np.array(flips, np.bool_))


@pytest.fixture(scope="module")
def images(random_image, pack_images):
    """Return a function from channels to 24 images of one size, or of many."""

    def make(channels: int, uniform: bool):
        rng = np.random.default_rng(3)
        sizes = np.full((24, 2), 30) if uniform else rng.integers(10, 60, (24, 2))
        return pack_images([random_image(*size, channels, seed) for seed, size in enumerate(sizes)])

    return make


def _drawn(packed, spec: ViewSpec, view: int = 0) -> ViewParameters:
    return view_parameters(spec, view=view, keys=packed.keys, shapes=packed.shapes)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("flip", [False, True], ids=["straight", "flipped"])
@pytest.mark.parametrize(("shape", "box", "size"), [*GEOMETRIES, *MORE_GEOMETRIES])
def test_a_crop_has_the_bytes_of_the_cpus(
    random_image, pack_images, device, interpolation, channels, flip, shape, box, size
):
    if not resample.is_exact(max(shape) + 5, size, interpolation):
        pytest.skip("a cubic reaches too far for exact sums")
    image = random_image(*shape, channels)
    larger = random_image(shape[0] + 3, shape[1] + 5, channels)
    parameters = _parameters([box], [flip])
    # Of one size, lying on the device, and of unequal sizes, copied for the batch.
    for packed in (pack_images([image]), pack_images([image, larger])):
        how = {"size": size, "interpolation": interpolation}
        expected = render(packed, np.array([0]), parameters, **how)
        out = DeviceRenderer(packed, device=device, **how).render(np.array([0]), parameters)
        assert torch.equal(out.cpu(), expected)


@pytest.mark.parametrize("size", [24, 30])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("uniform", [True, False], ids=["uniform", "unequal"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_views_have_the_bytes_of_the_cpus(images, device, spec, uniform, channels, size):
    packed, rows = images(channels, uniform), np.arange(24)
    renderer = DeviceRenderer(packed, size, device)
    for view in (0, 1):
        parameters = _drawn(packed, spec, view)
        expected = render(packed, rows, parameters, size=size)
        out = renderer.render(rows, parameters)
        assert torch.equal(out.cpu(), expected)
        assert (out.dtype, out.shape, out.device.type) == (
            torch.uint8,
            (24, size, size, channels),
            device.type,
        )
        assert out.is_contiguous()


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name not in ("mixup", "cutmix")])
def test_each_example_changes_pixels(images, name):
    """So that the comparison above is one of something."""
    packed, rows = images(3, False), np.arange(24)
    plain = render(packed, rows, _drawn(packed, ViewSpec(seed=4, flip="random")), size=24)
    assert not torch.equal(render(packed, rows, _drawn(packed, SPECS[name]), size=24), plain)


@pytest.mark.parametrize("batch_size", [1, 5, 24])
@pytest.mark.parametrize("uniform", [True, False], ids=["uniform", "unequal"])
def test_pixels_do_not_depend_on_batch_and_order(images, device, uniform, batch_size):
    packed = images(3, uniform)
    parameters = _drawn(packed, SPECS["everything"])
    renderer = DeviceRenderer(packed, 24, device)
    whole = renderer.render(np.arange(24), parameters)
    order = np.random.default_rng(0).permutation(24)
    for start in range(0, 24, batch_size):
        rows = order[start : start + batch_size]
        assert torch.equal(renderer.render(rows, parameters[rows]), whole[torch.from_numpy(rows)])


@pytest.mark.parametrize("uniform", [True, False], ids=["uniform", "unequal"])
@pytest.mark.parametrize("name", ["everything", "everything else"])
def test_rows_may_repeat_and_skip_and_be_none(images, device, uniform, name):
    packed = images(3, uniform)
    parameters = _drawn(packed, SPECS[name])
    for rows in (np.array([7, 7, 2]), np.zeros(0, np.int64)):
        out = DeviceRenderer(packed, 24, device).render(rows, parameters[rows])
        assert torch.equal(out.cpu(), render(packed, rows, parameters[rows], size=24))


@pytest.mark.parametrize("name", ["mixup", "cutmix", "everything", "random_erasing", "rand_augment"])
@pytest.mark.parametrize("uniform", [True, False], ids=["uniform", "unequal"])
def test_a_feed_that_renders_on_the_device_gives_the_bytes_of_one_that_does_not(
    images, device, uniform, name
):
    packed, rows = images(3, uniform), np.array([3, 17, 4, 0, 23, 9])
    blocks = np.arange(24) // 10
    preprocessing = Preprocessing(size=24, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    here, there = (
        Feed(packed, SPECS[name], preprocessing, device=device, blocks=blocks, on_device=on_device)
        for on_device in (False, True)
    )
    for view in range(3):
        assert torch.equal(here.pixels(view, rows).cpu(), there.pixels(view, rows).cpu())
    for one, other in zip(
        here.batches(0, [rows, rows[:2]]), there.batches(0, [rows, rows[:2]]), strict=True
    ):
        assert torch.equal(one, other)
        assert one.device.type == other.device.type == device.type


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_nothing_waits_for_the_device(images, monkeypatch, spec):
    """On tensors without values, which refuse to be read, as if they lay on a CUDA device."""
    for module in (rendering, pixel_ops):
        monkeypatch.setattr(
            module,
            "to_device",
            lambda values, device: torch.from_numpy(values).to(device, non_blocking=True),
        )
    packed, rows = images(3, False), np.arange(24)
    parameters = _drawn(packed, spec)
    with FakeTensorMode(allow_non_fake_inputs=True), NoWaiting():
        out = DeviceRenderer(packed, 24, torch.device("cuda")).render(rows, parameters)
        if parameters.mixture is not None:
            out = pixel_ops.mix(out, rows, rows[::-1].copy(), parameters.mixture)
    assert (out.device.type, out.shape) == ("cuda", (24, 24, 24, 3))


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_nothing_waits_for_a_cuda_device(images, spec):
    packed, rows = images(3, True), np.arange(24)
    parameters, renderer = _drawn(packed, spec), DeviceRenderer(packed, 24, torch.device("cuda"))
    renderer.render(rows, parameters)  # what is set up once may wait
    with no_waiting_on_cuda():
        renderer.render(rows, parameters)


# The sums behind the bytes.


@pytest.mark.parametrize("size", [1, 2, 8, 24])
@pytest.mark.parametrize("value", [None, 255], ids=["noise", "white"])
def test_the_largest_source_is_exact_and_a_larger_one_is_refused(
    random_image, pack_images, device, size, value
):
    largest = 128 * size
    for shape in ((largest, 1), (1, largest), (largest, 3), (largest - 1, 2)):
        image = random_image(*shape, 1) if value is None else np.full((*shape, 1), value, np.uint8)
        packed, parameters = pack_images([image]), _parameters([(0, 0, *shape)], [False])
        expected = render(packed, np.array([0]), parameters, size=size)
        out = DeviceRenderer(packed, size, device).render(np.array([0]), parameters)
        assert torch.equal(out.cpu(), expected)
    for shape in ((largest + 1, 1), (1, largest + 1)):
        pixels = f"{shape[0]}x{shape[1]} pixels"
        message = f"images of {pixels} are too large to render at {size} .* at most {largest}; use"
        with pytest.raises(ConfigError, match=message):
            DeviceRenderer(pack_images([random_image(*shape, 1)]), size, device)


@pytest.mark.parametrize(("interpolation", "reach"), [("bilinear", 128), ("bicubic", 64)])
@pytest.mark.parametrize("size", [1, 3, 8, 32, 97, 224])
def test_factors_fit_8_bits_and_sums_24(size, interpolation, reach):
    """So products are exact in half precision, TF32 and bfloat16, and sums in float32 in any order."""
    rng = np.random.default_rng(size)
    lengths = np.unique([1, 2, size, reach * size, *rng.integers(1, reach * size, 8)])
    for length in torch.from_numpy(lengths).split(1):
        assert resample.is_exact(int(length), size, interpolation)
        where = torch.zeros_like(length), length, size, int(length)
        _, weights, bits = resample.integer_weights(*where, interpolation)
        high, low = weights >> 8, weights & 255
        assert weights.min() >= 0 or interpolation == "bicubic"
        assert high.abs().max() <= 128
        for part in (high, low):
            for kind in (torch.float16, torch.bfloat16):
                assert torch.equal(part.to(kind).int(), part)
            assert 255 * part.abs().sum(2).max() < 1 << 24
        # Shifted by 8 bits, the sums still fit int32.
        assert 255 * (weights.long().clamp(min=0).sum(2).max() + 1) + (1 << int(bits)) < 1 << 31


def test_weighing_pixels_is_exact_in_any_order():
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (2, 5, 300))).float()
    first, weights, bits = resample.integer_weights(torch.tensor([0, 11]), torch.tensor([300, 250]), 7, 300)
    matrices = resample.dense(first, weights, 300)
    sums = torch.einsum("bns,bts->bnt", pixels.long(), matrices.long())
    exact = (sums + (1 << (bits.view(-1, 1, 1) - 1))) >> bits.view(-1, 1, 1)
    assert torch.equal(resample.weighted(pixels, matrices, bits).long(), exact.clamp(0, 255))
    order = torch.from_numpy(rng.permutation(300))
    assert torch.equal(resample.weighted(pixels[..., order], matrices[..., order], bits).long(), exact)


@pytest.fixture
def _lowest_precision():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("_lowest_precision")
@pytest.mark.parametrize("shape", [(300, 200), (31, 64)])
def test_rounding_factors_to_less_than_float32_changes_nothing(random_image, pack_images, device, shape):
    packed, parameters = pack_images([random_image(*shape)]), _parameters([(0, 0, *shape)], [True])
    expected = render(packed, np.array([0]), parameters, size=48)
    out = DeviceRenderer(packed, 48, device).render(np.array([0]), parameters)
    assert torch.equal(out.cpu(), expected)


@pytest.mark.parametrize("spec", [SPECS["pad_crop"], SPECS["random_resized_crop"], ViewSpec()])
def test_no_view_has_a_box_longer_than_its_image(spec):
    """A box of a longer side would need more weights than a device's renderer has room for."""
    shapes = np.random.default_rng(0).integers(1, 400, (4000, 2)).astype(np.int32)
    drawn = view_parameters(spec, view=0, keys=np.arange(4000, dtype=np.uint64), shapes=shapes)
    assert (drawn.boxes[:, 2:] <= shapes).all()
