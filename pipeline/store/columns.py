"""The arrays that say which sample a row is: keys, digests and labels of a section, read whole.

A file is one Zstandard frame of a chunk of rows, and is unpacked into its place at once. So a section of
millions of samples takes the memory of its arrays and of a few files. Only of the keys all files are read
first: their size proves the number of samples, before memory is taken for them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import numpy as np
from numcodecs.zstd import Zstd
from numpy.typing import NDArray
from pydantic import Field

from pipeline.core.errors import CorruptStoreError
from pipeline.core.files import parse_object
from pipeline.core.forms import require_form
from pipeline.core.threads import side_by_side
from pipeline.store.arrays import METADATA_BYTES, Fetch, Shape, StoredArray, reading, required
from pipeline.store.commands import restoring
from pipeline.store.layout import Layout, Section
from pipeline.store.wire import MOST_ROWS, OpenForm

_LEAST_KEY_BYTES = 4
_WHAT = "an array of its keys, digests or labels"


class _RowsForm(OpenForm):
    """The trusted part of an index array's metadata: its length."""

    shape: Annotated[list[Annotated[int, Field(ge=1, le=MOST_ROWS)]], Field(min_length=1, max_length=1)]


def index_array(layout: Layout, section: Section, column: str) -> StoredArray:
    """Return the array of a section's keys, digests or labels."""
    return StoredArray(
        name=f"{section.name}/{column}",
        shape=(section.n_rows,),
        dtype="uint64",
        chunk=(layout.index_chunk_rows,),
    )


def read_section(
    store: object, layout: Layout, section: Section, fetch: Fetch, *, at_once: int = 1
) -> list[NDArray[Any]]:
    """Return keys, digests and, if the layout has them, labels, (N,) uint64 each, of a section's samples.

    Args:
        store: for errors.
        layout: of the store.
        section: of the layout.
        fetch: reads the section's files, on any thread.
        at_once: number of files that are read at the same time at most.

    Raises:
        CorruptStoreError: a file is missing, or the arrays contradict the layout.
    """
    columns = [_read(store, layout, section, column, fetch, at_once) for column in layout.index_arrays]
    # (R,) -> (N,): drop the unused rows between extents. By slices: an index takes as much memory as keys.
    extents = [slice(first, first + count) for first, count in section.extents]
    one = len(extents) == 1
    return [
        values[extents[0]] if one else np.concatenate([values[extent] for extent in extents])
        for values in columns
    ]


def _read(
    store: object, layout: Layout, section: Section, column: str, fetch: Fetch, at_once: int
) -> NDArray[Any]:
    """Return one array (R,) uint64, and what its last file has beyond."""
    array = index_array(layout, section, column)
    metadata = required(store, array.metadata_file, METADATA_BYTES, fetch, _WHAT)
    names = list(array.files())
    take: Callable[[str], bytes] = partial(
        required, store, most_bytes=array.most_file_bytes, fetch=fetch, what=_WHAT
    )
    if column == "keys":
        # All files before any is unpacked: their size bounds the memory that is taken next.
        kept = dict(zip(names, side_by_side(take, names, at_once), strict=True))
        _require_incompressible(store, array, section.n_samples, kept)
        take = kept.pop
    with reading(store, array.name):
        # A kill before a growth's new header leaves longer arrays than the old header says: read R rows.
        longer = max(array.shape, _rows_of(metadata))
        replace(array, shape=longer).require_metadata(metadata)
    # (files, rows of a chunk): each file is a whole chunk, also the last one.
    values = np.empty((len(names), *array.chunk), "<u8")

    def unpack(place: int) -> None:
        content = take(names[place])
        with reading(store, array.name):
            array.require_content(content)
            Zstd().decode(content, values[place])

    # (files, rows of a chunk) -> (R + padding,): `extents` name the rows that count.
    deque(side_by_side(unpack, range(len(names)), at_once), maxlen=0)
    return values.reshape(-1).astype(np.uint64, copy=False)


def _rows_of(metadata: bytes) -> Shape:
    """Return the shape of a one-dimensional array from its metadata.

    Raises:
        ValueError: the metadata have a different form.
    """
    found = parse_object(metadata)
    require_form(_RowsForm, found)
    return tuple(found["shape"])


def _require_incompressible(
    store: object, array: StoredArray, samples: int, files: Mapping[str, bytes]
) -> None:
    """Refuse keys that are too few bytes for the claimed number of samples.

    Keys are hashes of different names, so they do not compress: a sample takes nearly eight bytes. Later
    reads allocate memory by the number of samples; this check bounds that memory by the keys' bytes.
    Digests of equal samples are equal, and may take less.

    Raises:
        CorruptStoreError: there are fewer than four bytes per sample.
    """
    size = sum(map(len, files.values()))
    if size < _LEAST_KEY_BYTES * samples:
        raise CorruptStoreError(
            f"{store}: {array.name} has {size:,} bytes for {samples:,} samples, expected eight per "
            f"sample; {restoring(store)}"
        )
