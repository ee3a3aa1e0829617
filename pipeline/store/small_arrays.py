"""Arrays that are kept whole beside the shards: which samples the rows are, and what the codec keeps once.

They are read alike from a complete store, whose manifest has a digest of each file, and from one that is
not finished, where the header's digests prove them together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from pipeline.codecs import STATE_SHAPES
from pipeline.core.errors import CorruptStoreError
from pipeline.store.arrays import METADATA_BYTES, StoredArray, index_array, rows_of, state_array
from pipeline.store.layout import CODEC_GROUP, INDEX_ARRAYS, ZARR_JSON, Layout, Section
from pipeline.store.nodes import RESTORE, reading

# From a file's name and the largest size that is read to its bytes, or None where there is no such file.
Fetch = Callable[[str, int], bytes | None]
_LEAST_KEY_BYTES = 4


def read_index(store: object, layout: Layout, section: Section, fetch: Fetch) -> list[NDArray[Any]]:
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
    """Refuse an index that is said to be of more samples than its bytes can tell apart.

    Keys and digests are hashes, which do not compress: a sample takes nearly eight bytes. Whatever is read
    of a store is allocated by its number of samples, so this bounds it by what is there.

    Raises:
        CorruptStoreError: there are fewer than four bytes a sample.
    """
    size = sum(map(len, files.values()))
    if size < _LEAST_KEY_BYTES * samples:
        raise CorruptStoreError(
            f"{store}: {array.name} has {size:,} bytes for {samples:,} samples, expected eight a sample; "
            f"{RESTORE}"
        )
