"""Formats decoded by Pillow, and facts from headers: shapes, animations, orientation.

The signature of the bytes selects one of the listed formats; Pillow knows more, and some run programs.
Images have 8 or 16 bits per sample. Of 16 bits the upper 8 are kept, as for a PNG.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

JPEG, PNG, RIFF, WEBP = b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"RIFF", b"WEBP"
GIF = b"GIF87a", b"GIF89a"
# JPEG (ITU-T T.81, table B.1): SOF0 to SOF15 without DHT, JPG and DAC; then the scan, where headers end.
_FRAMES = {*range(0xFFC0, 0xFFD0)} - {0xFFC4, 0xFFC8, 0xFFCC}
_SCAN, _END = 0xFFDA, 0xFFD9
_WITH_LENGTH = {*_FRAMES, 0xFFC4, 0xFFC8, 0xFFCC, *range(0xFFDB, 0xFFF0), 0xFFFE}
# TEM and RST0 to RST7 have no length. Like libjpeg, skip other bytes before a marker, and fill bytes 0xFF.
_ALONE = {0xFF01, *range(0xFFD0, 0xFFD9)}
_MARKER = re.compile(rb"\xff+([^\x00\xff])", re.DOTALL)
# An EXIF entry for a quarter turn: tag 0x0112, type and count, 5 to 8; in either byte order.
_TURNED = re.compile(rb"\x12\x01.{6}[\x05-\x08]\x00|\x01\x12.{6}\x00[\x05-\x08]", re.DOTALL)
_DEEP = 16  # bits per sample of a PNG

Shape = tuple[int, int]
_HEADER_BYTES = 13
_TRAILER, _EXTENSION, _IMAGE = b";", b"!", b","
_ANIMATION = 0x02  # flag of VP8X (RFC 9649)
UPRIGHT = 1
_ORIENTATION, _SHORT = 0x0112, 3
_PREFIX = b"Exif\0\0"
_ENTRY_BYTES = 12
_SIGNATURES: tuple[tuple[bytes, Callable[..., ImageFile]], ...] = (
    (b"BM", BmpImageFile),
    *((start, TiffImageFile) for start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    *((b"P%d" % kind, PpmImageFile) for kind in range(1, 7)),
    (b"\0\0\0\x0cjP  \r\n\x87\n", Jpeg2KImageFile),
    (b"\xff\x4f\xff\x51", Jpeg2KImageFile),
)
_AVIF_BRANDS = (b"avif", b"avis")
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_LARGEST = 0xFFFF  # largest value of 16 bits
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF 6.0, and a value
# Pillow before 11.2 does not know this feature and warns about it.
HAS_AVIF = "avif" in features.modules and bool(features.check("avif"))


def header_shape(content: bytes) -> Shape | None:
    """Return height and width in pixels after decoding, or None if only decoding can tell.

    Given for upright JPEG and PNG with an unambiguous header.
    """
    try:
        if content.startswith(JPEG):
            return _jpeg_shape(content)
        return _png_shape(content) if content.startswith(PNG) else None
    except struct.error:  # the header is cut off
        return None


def stored_shape(content: bytes) -> Shape | None:
    """Return height and width as stored, not rotated, or None for other formats and broken headers.

    This is the size that a decoder would unpack. JPEG, PNG, GIF and WebP are read as leniently as decoders
    do. Pillow reads more, but finds EXIF in places that the decoder ignores, and warns about odd blocks.
    """
    try:
        if content.startswith(JPEG):
            return _stored_jpeg(content)
        if content.startswith(PNG):
            width, height = struct.unpack_from(">II", content, 16)
            return height, width
        if content.startswith(GIF):
            width, height = struct.unpack_from("<HH", content, 6)
            return height, width
        return _stored_webp(content) if is_webp(content) else None
    except struct.error:
        return None


def is_webp(content: bytes) -> bool:
    """Whether a file is WebP."""
    return content.startswith(RIFF) and content[8:12] == WEBP


def is_deep_png(content: bytes) -> bool:
    """Whether a file is a PNG with 16 bits per sample."""
    return content.startswith(PNG) and content[24:25] == bytes([_DEEP])


def _jpeg_shape(content: bytes) -> Shape | None:
    shape, place = (0, 0), len(JPEG)
    while True:
        marker, length = struct.unpack_from(">HH", content, place)
        if marker == _SCAN:
            return shape if all(shape) and not _TURNED.search(content, 0, place) else None
        if marker not in _WITH_LENGTH:
            return None
        if marker in _FRAMES:
            shape = struct.unpack_from(">HH", content, place + 5)
        place += 2 + length


def _stored_jpeg(content: bytes) -> Shape | None:
    place = len(JPEG)
    while (found := _MARKER.search(content, place)) is not None:
        marker = 0xFF00 | found[1][0]
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", content, found.end() + 3)
            return height, width
        if marker in (_SCAN, _END):
            return None
        place = found.end()
        if marker not in _ALONE:
            place += max(2, *struct.unpack_from(">H", content, place))
    return None


def _png_shape(content: bytes) -> Shape | None:
    width, height = struct.unpack_from(">II", content, 16)
    place = len(PNG)
    while True:
        length, kind = struct.unpack_from(">I4s", content, place)
        if kind == b"IDAT":
            return None if _TURNED.search(content, 0, place) else (height, width)
        place += 12 + length


def _stored_webp(content: bytes) -> Shape | None:
    """Read the canvas of the extended format, or the frame of a simple one (RFC 9649)."""
    kind = content[12:16]
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(content[place : place + 3], "little") for place in (24, 27))
        return height, width
    if kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", content, 26))
        return height, width
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", content, 21)
        return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
    return None


@dataclass(frozen=True, slots=True)
class FirstPicture:
    """The start of a GIF.

    Args:
        content: the file, cut behind its first picture.
        shape: height and width of that picture, possibly larger than the screen's.
    """

    content: bytes
    shape: Shape


def first_picture(content: bytes) -> FirstPicture:
    """Cut a GIF behind its first picture (GIF89a, sections 17 to 27), so that no other is decoded.

    Raises:
        ValueError: the file is cut off, or is damaged between its pictures.
    """
    place = _HEADER_BYTES + _table_bytes(content, 10)
    while content[place : place + 1] == _EXTENSION:
        place = _behind_blocks(content, place + 2)
    if content[place : place + 1] != _IMAGE or not _is_whole(content, place):
        raise ValueError("a GIF that is truncated, or damaged between its frames")
    width, height = (int.from_bytes(content[p : p + 2], "little") for p in (place + 5, place + 7))
    return FirstPicture(content[: _behind_picture(content, place)] + _TRAILER, (height, width))


def _is_whole(content: bytes, place: int) -> bool:
    """Whether a sequence of pictures runs from an offset to the trailer."""
    while (kind := content[place : place + 1]) != _TRAILER:
        if kind == _EXTENSION:
            place = _behind_blocks(content, place + 2)
        elif kind == _IMAGE:
            place = _behind_picture(content, place)
        else:
            return False
    return True


def is_animated_webp(content: bytes) -> bool:
    """Whether a file is a WebP with several pictures."""
    return (
        is_webp(content)
        and content[12:16] == b"VP8X"
        and len(content) > 20
        and bool(content[20] & _ANIMATION)
    )


def _behind_picture(content: bytes, place: int) -> int:
    return _behind_blocks(content, place + 11 + _table_bytes(content, place + 9))


def _table_bytes(content: bytes, place: int) -> int:
    """Return the size of the colour table, from the packed flags at an offset."""
    flags = content[place] if place < len(content) else 0
    return 3 * 2 ** ((flags & 0x07) + 1) if flags & 0x80 else 0


def _behind_blocks(content: bytes, place: int) -> int:
    """Return the end of a chain of sub-blocks, each preceded by its length."""
    while place < len(content) and content[place]:
        place += 1 + content[place]
    return place + 1


def orientation_of(exif: bytes) -> int:
    """Return the orientation in an EXIF block, 1 to 8; 1 if there is none.

    One rule for all formats and sources: EXIF's orientation (tag 0x0112, CIPA DC-008) counts, in any place
    that a format keeps EXIF; XMP does not count. An unreadable orientation counts as none.
    """
    block = exif.removeprefix(_PREFIX)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        return UPRIGHT
    try:
        (directory,) = struct.unpack_from(f"{order}I", block, 4)
        (entries,) = struct.unpack_from(f"{order}H", block, directory)
        for entry in range(entries):
            place = directory + 2 + _ENTRY_BYTES * entry
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", block, place)
            if (tag, kind) == (_ORIENTATION, _SHORT):
                return value if 1 <= value <= 8 else UPRIGHT
    except struct.error:  # the block is cut off
        pass
    return UPRIGHT


def webp_exif(content: bytes) -> bytes:
    """Return the EXIF block of a WebP file, or empty bytes."""
    place, end = 12, len(content)
    while is_webp(content) and place + 8 <= end:
        kind, length = struct.unpack_from("<4sI", content, place)
        if kind == b"EXIF":
            return content[place + 8 : place + 8 + length]
        place += 8 + length + length % 2
    return b""


def upright(image_HWC: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Rotate and mirror an image (H, W, C) by its orientation, to a contiguous array."""
    image = np.swapaxes(image_HWC, 0, 1) if orientation >= 5 else image_HWC
    # After a transposition, 6 and 7 are mirrored left to right, 7 and 8 upside down.
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


def opener_of(content: bytes) -> Callable[..., ImageFile] | None:
    """Return Pillow's opener of these bytes, or None for a format outside this module."""
    if content[4:8] == b"ftyp":
        return _avif_opener() if _is_avif(content) else None
    if is_animated_webp(content):
        return WebPImageFile
    return next((opener for start, opener in _SIGNATURES if content.startswith(start)), None)


def opened_shape(content: bytes) -> Shape:
    """Return height and width as stored, without decoding.

    Raises:
        ValueError: a format outside this module. Pillow raises other errors for damaged headers.
    """
    shape = stored_shape(content)  # because Pillow allocates a whole WebP on opening
    if shape is not None:
        return shape
    width, height = _opened(content).size
    return height, width


def opened_deep(content: bytes) -> bool:
    """Whether these bytes have more than 8 bits per sample, according to the header."""
    image = _opened(content)
    if isinstance(image, TiffImageFile):  # Pillow opens 16-bit colour as 8-bit
        return bool(max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,))) > 8)
    return image.mode.startswith("I")


def decode_by_pillow(content: bytes, channels: int) -> NDArray[np.uint8]:
    """Return the pixels (H, W, C) of the first picture, oriented according to EXIF.

    Raises:
        ValueError: a format outside this module, or samples of neither 8 nor 16 bits. Pillow raises other
            errors for damaged bytes.
    """
    image = _opened(content)
    image.load()
    if isinstance(image, TiffImageFile):  # Pillow has oriented it
        if image.mode == "I":
            raise ValueError("samples of 32 bits, expected 8 or 16")
        pixels = image_pixels(image, channels)
        # Pillow inverts white-is-zero for 8 bits, but not for 16.
        inverted = image.mode.startswith("I") and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
        return ~pixels if inverted else pixels
    exif = webp_exif(content) or image.info.get("exif", b"")
    return upright(image_pixels(image, channels), orientation_of(exif))


def image_pixels(image: Image.Image, channels: int) -> NDArray[np.uint8]:
    """Return the pixels (H, W, C) of a Pillow image, as stored.

    Raises:
        ValueError: samples of neither 8 nor 16 bits.
    """
    if image.mode.startswith(("I", "F")):
        grey = _eight_bits(np.asarray(image), image.mode)
        return np.repeat(grey[..., None], channels, axis=2)
    pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"), np.uint8)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def reason_against(content: bytes) -> str:
    """Explain why bytes without a known signature are not an image."""
    if not content:
        return "an empty file"
    if _is_avif(content):
        return "AVIF, which the installed Pillow cannot decode"
    if content[4:8] == b"ftyp" and content[8:12] in _HEIC_BRANDS:
        return "HEIC, which no installed decoder can read"
    if content.lstrip()[:1] == b"<":
        return "text starting with <, e.g. a web page"
    return "unknown file format"


def _opened(content: bytes) -> ImageFile:
    opener = opener_of(content)
    if opener is None:
        raise ValueError(reason_against(content))
    # Not Image.open: it limits pixels by a global variable; here `data.max_pixels` does.
    return opener(io.BytesIO(content))


def _avif_opener() -> Callable[..., ImageFile] | None:
    if not HAS_AVIF:
        return None
    from PIL.AvifImagePlugin import AvifImageFile

    return AvifImageFile


def _is_avif(content: bytes) -> bool:
    """Whether the brands of an ISO base media file include AVIF."""
    if content[4:8] != b"ftyp":
        return False
    length = int.from_bytes(content[:4], "big")
    brands = [content[8:12], *(content[place : place + 4] for place in range(16, min(length, 256), 4))]
    return any(brand in _AVIF_BRANDS for brand in brands)


def _eight_bits(samples: NDArray[Any], mode: str) -> NDArray[np.uint8]:
    if mode == "F" or samples.min(initial=0) < 0 or samples.max(initial=0) > _LARGEST:
        raise ValueError("samples of 32 bits, expected 8 or 16")
    return (samples.astype(np.uint16) >> 8).astype(np.uint8)
