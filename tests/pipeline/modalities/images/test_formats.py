"""Every format by one rule: upright, the first picture, 8 bits, and bounded before it is decoded."""

from __future__ import annotations

import io
import runpy
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from pipeline.core.errors import DataError
from pipeline.modalities.images import formats
from pipeline.modalities.images.decoding import ImageFile, decode, is_deep, stored_size
from pipeline.modalities.images.formats import first_picture, orientation_of, upright

HERE = Path("x")
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
RED = Image.new("RGB", (32, 24), "red")
FORMATS = {
    "jpeg": ("JPEG", {"quality": 98, "subsampling": 0}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {"lossless": True}),
    "tiff": ("TIFF", {}),
    "tiff-packed": ("TIFF", {"compression": "tiff_lzw"}),
    "animated-webp": ("WEBP", {"lossless": True, "save_all": True}),
    **({"avif": ("AVIF", {"quality": 100, "subsampling": "4:4:4"})} if features.check("avif") else {}),
}


@pytest.fixture
def picture() -> Image.Image:
    """24 rows of 32 pixels with another grey level in each quarter."""
    quarters = np.array([[0, 80], [160, 240]], np.uint8).repeat(12, 0).repeat(16, 1)
    return Image.fromarray(np.stack([quarters] * 3, 2))


def encode(image: Image.Image, kind: str, **options) -> np.ndarray:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return np.frombuffer(bytearray(buffer.getvalue()), np.uint8)


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_turned_as_its_exif_says(picture, name, orientation, channels):
    kind, options = FORMATS[name]
    stored = picture.transpose(TURNS[orientation])
    if "save_all" in options:
        options = {**options, "append_images": [Image.new("RGB", stored.size, "red")]}
    content = encode(stored, kind, exif=exif(orientation), **options)
    pixels = decode(content, channels, HERE)
    assert pixels.shape == (24, 32, channels)
    assert np.abs(pixels.astype(int) - np.asarray(picture)[..., :1]).max() < 6


@pytest.mark.parametrize("orientation", [1, *TURNS])
def test_turning_is_that_of_pillow(picture, orientation):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8))
    expected = image.transpose(TURNS[orientation]) if orientation > 1 else image
    back = {6: 8, 8: 6}.get(orientation, orientation)
    assert np.array_equal(upright(np.asarray(image), back), np.asarray(expected))


@pytest.mark.parametrize("cut", range(27))
def test_exif_that_is_cut_states_nothing(cut):
    block = b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"
    assert orientation_of(block) == orientation_of(b"Exif\0\0" + block) == 6
    assert orientation_of(block[:cut]) in (1, 6)
    assert orientation_of(block.replace(b"\6", b"\x0c")) == 1
    assert orientation_of(struct.pack("<4sI", b"II*\0", 2**32 - 1)) == 1


@pytest.mark.parametrize("suffix", [".bmp", ".tif", ".ppm", ".pgm", ".jp2", ".jfif", ".jpe"])
def test_formats_without_exif_keep_their_pixels(tmp_path, picture, suffix):
    (picture.convert("L") if suffix == ".pgm" else picture).save(tmp_path / f"x{suffix}")
    pixels = ImageFile(tmp_path / f"x{suffix}", 3)()
    assert np.abs(pixels.astype(int) - np.asarray(picture)).max() < 12


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_first_picture_of_an_animation_counts(picture, kind, channels):
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encode(picture, kind, save_all=True, append_images=[RED, RED], **options)
    pixels = decode(content, channels, HERE)
    assert np.abs(pixels.astype(int) - np.asarray(picture)[..., :channels]).max() <= 1


def test_of_a_gif_only_the_first_picture_is_unpacked(picture):
    moving = encode(picture, "GIF", save_all=True, append_images=[RED] * 9).tobytes()
    still = encode(picture, "GIF").tobytes()
    beginning = first_picture(moving)
    assert beginning.shape == (24, 32)
    assert len(beginning.content) < len(still) + 60 < len(moving)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1"])
@pytest.mark.parametrize("kind", ["WEBP", "PNG", "TIFF", "GIF"])
def test_alpha_is_dropped_in_colour_and_in_grey(picture, kind, mode, capfd):
    content = encode(picture.convert(mode), kind)
    colour, grey = decode(content, 3, HERE), decode(content, 1, HERE)
    assert (colour.shape, grey.shape) == ((24, 32, 3), (24, 32, 1))
    assert np.abs(grey[..., 0].astype(int) - np.asarray(Image.fromarray(colour).convert("L"))).max() < 3
    assert capfd.readouterr().err == ""


def _deep(levels: np.ndarray) -> Image.Image:
    return Image.fromarray(levels.astype(np.uint16))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_of_sixteen_bits_the_upper_eight_are_kept(kind):
    levels = np.linspace(0, 65535, 40)[None].repeat(8, 0)
    content = encode(_deep(levels), kind)
    assert is_deep(content)
    for channels in (1, 3):
        expected = (levels.astype(np.uint16) >> 8)[..., None].repeat(channels, 2)
        assert np.array_equal(decode(content, channels, HERE), expected)


def test_a_tiff_whose_white_is_zero_is_turned_to_light(picture):
    """Of 16 bits as of 8, as X-rays are stored; Pillow turns those of 8 alone."""
    grey = np.asarray(picture.convert("L"))
    content = encode(_deep(65535 - grey.astype(np.uint16) * 257), "TIFF").tobytes()
    photometric = struct.pack("<HHI", 262, 3, 1)
    assert content.count(photometric + b"\1\0") == 1
    turned = np.frombuffer(content.replace(photometric + b"\1\0", photometric + b"\0\0"), np.uint8)
    assert np.array_equal(decode(turned, 1, HERE)[..., 0], grey)


def test_colour_of_sixteen_bits_in_a_tiff_is_deep():
    """So that pictures of 12 bits in it are told; Pillow opens it as colour of 8 bits."""
    plain = encode(Image.new("RGB", (4, 4), (1, 2, 3)), "TIFF").tobytes()
    bits, at = struct.pack("<3H", 8, 8, 8), plain.rindex(struct.pack("<3H", 8, 8, 8))
    deep = plain[:at] + struct.pack("<3H", 16, 16, 16) + plain[at + len(bits) :]
    assert not is_deep(np.frombuffer(plain, np.uint8))
    assert is_deep(np.frombuffer(deep, np.uint8))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_samples_of_thirty_two_bits_are_refused(picture, mode):
    with pytest.raises(DataError, match="samples of 32 bits, expected 8 or 16"):
        decode(encode(picture.convert(mode), "TIFF"), 3, HERE)


# Bounds


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")


def _forged(picture: Image.Image, kind: str) -> bytes:
    """A small file whose header says 60,000 x 60,000 (WebP 16,383, the most it can)."""
    large = 60_000
    content = bytearray(encode(picture, kind).tobytes())
    if kind == "PNG":
        return _png(large, large)
    if kind == "JPEG":
        place = content.index(b"\xff\xc0") + 5
        content[place : place + 4] = struct.pack(">HH", large, large)
    elif kind == "GIF":
        content[6:10] = struct.pack("<HH", large, large)
    elif kind == "BMP":
        content[18:26] = struct.pack("<ii", large, large)
    elif kind == "PPM":
        return content.replace(b"32 24", b"60000 60000", 1)
    elif kind == "WEBP":
        content[26:30] = struct.pack("<HH", 16383, 16383)
    return bytes(content)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "PPM", "WEBP"])
def test_a_header_of_too_many_pixels_is_refused_before_decoding(tmp_path, picture, kind):
    path = tmp_path / "bomb.jpg"
    path.write_bytes(_forged(picture, kind))
    with pytest.raises(DataError, match=r"bomb.jpg: [\d,]+x[\d,]+ pixels, .* raise data.max_pixels"):
        ImageFile(path, 3)()


def test_a_picture_of_a_gif_that_is_larger_than_its_screen_counts(tmp_path, picture):
    content = bytearray(encode(picture, "GIF").tobytes())
    place = content.index(b",\0\0\0\0\x20\0\x18\0")
    content[place + 5 : place + 9] = struct.pack("<HH", 60_000, 60_000)
    assert stored_size(np.frombuffer(content, np.uint8)) == (60_000, 60_000)


def test_filling_bytes_and_junk_before_the_frame_hide_no_size(picture):
    plain = encode(picture, "JPEG").tobytes()
    for hidden in (b"\xff\xff\xff", b"\xff\x01", b"junk", b"\0\0\xff\0"):
        content = plain[:2] + hidden + plain[2:]
        assert stored_size(np.frombuffer(content, np.uint8)) == (24, 32)


def test_the_bound_is_a_parameter(tmp_path, picture):
    picture.save(tmp_path / "x.png")
    assert ImageFile(tmp_path / "x.png", 3, max_pixels=32 * 24)().shape == (24, 32, 3)
    with pytest.raises(
        DataError, match="32x24 pixels, according to its header; expected at most 767 in total"
    ):
        ImageFile(tmp_path / "x.png", 3, max_pixels=32 * 24 - 1)()


# Damage of every kind


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF"])
def test_bytes_that_are_wrong_anywhere_are_an_image_or_an_error_of_ours(picture, kind):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("no AVIF here")
    content = encode(picture, kind)
    generator, refused = np.random.default_rng(0), 0
    for _ in range(60):
        wrong = content.copy()
        places = generator.integers(0, len(wrong), 4)
        wrong[places] = generator.integers(0, 256, 4)
        wrong = wrong[: generator.integers(1, len(wrong) + 1)] if generator.random() < 0.5 else wrong
        try:
            size = stored_size(wrong)
            if size is None or size[0] * size[1] < 1 << 20:
                decode(wrong, 3, HERE)
        except DataError:
            refused += 1
    assert refused


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "0 bytes: an empty file"),
        (b"<html>404</html>", "text starting with <"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC, which no installed decoder can read"),
        (b"hello, world", "unknown file format"),
    ],
)
def test_what_is_no_image_is_refused_in_plain_words(content, words):
    with pytest.raises(DataError, match=words):
        decode(np.frombuffer(bytearray(content), np.uint8), 3, HERE)


def test_a_pillow_that_does_not_know_avif_is_not_asked_for_it(monkeypatch):
    """It would warn at every command."""
    monkeypatch.delitem(features.modules, "avif", raising=False)
    assert runpy.run_path(formats.__file__)["HAS_AVIF"] is False
