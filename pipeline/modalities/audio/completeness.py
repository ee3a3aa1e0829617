"""Whether a sound file is whole: lengths in headers, end marks and checksums, which decoders pass over.

libsndfile refuses a damaged FLAC file. Of the other formats it returns the samples that it finds. Raw
samples have no checksum, so flipped bits in a WAV or AIFF file cannot be seen.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

# A RIFF length of 0 or all ones: a program streamed to a pipe and never came back to fill it in.
_STREAMED = (0, 0xFFFFFFFF)
_ID3_BYTES = 10
# Xing's header begins at most 36 bytes behind the first frame's beginning.
_XING_WITHIN = 64
_PAGE_BYTES = 27
_LAST_PAGE = 4
# Each byte with its bits in reverse order: Ogg's CRC takes the highest bit first, zlib's the lowest.
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True, slots=True)
class Completeness:
    """Whether a sound file is whole.

    Args:
        is_cut: whether it ends before the length in its header, or without its last page.
        is_damaged: whether a page's checksum differs; decoders leave such pages out.
    """

    is_cut: bool = False
    is_damaged: bool = False


WHOLE = Completeness()


def completeness(content: bytes) -> Completeness:
    """Check the content of a sound file, as far as its format allows.

    >>> completeness(b"RIFF" + (100).to_bytes(4, "little") + b"WAVE").is_cut
    True
    """
    kind = content[:4], content[8:12]
    if kind == (b"RIFF", b"WAVE"):
        return Completeness(is_cut=_is_short(int.from_bytes(content[4:8], "little"), len(content)))
    if kind in ((b"FORM", b"AIFF"), (b"FORM", b"AIFC")):
        return Completeness(is_cut=_is_short(int.from_bytes(content[4:8], "big"), len(content)))
    if content[:4] == b"OggS":
        return _of_pages(content)
    return Completeness(is_cut=_is_short_mp3(content))


def _is_short(promised: int, length: int) -> bool:
    """Whether a file has fewer bytes than the length in its header, which begins behind eight bytes."""
    # A writer may leave out the last padding byte.
    return promised not in _STREAMED and promised + 8 > length + 1


def _is_short_mp3(content: bytes) -> bool:
    """Whether an MP3 file has fewer bytes than its Xing header says; few files lack this header."""
    start = 0
    if content[:3] == b"ID3" and len(content) > _ID3_BYTES:
        # 28 bits: seven in each of four bytes.
        size = sum(part << 7 * place for place, part in enumerate(reversed(content[6:_ID3_BYTES])))
        start = _ID3_BYTES + size
    head = content[start : start + _XING_WITHIN]
    place = max(head.find(b"Xing"), head.find(b"Info"))
    if place < 0:
        return False
    header = content[start + place :]
    flags = int.from_bytes(header[4:8], "big")
    if not flags & 2 or len(header) < 16:
        return False
    # The number of bytes follows the number of frames, if there is one.
    at = 12 if flags & 1 else 8
    return len(content) - start < int.from_bytes(header[at : at + 4], "big")


def _of_pages(content: bytes) -> Completeness:
    """Walk over an Ogg file's pages: "OggS", version, flags, 16 bytes, CRC, count, lengths, packets."""
    at, flags, is_damaged = 0, 0, False
    while at < len(content):
        if content[at : at + 4] != b"OggS":
            is_damaged = True
            following = content.find(b"OggS", at)
            at = following if following >= 0 else len(content)
            continue
        end = _page_end(content, at)
        if end > len(content):
            return Completeness(is_cut=True, is_damaged=is_damaged)
        page = content[at:end]
        flags = page[5]
        is_damaged |= int.from_bytes(page[22:26], "little") != _page_crc(page)
        at = end
    return Completeness(is_cut=not flags & _LAST_PAGE, is_damaged=is_damaged)


def _page_end(content: bytes, at: int) -> int:
    """Return the end of the page at a place; beyond the content if it is cut."""
    begin = at + _PAGE_BYTES
    if begin > len(content):
        return begin
    count = content[begin - 1]
    return begin + count + sum(content[begin : begin + count])


def _page_crc(page: bytes) -> int:
    """Return the CRC of a page, polynomial 0x04C11DB7, highest bits first, from 0, its own field as 0."""
    plain = page[:22] + bytes(4) + page[26:]
    # zlib inverts its register before and after.
    low_first = zlib.crc32(plain.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{low_first:032b}"[::-1], 2)
