"""How large an image will be, by its header alone.

`header_shape` tells the shape of what is decoded, where the header leaves no doubt of it: JPEG and PNG,
upright. `stored_shape` tells how much a decoder would unpack, read as leniently as decoders do: JPEG,
PNG, GIF, WebP. Pillow reads more, but finds EXIF where the decoder does not look for it, and warns of every
odd one.
"""

from __future__ import annotations

import re
import struct

JPEG, PNG, RIFF, WEBP = b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"RIFF", b"WEBP"
GIF = b"GIF87a", b"GIF89a"
# JPEG (ITU-T T.81, table B.1): SOF0 to SOF15 but for DHT, JPG and DAC; then the scan, where headers end.
_FRAMES = {*range(0xFFC0, 0xFFD0)} - {0xFFC4, 0xFFC8, 0xFFCC}
_SCAN, _END = 0xFFDA, 0xFFD9
_WITH_LENGTH = {*_FRAMES, 0xFFC4, 0xFFC8, 0xFFCC, *range(0xFFDB, 0xFFF0), 0xFFFE}
# TEM and RST0 to RST7 stand alone; libjpeg passes over bytes that are no marker, and over filling 0xFF.
_ALONE = {0xFF01, *range(0xFFD0, 0xFFD9)}
_MARKER = re.compile(rb"\xff+([^\x00\xff])", re.DOTALL)
# An EXIF entry that turns by a quarter: tag 0x0112, type and count, 5 to 8; in either order of bytes.
_TURNED = re.compile(rb"\x12\x01.{6}[\x05-\x08]\x00|\x01\x12.{6}\x00[\x05-\x08]", re.DOTALL)
_DEEP = 16  # bits a sample of a PNG

Shape = tuple[int, int]


def header_shape(content: bytes) -> Shape | None:
    """Return height and width in pixels, or None where only decoding can tell."""
    try:
        if content.startswith(JPEG):
            return _jpeg_shape(content)
        return _png_shape(content) if content.startswith(PNG) else None
    except struct.error:  # it ends in the middle of the header
        return None


def stored_shape(content: bytes) -> Shape | None:
    """Return height and width as stored, not turned, or None for other formats and broken headers."""
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
    """Whether a file is a PNG of 16 bits a sample."""
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
