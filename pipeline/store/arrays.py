"""A store's zarr arrays: check metadata and chunks against the layout, then decode.

zarr trusts an array's metadata: its shape, its codecs, its chunk sizes. This module compares metadata and
chunks with the layout first, so that no forged file decides which code runs or how much is allocated.

The codec's state is read whole here; `columns.py` reads the keys of the samples. One reader serves complete
and unfinished stores: a complete store's manifest has a digest of each file, an unfinished store's header
has digests of all of them together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any

import numpy as np
import zarr
from numpy.typing import NDArray
from pydantic import Field
from zarr.core.buffer.cpu import Buffer
from zarr.storage import MemoryStore

from pipeline.codecs import state_shapes
from pipeline.core.errors import CorruptStoreError, brief, is_out_of_memory, quoted
from pipeline.core.files import parse_object
from pipeline.core.forms import require_form
from pipeline.store.commands import restoring
from pipeline.store.layout import CODEC_GROUP, ZARR_JSON, Layout, Section
from pipeline.store.wire import (
    OpenForm,
    most_frame_bytes,
    most_shard_bytes,
    require_frame,
    require_shard,
)

_LONGEST = 160
# zarr's errors on damaged metadata or chunks have no common base.
_DAMAGE = (
    *(ValueError, RuntimeError, LookupError, TypeError, AttributeError, OverflowError),
    *(FileNotFoundError, NotADirectoryError, IsADirectoryError),
)
METADATA_BYTES = 1 << 20
_MOST_WIDTH = 1 << 16  # features of a teacher
_MOST_CODEWORDS = 64 * 256  # of all codebooks of a vector
# `level` only affects compression, and `checksum` only verification: neither changes the decoded bytes.
_FREE_SETTINGS = {"level", "checksum"}
_INDEX_CODECS = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
_KEYS = {"name": "default", "configuration": {"separator": "/"}}
Shape = tuple[int, ...]
# (file name, largest size that is read) -> bytes, or None if the file is missing.
Fetch = Callable[[str, int], bytes | None]


@contextmanager
def reading(store: object, name: str) -> Iterator[None]:
    """Turn every error from reading a damaged array or group into one.

    Args:
        store: for the message.
        name: of the array or group in the store.

    Raises:
        CorruptStoreError: the array or group cannot be read.
    """
    try:
        yield
    except CorruptStoreError:
        raise
    except _DAMAGE as error:
        if is_out_of_memory(error):
            raise
        raise CorruptStoreError(
            f"{store}: {name} cannot be read ({reason(error)}); {restoring(store)}"
        ) from None


def reason(error: Exception) -> str:
    """Return a few words, on one line, about an error from damaged or forged values."""
    if isinstance(error, KeyError):
        return f"lacks {quoted(error.args[0] if error.args else '')}"
    return brief(error, _LONGEST) or type(error).__name__


class _RegularGrid(OpenForm):
    chunk_shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(max_length=2)]


class _Grid(OpenForm):
    configuration: _RegularGrid


class _StateForm(OpenForm):
    """The trusted part of a codec state's metadata: shape and chunks."""

    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(max_length=2)]
    chunk_grid: _Grid


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredArray:
    """Shape, dtype, chunks and files of one array of a store.

    Args:
        name: its path in the store.
        shape, dtype: of the whole array.
        chunk: shape of a chunk, the unit of compression.
        shard: shape of a file of several chunks; None if each chunk is a file.
        order: axes in the order of a chunk's bytes; None for the array's order.
    """

    name: str
    shape: Shape
    dtype: str
    chunk: Shape
    shard: Shape | None = None
    order: Shape | None = None

    @property
    def metadata_file(self) -> str:
        """The name of the array's metadata file in the store."""
        return f"{self.name}/{ZARR_JSON}"

    @property
    def chunk_bytes(self) -> int:
        """Size of a chunk before compression."""
        return math.prod(self.chunk) * np.dtype(self.dtype).itemsize

    @property
    def chunks_a_file(self) -> int:
        """Number of chunks per file, e.g. 16 for 65,536 rows in chunks of 4,096."""
        if self.shard is None:
            return 1
        return math.prod(whole // part for whole, part in zip(self.shard, self.chunk, strict=True))

    @property
    def most_file_bytes(self) -> int:
        """The upper bound of a file's size."""
        if self.shard is None:
            return most_frame_bytes(self.chunk_bytes)
        return most_shard_bytes(self.chunks_a_file, self.chunk_bytes)

    def files(self) -> Iterator[str]:
        """Yield the names of the array's files, without the metadata."""
        # e.g. shape (2, 10000), shards (1, 4096): 2 x ceil(10000 / 4096) files,
        #     ARRAY/c/0/0, c/0/1, c/0/2, c/1/0, c/1/1, c/1/2
        cut = self.shard or self.chunk
        counts = [-(-length // part) for length, part in zip(self.shape, cut, strict=True)]
        for place in product(*(range(count) for count in counts)):
            yield "/".join([self.name, "c", *(str(number) for number in place)])

    def require_metadata(self, content: bytes) -> None:
        """Refuse metadata that contradict the layout.

        Raises:
            ValueError: names the key that differs.
        """
        found = parse_object(content)
        for key, expected in self._metadata().items():
            if _plain(found.get(key)) != _plain(expected):
                raise ValueError(f"its metadata differs from the store's layout in {key}")

    def require_content(self, content: bytes) -> None:
        """Refuse a file whose chunks claim other sizes than the array's.

        Raises:
            ValueError: says what differs.
        """
        if self.shard is None:
            require_frame(content, self.chunk_bytes)
        else:
            require_shard(content, self.chunks_a_file, self.chunk_bytes)

    def decode(self, store: object, files: Mapping[str, bytes], selection: Any = ...) -> NDArray[Any]:
        """Return the array, or a part of it, from its files and metadata by name.

        Args:
            store: for errors.
            files: name -> bytes; their digests, if any, are already verified.
            selection: of rows, as zarr takes it.

        Raises:
            CorruptStoreError: a file contradicts the layout, or cannot be decoded.
        """
        with reading(store, self.name):
            for name, content in files.items():
                check = self.require_metadata if name == self.metadata_file else self.require_content
                check(content)
            # zarr decodes from memory, so it reads exactly the bytes that passed the checks above.
            memory = MemoryStore({name: Buffer.from_bytes(content) for name, content in files.items()})
            return np.asarray(zarr.open_array(memory, path=self.name, mode="r")[selection])

    def encode(self, metadata: bytes, name: str, values: NDArray[Any], where: Any) -> bytes:
        """Return the bytes of one file of the array.

        Args:
            metadata: of the array.
            name: of the file.
            values: the file's part of the array, or a part of that.
            where: their place in the array, as zarr takes it.
        """
        kept: dict[str, zarr.core.buffer.Buffer] = {self.metadata_file: Buffer.from_bytes(metadata)}
        # zarr would omit a file of zeros; every shard needs one.
        with zarr.config.set({"array.write_empty_chunks": True}):
            zarr.open_array(MemoryStore(kept), path=self.name, mode="r+")[where] = values
        return kept[name].to_bytes()

    def _metadata(self) -> dict[str, Any]:
        chunk: list[dict[str, Any]] = [{"name": "bytes"}, {"name": "zstd"}]
        if self.order is not None:
            chunk.insert(0, {"name": "transpose", "configuration": {"order": list(self.order)}})
        sharding: dict[str, Any] = {"chunk_shape": list(self.chunk), "codecs": chunk}
        sharding |= {"index_codecs": _INDEX_CODECS, "index_location": "end"}
        sharded = [{"name": "sharding_indexed", "configuration": sharding}]
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(self.shape),
            "data_type": self.dtype,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": list(self.shard or self.chunk)},
            },
            "chunk_key_encoding": _KEYS,
            "fill_value": 0,
            "codecs": chunk if self.shard is None else sharded,
            "storage_transformers": None,
        }


def logits_array(layout: Layout, section: Section, array: str) -> StoredArray:
    """Return one of the codec's arrays of a section."""
    spec = layout.arrays[array]
    # (view, row, *sample) -> (view, *sample, row): the rows of one column lie side by side.
    # e.g. chunk (1, 4096, 512) is stored as (1, 512, 4096), with order (0, 2, 1).
    across = (0, *range(2, 2 + len(spec.shape)), 1)
    return StoredArray(
        name=f"{section.name}/{array}",
        shape=(section.n_views, section.n_rows, *spec.shape),
        dtype=spec.dtype,
        chunk=(1, layout.chunk_rows, *spec.shape),
        shard=(1, layout.shard_rows, *spec.shape),
        order=across if spec.column_major else None,
    )


def state_array(layout: Layout, name: str, metadata: bytes) -> StoredArray:
    """Return an array of the codec's state; its width comes from its metadata, within bounds.

    Raises:
        ValueError: the codec keeps no array of this name, or its shape is not allowed.
    """
    found = parse_object(metadata)
    require_form(_StateForm, found)
    shape, chunk = tuple(found["shape"]), tuple(found["chunk_grid"]["configuration"]["chunk_shape"])
    dtype, axes = state_shapes(layout.codec)[name]
    most = {"C": layout.n_classes, "D": _MOST_WIDTH, "L": 256, "R": _MOST_CODEWORDS}
    if len(shape) != len(axes) or any(n > most[axis] for n, axis in zip(shape, axes, strict=True)):
        raise ValueError(f"its shape is {shape}, expected {', '.join(axes) or 'a number'}")
    if len(chunk) != len(shape) or any(part > n for part, n in zip(chunk, shape, strict=True)):
        raise ValueError(f"its chunks are {chunk}, expected parts of {shape}")
    return StoredArray(name=f"{CODEC_GROUP}/{name}", shape=shape, dtype=dtype, chunk=chunk)


def _plain(value: Any) -> Any:
    """Normalise a value of an array's metadata, so that equal settings compare equal."""
    if isinstance(value, dict):
        kept = {key: _plain(v) for key, v in value.items() if key not in _FREE_SETTINGS}
        # zarr omits a configuration that equals its default.
        if kept.get("configuration") == {} or kept.get("configuration") == {"endian": "little"}:
            del kept["configuration"]
        return kept
    if isinstance(value, list):
        return [_plain(v) for v in value] or None
    return value


def read_state(store: object, layout: Layout, fetch: Fetch) -> dict[str, NDArray[Any]]:
    """Return the arrays of a codec's state by name; most codecs have none.

    Raises:
        CorruptStoreError: an array is missing, or contradicts the codec.
    """
    state = {}
    for name in state_shapes(layout.codec):
        file = f"{CODEC_GROUP}/{name}/{ZARR_JSON}"
        metadata = required(store, file, METADATA_BYTES, fetch, "an array of its codec")
        with reading(store, f"{CODEC_GROUP}/{name}"):
            array = state_array(layout, name, metadata)
        # zarr writes no file for a chunk of zeros; the codec's fingerprint reveals a lost one.
        found = {chunk: fetch(chunk, array.most_file_bytes) for chunk in array.files()}
        chunks = {chunk: content for chunk, content in found.items() if content is not None}
        state[name] = array.decode(store, {file: metadata, **chunks})
    return state


def required(store: object, name: str, most_bytes: int, fetch: Fetch, what: str) -> bytes:
    """Return the bytes of a file that every store has.

    Args:
        store: for errors.
        name: of the file in the store.
        most_bytes: the largest size that is read.
        fetch: reads the file.
        what: the meaning of the file, for errors.

    Raises:
        CorruptStoreError: the file is missing.
    """
    content = fetch(name, most_bytes)
    if content is None:
        raise CorruptStoreError(f"{store}: {name} is missing, {what}; {restoring(store)}")
    return content
