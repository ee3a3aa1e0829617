"""The first picture of an animation, so that its others are never decoded.

A GIF is cut behind its first picture. Of an animated WebP it is only told that it is one.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.data.headers import Shape, is_webp

_HEADER_BYTES = 13
_TRAILER, _EXTENSION, _IMAGE = b";", b"!", b","
_ANIMATION = 0x02  # flag of VP8X (RFC 9649)


@dataclass(frozen=True, slots=True)
class FirstPicture:
    """The beginning of a GIF.

    Args:
        content: the file with its first picture alone.
        shape: height and width of that picture, which may be more than the screen's.
    """

    content: bytes
    shape: Shape


def first_picture(content: bytes) -> FirstPicture:
    """Cut a GIF behind its first picture (GIF89a, sections 17 to 27).

    Raises:
        ValueError: it ends too early, or is damaged between its pictures.
    """
    place = _HEADER_BYTES + _table_bytes(content, 10)
    while content[place : place + 1] == _EXTENSION:
        place = _behind_blocks(content, place + 2)
    if content[place : place + 1] != _IMAGE or not _is_whole(content, place):
        raise ValueError("a GIF that ends too early, or is damaged between its pictures")
    width, height = (int.from_bytes(content[p : p + 2], "little") for p in (place + 5, place + 7))
    return FirstPicture(content[: _behind_picture(content, place)] + _TRAILER, (height, width))


def _is_whole(content: bytes, place: int) -> bool:
    """Whether pictures follow each other from a place on to the trailer."""
    while (kind := content[place : place + 1]) != _TRAILER:
        if kind == _EXTENSION:
            place = _behind_blocks(content, place + 2)
        elif kind == _IMAGE:
            place = _behind_picture(content, place)
        else:
            return False
    return True


def is_animated_webp(content: bytes) -> bool:
    """Whether a file is a WebP of several pictures."""
    return (
        is_webp(content)
        and content[12:16] == b"VP8X"
        and len(content) > 20
        and bool(content[20] & _ANIMATION)
    )


def _behind_picture(content: bytes, place: int) -> int:
    return _behind_blocks(content, place + 11 + _table_bytes(content, place + 9))


def _table_bytes(content: bytes, place: int) -> int:
    """Return the size of the colour table that the packed flags at a place announce."""
    flags = content[place] if place < len(content) else 0
    return 3 * 2 ** ((flags & 0x07) + 1) if flags & 0x80 else 0


def _behind_blocks(content: bytes, place: int) -> int:
    """Return where a chain of sub-blocks, each with its length before it, is over."""
    while place < len(content) and content[place]:
        place += 1 + content[place]
    return place + 1
