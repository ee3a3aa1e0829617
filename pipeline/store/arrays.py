"""A store's zarr arrays as its layout has them: what their metadata must say, and decoding what agrees.

zarr believes the metadata of an array: its shape, its codecs, the sizes of its chunks. Here metadata and
chunks are compared with the layout first, so that no forged file decides what is run or allocated.

Arrays beside the shards are kept whole: which samples the rows are, and what the codec keeps once. They
are read alike from a complete store, whose manifest has a digest of each file, and from an unfinished one,
where the header's digests prove them together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from typing import Annotated, Any

import numpy as np
import zarr
from numpy.typing import NDArray
from pydantic import Field
from zarr.core.buffer.cpu import Buffer
from zarr.storage import MemoryStore

from pipeline.codecs import STATE_SHAPES
from pipeline.core.errors import CorruptStoreError, brief, is_out_of_memory, quoted
from pipeline.core.files import parse_object
from pipeline.core.forms import require_form
from pipeline.store.layout import CODEC_GROUP, INDEX_ARRAYS, ZARR_JSON, Layout, Section
from pipeline.store.wire import (
    MOST_ROWS,
    OpenForm,
    most_frame_bytes,
    most_shard_bytes,
    require_frame,
    require_shard,
)

RESTORE = "restore it (dvc checkout --force), or mend it with: pipeline verify --repair"

_LONGEST = 160
# zarr has no common base for what reading damaged metadata or chunks raises.
_DAMAGE = (
    *(ValueError, RuntimeError, LookupError, TypeError, AttributeError, OverflowError),
    *(FileNotFoundError, NotADirectoryError, IsADirectoryError),
)
METADATA_BYTES = 1 << 20
_MOST_WIDTH = 1 << 16  # features of a teacher
# Kept levels say how a chunk was compressed, checksums how it is proven: neither decides what is decoded.
_FREE_SETTINGS = {"level", "checksum"}
_INDEX_CODECS = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
_KEYS = {"name": "default", "configuration": {"separator": "/"}}
Shape = tuple[int, ...]
# From a file's name and the largest size that is read to its bytes, or None where there is no such file.
Fetch = Callable[[str, int], bytes | None]
_LEAST_KEY_BYTES = 4


@contextmanager
def reading(store: object, name: str) -> Iterator[None]:
    """Turn whatever comes from reading a damaged array or group into one error.

    Args:
        store: for the message.
        name: of the array or group in it.

    Raises:
        CorruptStoreError: it cannot be read.
    """
    try:
        yield
    except CorruptStoreError:
        raise
    except _DAMAGE as error:
        if is_out_of_memory(error):
            raise
        raise CorruptStoreError(f"{store}: {name} cannot be read ({reason(error)}); {RESTORE}") from None


def reason(error: Exception) -> str:
    """Return in a few words of one line what an error of reading damaged or forged values says."""
    if isinstance(error, KeyError):
        return f"lacks {quoted(error.args[0] if error.args else '')}"
    return brief(error, _LONGEST) or type(error).__name__


class _RegularGrid(OpenForm):
    chunk_shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(max_length=2)]


class _Grid(OpenForm):
    configuration: _RegularGrid


class _RowsForm(OpenForm):
    """What the metadata of an index are believed: its length."""

    shape: Annotated[list[Annotated[int, Field(ge=1, le=MOST_ROWS)]], Field(min_length=1, max_length=1)]


class _StateForm(OpenForm):
    """What the metadata of a codec's state is believed: its shape and how it is cut."""

    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(max_length=2)]
    chunk_grid: _Grid


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredArray:
    """One array of a store.

    Args:
        name: its path in the store.
        shape, dtype: of the whole array.
        chunk: shape of a chunk, which is compressed by itself.
        shard: shape of a file of several chunks; None where each chunk is a file.
        order: of the axes in a chunk's bytes; None for their own.
    """

    name: str
    shape: Shape
    dtype: str
    chunk: Shape
    shard: Shape | None = None
    order: Shape | None = None

    @property
    def metadata_file(self) -> str:
        """The name of its metadata in the store."""
        return f"{self.name}/{ZARR_JSON}"

    @property
    def chunk_bytes(self) -> int:
        """Size of a chunk before compression."""
        return math.prod(self.chunk) * np.dtype(self.dtype).itemsize

    @property
    def chunks_a_file(self) -> int:
        """Number of chunks in a file."""
        if self.shard is None:
            return 1
        return math.prod(whole // part for whole, part in zip(self.shard, self.chunk, strict=True))

    @property
    def most_file_bytes(self) -> int:
        """The size that none of its files exceeds."""
        if self.shard is None:
            return most_frame_bytes(self.chunk_bytes)
        return most_shard_bytes(self.chunks_a_file, self.chunk_bytes)

    def files(self) -> Iterator[str]:
        """Yield the names of its files, besides the metadata."""
        cut = self.shard or self.chunk
        counts = [-(-length // part) for length, part in zip(self.shape, cut, strict=True)]
        for place in product(*(range(count) for count in counts)):
            yield "/".join([self.name, "c", *(str(number) for number in place)])

    def require_metadata(self, content: bytes) -> None:
        """Refuse metadata that say something else of the array.

        Raises:
            ValueError: naming what differs.
        """
        found = parse_object(content)
        for key, expected in self._metadata().items():
            if _plain(found.get(key)) != _plain(expected):
                raise ValueError(f"its metadata have another {key} than the store's layout")

    def require_content(self, content: bytes) -> None:
        """Refuse a file whose chunks say that they unpack to other sizes than the array's.

        Raises:
            ValueError: saying what differs.
        """
        if self.shard is None:
            require_frame(content, self.chunk_bytes)
        else:
            require_shard(content, self.chunks_a_file, self.chunk_bytes)

    def decode(self, store: object, files: Mapping[str, bytes], selection: Any = ...) -> NDArray[Any]:
        """Return a part of the array from its files, metadata among them, by their names.

        Args:
            store: for errors.
            files: whose digests were compared before, where there are any.
            selection: of rows, as zarr takes it.

        Raises:
            CorruptStoreError: a file does not agree with the layout, or cannot be decoded.
        """
        with reading(store, self.name):
            for name, content in files.items():
                check = self.require_metadata if name == self.metadata_file else self.require_content
                check(content)
            memory = MemoryStore({name: Buffer.from_bytes(content) for name, content in files.items()})
            return np.asarray(zarr.open_array(memory, path=self.name, mode="r")[selection])

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
    across = (0, *range(2, 2 + len(spec.shape)), 1)
    return StoredArray(
        name=f"{section.name}/{array}",
        shape=(section.n_views, section.n_rows, *spec.shape),
        dtype=spec.dtype,
        chunk=(1, layout.chunk_rows, *spec.shape),
        shard=(1, layout.shard_rows, *spec.shape),
        order=across if spec.column_major else None,
    )


def index_array(layout: Layout, section: Section, column: str) -> StoredArray:
    """Return the keys or the digests of a section."""
    return StoredArray(
        name=f"{section.name}/{column}",
        shape=(section.n_rows,),
        dtype="uint64",
        chunk=(layout.index_chunk_rows,),
    )


def rows_of(metadata: bytes) -> Shape:
    """Return the shape of an array of numbers, as its metadata tell it.

    Raises:
        ValueError: it has another form.
    """
    found = parse_object(metadata)
    require_form(_RowsForm, found)
    return tuple(found["shape"])


def state_array(layout: Layout, name: str, metadata: bytes) -> StoredArray:
    """Return an array of the codec's state, which tells its width itself.

    Raises:
        ValueError: the codec keeps no array of this name, or not of this shape.
    """
    found = parse_object(metadata)
    require_form(_StateForm, found)
    shape, chunk = tuple(found["shape"]), tuple(found["chunk_grid"]["configuration"]["chunk_shape"])
    dtype, axes = STATE_SHAPES[layout.codec][name]
    most = {"C": layout.n_classes, "D": _MOST_WIDTH, "L": 256}
    if len(shape) != len(axes) or any(n > most[axis] for n, axis in zip(shape, axes, strict=True)):
        raise ValueError(f"its shape is {shape}, expected {', '.join(axes) or 'a number'}")
    if len(chunk) != len(shape) or any(part > n for part, n in zip(chunk, shape, strict=True)):
        raise ValueError(f"its chunks are {chunk}, expected parts of {shape}")
    return StoredArray(name=f"{CODEC_GROUP}/{name}", shape=shape, dtype=dtype, chunk=chunk)


def _plain(value: Any) -> Any:
    """Return a value of an array's metadata in the form in which equal ones are equal."""
    if isinstance(value, dict):
        kept = {key: _plain(v) for key, v in value.items() if key not in _FREE_SETTINGS}
        # zarr leaves out what is its default.
        if kept.get("configuration") == {} or kept.get("configuration") == {"endian": "little"}:
            del kept["configuration"]
        return kept
    if isinstance(value, list):
        return [_plain(v) for v in value] or None
    return value


def read_section(store: object, layout: Layout, section: Section, fetch: Fetch) -> list[NDArray[Any]]:
    """Return keys and digests (N,) uint64 of a section's samples.

    Args:
        store: for errors.
        layout: of the store.
        section: of the layout.
        fetch: reads its files.

    Raises:
        CorruptStoreError: they are not of this layout.
    """
    rows = slice(0, section.n_rows)
    columns = []
    for column in INDEX_ARRAYS:
        array = index_array(layout, section, column)
        metadata = _fetch_all(store, [array.metadata_file], METADATA_BYTES, fetch)
        chunks = _fetch_all(store, array.files(), array.most_file_bytes, fetch)
        if column == "keys":
            _require_incompressible(store, array, section.n_samples, chunks)
        # The array of a store that was about to grow is longer than its header says.
        with reading(store, array.name):
            longer = max(array.shape, rows_of(metadata[array.metadata_file]))
        columns.append(replace(array, shape=longer).decode(store, {**metadata, **chunks}, rows))
    return [values[section.rows()] for values in columns]


def read_state(store: object, layout: Layout, fetch: Fetch) -> dict[str, NDArray[Any]]:
    """Return what a store's codec keeps once, by name; nothing for most codecs.

    Raises:
        CorruptStoreError: an array is missing, or not of this codec.
    """
    state = {}
    for name in STATE_SHAPES.get(layout.codec, ()):
        metadata = _fetch_all(
            store, [f"{CODEC_GROUP}/{name}/{ZARR_JSON}"], METADATA_BYTES, fetch, "of its codec"
        )
        with reading(store, f"{CODEC_GROUP}/{name}"):
            array = state_array(layout, name, *metadata.values())
        # A chunk of zeros has no file; the codec's fingerprint tells if one was lost.
        found = {chunk: fetch(chunk, array.most_file_bytes) for chunk in array.files()}
        chunks = {chunk: content for chunk, content in found.items() if content is not None}
        state[name] = array.decode(store, {**metadata, **chunks})
    return state


def _fetch_all(
    store: object, names: Iterable[str], most_bytes: int, fetch: Fetch, what: str = "of its keys or digests"
) -> dict[str, bytes]:
    """Return files that must be there, by name.

    Raises:
        CorruptStoreError: one is missing.
    """
    files = {}
    for name in names:
        content = fetch(name, most_bytes)
        if content is None:
            raise CorruptStoreError(f"{store}: {name} is missing, {what}; {RESTORE}")
        files[name] = content
    return files


def _require_incompressible(
    store: object, array: StoredArray, samples: int, files: Mapping[str, bytes]
) -> None:
    """Refuse keys that are said to be of more samples than their bytes can tell apart.

    Keys are hashes of different names, which do not compress: a sample takes nearly eight bytes. Whatever
    is read of a store afterwards is allocated by its number of samples, so this bounds it by the keys'
    bytes. Digests of equal samples are equal, and may take less.

    Raises:
        CorruptStoreError: there are fewer than four bytes a sample.
    """
    size = sum(map(len, files.values()))
    if size < _LEAST_KEY_BYTES * samples:
        raise CorruptStoreError(
            f"{store}: {array.name} has {size:,} bytes for {samples:,} samples, expected eight a sample; "
            f"{RESTORE}"
        )
