"""How large an image will be, by its header alone.

Only what the header leaves no doubt of: JPEG and PNG, upright. Pillow reads more, but finds EXIF where the
decoder does not look for it, and warns of every odd one.
"""

from __future__ import annotations

import re
import struct

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
# JPEG (ITU-T T.81, table B.1): SOF0 to SOF15 but for DHT, JPG and DAC; then the scan, where headers end.
_FRAMES = {*range(0xFFC0, 0xFFD0)} - {0xFFC4, 0xFFC8, 0xFFCC}
_SCAN = 0xFFDA
_WITH_LENGTH = {*_FRAMES, 0xFFC4, 0xFFC8, 0xFFCC, *range(0xFFDB, 0xFFF0), 0xFFFE}
# An EXIF entry that turns by a quarter: tag 0x0112, type and count, 5 to 8; in either order of bytes.
_TURNED = re.compile(rb"\x12\x01.{6}[\x05-\x08]\x00|\x01\x12.{6}\x00[\x05-\x08]", re.DOTALL)

Shape = tuple[int, int]


def header_shape(content: bytes) -> Shape | None:
    """Return height and width in pixels, or None where only decoding can tell."""
    try:
        if content.startswith(_JPEG):
            return _jpeg_shape(content)
        return _png_shape(content) if content.startswith(_PNG) else None
    except struct.error:  # it ends in the middle of the header
        return None


def _jpeg_shape(content: bytes) -> Shape | None:
    shape, place = (0, 0), len(_JPEG)
    while True:
        marker, length = struct.unpack_from(">HH", content, place)
        if marker == _SCAN:
            return shape if all(shape) and not _TURNED.search(content, 0, place) else None
        if marker not in _WITH_LENGTH:
            return None
        if marker in _FRAMES:
            shape = struct.unpack_from(">HH", content, place + 5)
        place += 2 + length


def _png_shape(content: bytes) -> Shape | None:
    width, height = struct.unpack_from(">II", content, 16)
    place = len(_PNG)
    while True:
        length, kind = struct.unpack_from(">I4s", content, place)
        if kind == b"IDAT":
            return None if _TURNED.search(content, 0, place) else (height, width)
        place += 12 + length
