"""Large files of buckets, read by chunks that a cache on the local disk keeps.

    s3://bucket/train-000.tar    450 MB: 28 chunks of 16 MiB, each one request

A sample of 100 kB is then a read of a local file. A chunk is asked for when its first byte is needed, and
the next ones of the file meanwhile: samples are mostly needed in their order.
"""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError, StoreError
from pipeline.places.cache import machine_cache
from pipeline.places.objects import ObjectPlace, changed
from pipeline.places.place import Tag

CHUNK_BYTES = 16 << 20
_AHEAD = 4
_BUFFER_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class ChunkedFile:
    """A file of a bucket.

    Args:
        place: of the file.
        name: of the file in the place.
        size: in bytes.
        tag: tells its content from others of the same name.
    """

    place: ObjectPlace = field(compare=False)
    name: str
    size: int
    tag: Tag

    def __str__(self) -> str:
        return f"{self.place}/{self.name}"

    def read(self, start: int, length: int) -> NDArray[np.uint8]:
        """Return bytes (length,); fewer at the end of the file.

        Raises:
            DataError: the file is gone, or shorter than when it was listed.
            StoreError: the bucket cannot be reached, or the cache cannot be written.
        """
        stop, parts = min(start + length, self.size), []
        # Part by part: a size in an untrusted index decides about no memory before its bytes are there.
        for chunk in range(start // CHUNK_BYTES, -(-stop // CHUNK_BYTES)):
            first = chunk * CHUNK_BYTES
            low, high = max(start, first), min(stop, first + CHUNK_BYTES)
            with self._open(chunk) as file:
                file.seek(low - first)
                parts.append(np.frombuffer(bytearray(file.read(high - low)), np.uint8))
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.uint8), *parts])

    def open(self) -> io.BufferedReader:
        """Open the file for reading, as one on the local disk."""
        return io.BufferedReader(_Reader(self), _BUFFER_BYTES)

    def forget(self, start: int, length: int) -> None:
        """Remove chunks from the cache, e.g. damaged ones."""
        for chunk in range(start // CHUNK_BYTES, -(-(start + length) // CHUNK_BYTES)):
            machine_cache().forget(self._key(chunk))

    def _open(self, chunk: int) -> io.BufferedReader:
        def fetch() -> bytes:
            for later in range(chunk + 1, min(chunk + 1 + _AHEAD, -(-self.size // CHUNK_BYTES))):
                _fetchers().submit(self._read_ahead, later)
            return self._fetch(chunk)

        return machine_cache().open(self._key(chunk), fetch)

    def _read_ahead(self, chunk: int) -> None:
        # Whoever needs the chunk meets the same fault, and tells it.
        with suppress(StoreError, DataError):
            machine_cache().open(self._key(chunk), lambda: self._fetch(chunk)).close()

    def _fetch(self, chunk: int) -> bytes:
        first = chunk * CHUNK_BYTES
        expected = min(CHUNK_BYTES, self.size - first)
        content = self.place.get(self.name, first, expected, tag=self.tag)
        if content is None:
            raise DataError(f"{self}: missing, but it was listed; restore it, or run: pipeline prepare")
        if len(content) != expected:
            raise changed(str(self))
        return content

    def _key(self, chunk: int) -> str:
        return f"{self}\n{self.tag}\n{CHUNK_BYTES}\n{chunk}"


class _Reader(io.RawIOBase):
    """A chunked file with a position."""

    def __init__(self, file: ChunkedFile) -> None:
        super().__init__()
        self._file, self._position = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        content = self._file.read(self._position, len(buffer))
        buffer[: len(content)] = content.data
        self._position += len(content)
        return len(content)


@cache
def _fetchers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_AHEAD, thread_name_prefix="chunks")
