"""Turning an image upright: the one rule for all formats and sources.

EXIF's orientation (tag 0x0112, CIPA DC-008) counts, wherever a format keeps its EXIF; XMP does not. An
orientation that cannot be read is none.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.headers import is_webp

UPRIGHT = 1
_ORIENTATION, _SHORT = 0x0112, 3
_PREFIX = b"Exif\0\0"
_ENTRY_BYTES = 12


def orientation_of(exif: bytes) -> int:
    """Return the orientation, 1 to 8, that an EXIF block states; 1 where it states none."""
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
    except struct.error:  # it is cut
        pass
    return UPRIGHT


def webp_exif(content: bytes) -> bytes:
    """Return the EXIF block of a WebP file, empty where there is none."""
    place, end = 12, len(content)
    while is_webp(content) and place + 8 <= end:
        kind, length = struct.unpack_from("<4sI", content, place)
        if kind == b"EXIF":
            return content[place + 8 : place + 8 + length]
        place += 8 + length + length % 2
    return b""


def upright(image_HWC: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn and mirror an image (H, W, C) as an orientation asks, to a contiguous array."""
    image = np.swapaxes(image_HWC, 0, 1) if orientation >= 5 else image_HWC
    # After a transposition: 6 and 7 are mirrored left to right, 7 and 8 upside down.
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)
