"""What a header says of an image is what the decoder makes of it; and shrinking."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from pipeline.core.errors import DataError
from pipeline.modalities.images import decoding
from pipeline.modalities.images.decoding import (
    decode,
    header_size,
    image_shape,
    read_file,
    shrink,
    shrunk_shape,
)


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 32, 3)).astype(np.uint8))


@pytest.fixture
def fails_to_decode(monkeypatch) -> None:
    def refuse(*arguments):
        raise AssertionError("decoded")

    monkeypatch.setattr(decoding, "decode", refuse)


def _shapes(path: Path, channels: int = 3) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """By the header, and decoded."""
    content = read_file(path)
    return image_shape(content, channels, path), decode(content, channels, path).shape[:2]


@pytest.mark.parametrize("orientation", [None, *range(10)])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_exif_turns_the_shape_as_it_turns_the_pixels(tmp_path, picture, suffix, orientation):
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    exif[0x010F] = "maker"
    picture.save(tmp_path / f"x.{suffix}", exif=exif)
    by_header, decoded = _shapes(tmp_path / f"x.{suffix}")
    assert by_header == decoded


@pytest.mark.parametrize("orientation", [None, 1, 3])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("progressive", [False, True])
def test_the_header_is_enough(tmp_path, picture, fails_to_decode, suffix, orientation, progressive):
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    picture.save(tmp_path / f"x.{suffix}", exif=exif, progressive=progressive)
    assert image_shape(read_file(tmp_path / f"x.{suffix}"), 3, tmp_path) == (20, 32)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_every_kind_of_png_has_its_shape_in_the_header(tmp_path, picture, mode):
    image = Image.fromarray(np.zeros((20, 32), np.uint16)) if mode == "I;16" else picture.convert(mode)
    image.save(tmp_path / "x.png")
    assert _shapes(tmp_path / "x.png") == ((20, 32), (20, 32))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_every_kind_of_jpeg_has_its_shape_in_the_header(tmp_path, picture, mode):
    picture.convert(mode).save(tmp_path / "x.jpg")
    assert _shapes(tmp_path / "x.jpg") == ((20, 32), (20, 32))


def _segment(content: bytes) -> bytes:
    return b"\xff\xe1" + (len(content) + 2).to_bytes(2, "big") + content


EMPTY = b"Exif\0\0II*\0\x08\0\0\0"
TURNED = b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
XMP = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/>'


@pytest.mark.parametrize(
    "segments",
    [
        [XMP],
        [TURNED],
        [XMP, TURNED],
        [TURNED, XMP],
        [TURNED[:20]],
        [TURNED[:-6]],
        [EMPTY],
    ],
    ids=["xmp", "turned", "xmp-first", "xmp-last", "cut", "without-next", "empty"],
)
def test_odd_exif_is_read_as_the_decoder_reads_it(tmp_path, picture, segments):
    picture.save(tmp_path / "plain.jpg")
    plain = (tmp_path / "plain.jpg").read_bytes()
    path = tmp_path / "x.jpg"
    path.write_bytes(plain[:2] + b"".join(map(_segment, segments)) + plain[2:])
    by_header, decoded = _shapes(path)
    assert by_header == decoded
    assert decoded == (32, 20) or segments[0] != TURNED


def test_an_animation_is_decoded_for_its_shape(tmp_path, picture):
    picture.save(tmp_path / "x.gif", save_all=True, append_images=[picture])
    assert _shapes(tmp_path / "x.gif") == ((20, 32), (20, 32))


@pytest.mark.parametrize("content", [b"", b"no picture", b"\xff\xd8\xff\xff\xff\xff"])
def test_what_has_no_header_is_refused_as_the_decoder_refuses_it(tmp_path, content):
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"x.jpg: not a readable image \({len(content)} bytes"):
        image_shape(read_file(path), 3, path)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_header_that_is_cut_anywhere_is_refused(tmp_path, picture, suffix):
    path = tmp_path / f"x.{suffix}"
    picture.save(path)
    content = read_file(path)
    for kept in range(40):
        with pytest.raises(DataError, match=rf"x.{suffix}: not a readable image \({kept} bytes?:"):
            image_shape(content[:kept], 3, path)


def test_a_file_that_is_gone_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"x.jpg: not a readable image \(gone\)"):
        read_file(tmp_path / "x.jpg")


# Shrinking


@pytest.mark.parametrize(
    ("shape", "short_side", "expected"),
    [
        ((375, 500), 256, (256, 341)),  # 341.33
        ((500, 375), 256, (341, 256)),
        ((333, 500), 256, (256, 384)),  # 384.38
        ((300, 401), 200, (200, 267)),  # 267.33
        ((64, 99), 32, (32, 50)),  # 49.5 goes up
        ((300, 300), 16, (16, 16)),
        ((17, 4000), 16, (16, 3765)),  # 3764.7
        ((256, 4000), 256, (256, 4000)),
        ((10, 4000), 256, (10, 4000)),
        ((375, 500), None, (375, 500)),
    ],
)
def test_the_shorter_side_is_the_cap_and_the_longer_keeps_the_aspect(shape, short_side, expected):
    assert shrunk_shape(*shape, short_side) == expected


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(61, 97), (97, 61), (33, 200), (64, 64), (32, 90), (20, 90)])
def test_pixels_are_those_of_torchvisions_resize(random_image, shape, channels):
    image = random_image(*shape, channels)
    image.flags.writeable = False
    found = shrink(image, 32)
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).contiguous()
    expected = v2.functional.resize(pixels, list(shrunk_shape(*shape, 32)), antialias=True)
    assert np.array_equal(found, expected.permute(1, 2, 0).numpy())


def test_a_smaller_image_is_left_alone(random_image):
    image = random_image(20, 90)
    assert shrink(image, 32) is image
    assert shrink(image, None) is image


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tif", "ppm"])
def test_the_size_is_told_without_decoding(tmp_path, picture, fails_to_decode, suffix):
    picture.save(path := tmp_path / f"x.{suffix}")
    assert header_size(path) == (20, 32)


def test_the_size_is_told_by_the_first_bytes_of_a_large_file(tmp_path, picture):
    picture.save(path := tmp_path / "x.jpg")
    content = path.read_bytes()
    path.write_bytes(content + bytes(1 << 20))
    assert header_size(path) == (20, 32)
    exif = b"".join(b"\xff\xe1\xff\xff" + bytes(65_533) for _ in range(8))  # 512 KiB before the frame
    path.write_bytes(content[:2] + exif + content[2:])
    assert header_size(path) == (20, 32)


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8\xff"])
def test_no_size_is_told_of_what_has_no_header(tmp_path, content):
    (tmp_path / "x.jpg").write_bytes(content)
    assert header_size(tmp_path / "x.jpg") is None
    assert header_size(tmp_path / "none.jpg") is None
