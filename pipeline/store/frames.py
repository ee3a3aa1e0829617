"""Zstandard frames and zarr shards by their headers: how much they unpack to, told before it is allocated.

Both formats say themselves how large their content is. Here it is compared with the size that the layout
has for it; unpacking is zarr's. Sources: RFC 8878, sections 3.1.1 and 3.1.2; zarr's sharding codec 1.0.
"""

from __future__ import annotations

import numpy as np

_MAGIC = 0xFD2FB528
_MOST_HEADER_BYTES = 18
_CHECKSUM_BYTES = 4
_RLE = 1
_ENTRY_BYTES, _INDEX_CHECKSUM_BYTES = (
    16,
    4,
)  # of a shard's index: offset and length of each chunk, a CRC-32C
_NO_CHUNK = np.uint64(2**64 - 1)


def most_frame_bytes(content_bytes: int) -> int:
    """Return the size that no frame of so many bytes exceeds: what does not shrink is kept as it is."""
    return content_bytes + (content_bytes >> 8) + 512


def most_shard_bytes(n_chunks: int, chunk_bytes: int) -> int:
    """Return the size that no shard of so many chunks exceeds."""
    return n_chunks * (most_frame_bytes(chunk_bytes) + _ENTRY_BYTES) + _INDEX_CHECKSUM_BYTES


def require_frame(content: bytes | memoryview, content_bytes: int) -> None:
    """Refuse all but one whole frame that says it unpacks to so many bytes.

    Raises:
        ValueError: it is none, does not say so, says another size, or something follows it.
    """
    told, place, checksum = _frame_header(content)
    if told != content_bytes:
        unpacked = "an unknown number of" if told is None else f"{told:,}"
        raise ValueError(f"a chunk unpacks to {unpacked} bytes, expected {content_bytes:,}")
    end = _end_of_blocks(content, place) + (_CHECKSUM_BYTES if checksum else 0)
    if end != len(content):
        raise ValueError("a chunk is not one whole Zstandard frame")


def require_shard(content: bytes, n_chunks: int, chunk_bytes: int) -> None:
    """Refuse a shard whose index or chunks say other sizes than its array has.

    Args:
        content: the shard's file, with its index at the end.
        n_chunks: of each shard.
        chunk_bytes: of each chunk when it is unpacked.

    Raises:
        ValueError: saying what differs.
    """
    index_bytes = n_chunks * _ENTRY_BYTES + _INDEX_CHECKSUM_BYTES
    if len(content) < index_bytes:
        raise ValueError(f"a shard has {len(content):,} bytes, too few for its index of {index_bytes:,}")
    entries = np.frombuffer(content, "<u8", 2 * n_chunks, len(content) - index_bytes).reshape(-1, 2)
    for offset, length in entries[(entries != _NO_CHUNK).any(1)].tolist():
        if offset + length > len(content) - index_bytes:
            raise ValueError("a shard's index points outside of it")
        require_frame(memoryview(content)[offset : offset + length], chunk_bytes)


def _frame_header(content: bytes | memoryview) -> tuple[int | None, int, bool]:
    """Return the size of a frame's content, where its blocks begin, and whether a checksum follows them."""
    head = bytes(content[:_MOST_HEADER_BYTES])
    if len(head) < 6 or int.from_bytes(head[:4], "little") != _MAGIC:
        raise ValueError("a chunk is no Zstandard frame")
    descriptor = head[4]
    single, checksum = bool(descriptor & 0x20), bool(descriptor & 0x04)
    place = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
    size = (int(single), 2, 4, 8)[descriptor >> 6]
    told = int.from_bytes(head[place : place + size], "little") + (256 if size == 2 else 0)
    return (told if size else None), place + size, checksum


def _end_of_blocks(content: bytes | memoryview, place: int) -> int:
    """Return where the blocks end that begin at a place."""
    last = False
    while not last:
        header = bytes(content[place : place + 3])
        if len(header) < 3:
            raise ValueError("a chunk ends inside its Zstandard frame")
        word = int.from_bytes(header, "little")
        last, kind, size = bool(word & 1), word >> 1 & 3, word >> 3
        place += 3 + (1 if kind == _RLE else size)
    return place
