"""Operations on pixels: torchvision's within one level of 255, and the exact value where there is one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from pipeline.modalities.images import geometry
from pipeline.modalities.images.operations import FACTOR, Op, operand, rand_augment_space, wide_space
from pipeline.modalities.images.rendering.pixel_ops import KERNELS, grey
from tests.pipeline.modalities.images.rendering.pictures import pictures

BILINEAR = InterpolationMode.BILINEAR
SIZES = (1, 2, 3, 8, 33, 97)
FACTORS = (0, 1, 102, 512, 1000, 1024, 1025, 1946, 2048, 5000, 9216)  # in 1024ths: those of all operations
TURNS = (-512, -511, -341, -170, -1, 0, 1, 85, 171, 256, 342, 512)  # in 1024ths of the colour circle

each_picture = pytest.mark.parametrize(
    ("size", "channels"), [(size, channels) for size in SIZES for channels in (1, 3)]
)


def _ours(op: Op, images: Tensor, level: int = 0) -> Tensor:
    return KERNELS[op](images, torch.from_numpy(operand(level, len(images))))


def _v2(function, images: Tensor, *values) -> Tensor:
    return function(images.permute(0, 3, 1, 2), *values).permute(0, 2, 3, 1)


def _difference(ours: Tensor, theirs: Tensor) -> int:
    assert ours.dtype == theirs.dtype == torch.uint8
    return int((ours.int() - theirs.int()).abs().max())


EXACT = {
    Op.BRIGHTNESS: (v2.functional.adjust_brightness, FACTORS, FACTOR),
    Op.SATURATION: (v2.functional.adjust_saturation, FACTORS, FACTOR),
    Op.SHARPNESS: (v2.functional.adjust_sharpness, FACTORS, FACTOR),
    Op.POSTERIZE: (v2.functional.posterize, range(9), None),
    Op.SOLARIZE: (v2.functional.solarize, (0, 1, 77, 128, 255), None),
}


@each_picture
@pytest.mark.parametrize("op", EXACT, ids=lambda op: op.name.lower())
def test_what_v2_computes_without_loss_is_equal(op, size, channels):
    """A value, a factor in 1024ths and their product fit float32; both round down."""
    function, levels, unit = EXACT[op]
    images = pictures(size, channels)
    for level in levels:
        value = level if unit is None else level / unit
        assert torch.equal(_ours(op, images, level), _v2(function, images, value)), level


@each_picture
def test_equalize_is_v2s(size, channels):
    images = pictures(size, channels)
    assert torch.equal(_ours(Op.EQUALIZE, images), _v2(v2.functional.equalize, images))


@each_picture
def test_grayscale_is_v2s(size, channels):
    images = pictures(size, channels)
    assert torch.equal(
        _ours(Op.SATURATION, images, 0), _v2(v2.functional.rgb_to_grayscale, images, channels)
    )


def test_grey_of_every_colour_is_the_decimal_fraction_rounded_down():
    """So is v2's, but for three colours of 2^24 whose float32 sum falls below a whole number."""
    below = 0
    for red in range(256):
        green, blue = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
        exact = (2989 * red + 5870 * green + 1140 * blue) // 10000
        colours = torch.stack([torch.full_like(green, red), green, blue]).to(torch.uint8)
        assert torch.equal(grey(colours.permute(1, 2, 0)[None])[0], exact.int())
        if red % 50 == 0:
            theirs = v2.functional.rgb_to_grayscale(colours)[0].int()
            assert (exact - theirs).unique().tolist() in ([0], [0, 1])
            below += int((exact - theirs).sum())
    assert below <= 3


@each_picture
def test_contrast_is_within_one_level_of_v2s_and_of_the_exact_value(size, channels):
    """The mean is in 16ths of a level, which a factor of 9 makes half a level."""
    images = pictures(size, channels)
    means = grey(images).double().mean((1, 2)).view(-1, 1, 1, 1)
    for level in FACTORS:
        ours, factor = _ours(Op.CONTRAST, images, level), level / FACTOR
        assert _difference(ours, _v2(v2.functional.adjust_contrast, images, factor)) <= 1, level
        exact = (images.double() * factor + means * (1 - factor)).clamp(0, 255)
        assert (ours - exact).abs().max() < 1 + abs(1 - factor) / 16, level


@each_picture
def test_autocontrast_is_within_one_level_of_v2s_and_the_exact_quotient_rounded_down(size, channels):
    """V2 divides by a rounded 255th of the range, which leaves whole quotients one level lower."""
    images = pictures(size, channels)
    ours = _ours(Op.AUTOCONTRAST, images)
    assert _difference(ours, _v2(v2.functional.autocontrast, images)) <= 1
    for image, stretched in zip(images.numpy().astype(int), ours.numpy(), strict=True):
        for channel in range(channels):
            values, low, high = (f(image[..., channel]) for f in (np.asarray, np.min, np.max))
            exact = values if low == high else (values - low) * 255 // (high - low)
            assert np.array_equal(stretched[..., channel], exact)


@pytest.mark.parametrize("turn", TURNS)
def test_hue_is_within_one_level_of_v2s_and_the_nearest_to_the_exact_value(turn):
    """V2 rounds down what it has stretched to 255.999: it is up to 0.996 off, we are up to 0.5 off.

    Holds for greys, for colours next to them, and where two channels are equal.
    """
    grid = np.array([0, 1, 2, 3, 63, 64, 100, 127, 128, 129, 200, 201, 252, 254, 255])
    colours = np.stack(np.meshgrid(grid, grid, grid, indexing="ij"), axis=-1).reshape(1, -1, 1, 3)
    images = torch.from_numpy(colours.astype(np.uint8))
    ours = _ours(Op.HUE, images, turn)
    assert _difference(ours, _v2(v2.functional.adjust_hue, images, turn / FACTOR)) <= 1
    assert np.abs(ours.numpy() - _turned(colours, turn / FACTOR)).max() <= 0.5 + 1e-9


def _turned(colours: np.ndarray, turn: float) -> np.ndarray:
    """Another formula in doubles: each channel as a trapezium over the colour circle."""
    red, green, blue = np.moveaxis(colours.astype(float), -1, 0)
    value, span = colours.max(-1), np.ptp(colours, axis=-1)
    some = np.maximum(span, 1)
    of_blue = 4 + (red - green) / some
    angle = np.where(value == green, 2 + (blue - red) / some, of_blue)
    angle = np.where(value == red, (green - blue) / some, angle) + 6 * turn
    places = [(start + angle) % 6 for start in (5, 3, 1)]
    return np.stack([value - span * np.clip(np.minimum(k, 4 - k), 0, 1) for k in places], axis=-1)


@pytest.mark.parametrize("size", SIZES)
def test_hue_of_images_is_within_one_level_of_v2s(size):
    images = pictures(size, 3)
    for turn in TURNS:
        assert (
            _difference(_ours(Op.HUE, images, turn), _v2(v2.functional.adjust_hue, images, turn / FACTOR))
            <= 1
        )


@pytest.mark.parametrize("op", [Op.HUE, Op.SATURATION])
def test_an_image_of_one_channel_has_no_colour_to_change(op):
    images = pictures(8, 1)
    assert torch.equal(_ours(op, images, 300), images)


UNCHANGED = {
    **dict.fromkeys((Op.BRIGHTNESS, Op.CONTRAST, Op.SATURATION, Op.SHARPNESS), FACTOR),
    Op.HUE: 0,
    Op.POSTERIZE: 8,
}


@each_picture
@pytest.mark.parametrize("op", UNCHANGED, ids=lambda op: op.name.lower())
def test_a_strength_of_nothing_changes_nothing(op, size, channels):
    images = pictures(size, channels)
    assert torch.equal(_ours(op, images, UNCHANGED[op]), images)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("op", KERNELS, ids=lambda op: op.name.lower())
def test_each_sample_has_a_strength_of_its_own_and_the_source_stays(op, channels):
    images = pictures(8, channels)
    before = images.clone()
    operands = np.zeros((len(images), 6), np.int32)
    operands[:, 0] = np.arange(len(images)) % 9 if op is Op.POSTERIZE else 100 * np.arange(len(images))
    if op is Op.AFFINE:
        operands = np.stack([_map(angle=10 * row)[0] for row in range(len(images))])
    operands = torch.from_numpy(operands)
    together = KERNELS[op](images, operands)
    alone = [KERNELS[op](images[row : row + 1], operands[row : row + 1]) for row in range(len(images))]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(images, before)


# Affine maps. On uint8, v2 samples the image in float32 and rounds to the nearest level, once: so its uint8
# and its rounded float results are held to the same limit. With `fill=0`, the default of `v2.RandomAffine`,
# instead of `fill=None`, the default of RandAugment, it fades the border twice; ours fades once.


def _map(angle=0, shift=(0.0, 0.0), scale=1.0, shear=(0, 0)) -> np.ndarray:
    """A map (1, 6); angles in sixteenths of a degree, shifts in sides."""
    x, y = (np.array([value]) for value in shift)
    return geometry.matrix(
        np.array([angle]), x, y, np.array([scale]), np.array(shear[0:1]), np.array(shear[1:2])
    )


def _warped(images: Tensor, values: np.ndarray) -> Tensor:
    return KERNELS[Op.AFFINE](images, torch.from_numpy(np.repeat(values, len(images), axis=0)))


def _random_maps(count: int):
    rng = np.random.default_rng(5)
    for number in range(count):
        angle, shift = int(rng.integers(-2880, 2881)), rng.uniform(-0.4, 0.4, 2).tolist()
        scale = float(rng.uniform(0.1, 10) if number % 2 else rng.uniform(0.8, 1.2))
        yield {"angle": angle, "shift": shift, "scale": scale, "shear": rng.integers(-960, 961, 2).tolist()}


@each_picture
def test_an_affine_map_is_within_one_level_of_v2s_and_of_its_own_in_doubles(size, channels):
    """Half a level by rounding, an eighth a weight, a sixteenth between passes, a little a coordinate."""
    images = pictures(size, channels)[:5]
    for values in _random_maps(12):
        ours = _warped(images, _map(**values))
        settings = {
            "angle": values["angle"] / 16,
            "translate": [shift * size for shift in values["shift"]],
            "scale": values["scale"],
            "shear": [shear / 16 for shear in values["shear"]],
            "interpolation": BILINEAR,
        }
        theirs = v2.functional.affine(images.permute(0, 3, 1, 2), **settings)
        assert _difference(ours, theirs.permute(0, 2, 3, 1)) <= 1, values
        theirs = v2.functional.affine(images.permute(0, 3, 1, 2).float(), **settings).round().byte()
        assert _difference(ours, theirs.permute(0, 2, 3, 1)) <= 1, values
        exact = _bilinear(images.numpy(), _map(**values)[0] / 2**24)
        assert np.abs(ours.numpy() - exact).max() < 0.83, values


def _bilinear(images: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sample images (n, S, S, C) at the points of one map, in doubles; black outside."""
    size = images.shape[1]
    middle = (size - 1) / 2
    x, y = np.meshgrid(np.arange(size) - middle, np.arange(size) - middle)
    columns = values[0] * x + values[1] * y + values[4] * size + middle
    rows = values[2] * x + values[3] * y + values[5] * size + middle
    framed = np.pad(images.astype(float), [(0, 0), (1, 1), (1, 1), (0, 0)])
    total = 0
    for row in (np.floor(rows), np.floor(rows) + 1):
        for column in (np.floor(columns), np.floor(columns) + 1):
            weights = (1 - np.abs(rows - row)) * (1 - np.abs(columns - column))
            at = [np.clip(place, -1, size).astype(int) + 1 for place in (row, column)]
            total = total + framed[:, at[0], at[1]] * weights[..., None]
    return total


@each_picture
def test_quarter_turns_move_pixels_as_they_are(size, channels):
    images = pictures(size, channels)
    for quarters in range(-4, 5):
        turned = _warped(images, _map(angle=quarters * 90 * 16))  # clockwise
        assert torch.equal(turned, torch.rot90(images, -quarters, (1, 2)))


@pytest.mark.parametrize("size", SIZES)
def test_shifts_of_whole_pixels_move_pixels_as_they_are_and_leave_black(size):
    images = pictures(size, 3)
    for right, down in ((0, 0), (1, 0), (0, -1), (-size // 2, size // 3), (size, 0)):
        shifted = _warped(images, _map(shift=(right / size, down / size)))
        expected = v2.functional.affine(images.permute(0, 3, 1, 2), 0.0, [right, down], 1.0, [0.0, 0.0])
        assert torch.equal(shifted, expected.permute(0, 2, 3, 1))


def test_a_shift_of_the_whole_side_leaves_nothing():
    assert not _warped(pictures(33, 3), _map(shift=(-1.0, 0.0))).any()


@pytest.mark.parametrize("value", [1, 128, 255])
def test_inside_an_image_of_one_value_every_map_gives_that_value(value):
    images = torch.full((1, 33, 33, 3), value, dtype=torch.uint8)
    for values in _random_maps(20):
        small = {"angle": values["angle"], "shear": [shear // 16 for shear in values["shear"]]}
        assert (_warped(images, _map(**small))[:, 12:21, 12:21] == value).all()


SPACES = {
    "rand_augment": (v2.RandAugment(interpolation=BILINEAR), rand_augment_space(), 31),
    "trivial_augment": (v2.TrivialAugmentWide(interpolation=BILINEAR), wide_space(31), 31),
}
# Whole pixels at every magnitude: v2 cuts shifts to these, ours are parts of the side at any resolution.
SHIFTS = {
    "rand_augment": (SPACES["rand_augment"][0], rand_augment_space(), 31, 331),
    "trivial_augment": (SPACES["trivial_augment"][0], wide_space(33), 33, 224),
}
OPERATIONS = tuple(v2.RandAugment._AUGMENTATION_SPACE)
TRANSLATIONS = ("TranslateX", "TranslateY")


def _magnitudes(transform, operation: str, bins: int, size: int) -> list[float]:
    """V2's magnitudes of an operation, positive ones and, where it has signs, then the negative ones."""
    magnitudes, signed = transform._AUGMENTATION_SPACE[operation]
    drawn = magnitudes(bins, size, size)
    values = [0.0] * bins if drawn is None else [float(value) for value in drawn]
    return values + [-value if signed else value for value in values]


def _of_space(space, operation: str, images: Tensor):
    """Yield images done at every magnitude: positive ones first."""
    index = OPERATIONS.index(operation)
    for sign in (0, 1):
        for operands in space.operands[index, :, sign]:
            values = torch.from_numpy(np.repeat(operands[None], len(images), axis=0))
            op = Op(int(space.ops[index]))
            yield images if op is Op.NOTHING else KERNELS[op](images, values)


def test_the_operations_are_torchvisions_in_its_order():
    assert tuple(v2.TrivialAugmentWide._AUGMENTATION_SPACE) == OPERATIONS
    assert len(OPERATIONS) == 14


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name not in TRANSLATIONS])
@pytest.mark.parametrize("name", SPACES)
def test_every_magnitude_of_an_operation_is_within_one_level_of_v2s(name, operation):
    transform, space, bins = SPACES[name]
    images = pictures(33, 3)[[0, 1, 3, 4, 12]]
    magnitudes = _magnitudes(transform, operation, bins, 33)
    if operation == "Solarize":
        # V2's thresholds of 119, 102 and 51 are some 1e-5 higher in float32; see the test of thresholds.
        magnitudes = [math.ceil(255 * value - 1e-4) / 255 for value in magnitudes]
    for magnitude, ours in zip(magnitudes, _of_space(space, operation, images), strict=True):
        theirs = transform._apply_image_or_video_transform(
            images.permute(0, 3, 1, 2), operation, magnitude, BILINEAR, transform._fill
        )
        assert _difference(ours, theirs.permute(0, 2, 3, 1)) <= 1, magnitude


@pytest.mark.parametrize("operation", TRANSLATIONS)
@pytest.mark.parametrize("name", SHIFTS)
def test_shifts_of_whole_pixels_are_v2s(name, operation):
    transform, space, bins, size = SHIFTS[name]
    images = pictures(size, 1)[:1]
    magnitudes = _magnitudes(transform, operation, bins, size)
    for magnitude, ours in zip(magnitudes, _of_space(space, operation, images), strict=True):
        # Beside the truth by a float32's last bit, which v2's cut to whole pixels would make a pixel.
        assert abs(magnitude - round(magnitude)) < 1e-4
        theirs = transform._apply_image_or_video_transform(
            images.permute(0, 3, 1, 2), operation, float(round(magnitude)), BILINEAR, transform._fill
        )
        assert torch.equal(ours, theirs.permute(0, 2, 3, 1)), magnitude


@pytest.mark.parametrize("operation", TRANSLATIONS)
@pytest.mark.parametrize("name", SPACES)
def test_shifts_of_parts_of_pixels_are_v2s_affine_of_the_magnitude(name, operation):
    transform, space, bins = SPACES[name]
    images = pictures(33, 3)[:4]
    magnitudes = _magnitudes(transform, operation, bins, 33)
    if name == "trivial_augment":
        magnitudes = [value * 33 / 224 for value in magnitudes]
    for magnitude, ours in zip(magnitudes, _of_space(space, operation, images), strict=True):
        shift = [magnitude, 0.0] if operation == "TranslateX" else [0.0, magnitude]
        theirs = v2.functional.affine(images.permute(0, 3, 1, 2), 0.0, shift, 1.0, [0.0, 0.0], BILINEAR)
        assert _difference(ours, theirs.permute(0, 2, 3, 1)) <= 1, magnitude


@pytest.mark.parametrize("bins", [2, 10, 16, 31, 52, 101, 256])
def test_thresholds_and_bits_are_torchvisions_at_every_number_of_magnitudes(bins):
    """Thresholds are exact: 255 times the magnitude, upwards; v2's float32 is up to 2e-5 beside that."""
    space, transform = wide_space(bins), v2.TrivialAugmentWide
    thresholds = space.operands[OPERATIONS.index("Solarize"), :, 0, 0]
    exact = [-(-255 * (bins - 1 - magnitude) // (bins - 1)) for magnitude in range(bins)]
    assert thresholds.tolist() == exact
    theirs = np.array(_magnitudes(transform, "Solarize", bins, 1)[:bins]) * 255
    assert np.array_equal(np.ceil(theirs - 1e-4), thresholds)
    bits = space.operands[OPERATIONS.index("Posterize"), :, 0, 0]
    assert bits.tolist() == _magnitudes(transform, "Posterize", bins, 1)[:bins]
