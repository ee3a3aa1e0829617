"""The frame of a store: groups, empty arrays, indices and the codec's state, before any shard."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor
from zarr.codecs import TransposeCodec, ZstdCodec
from zarr.core.buffer import Buffer, cpu
from zarr.storage import MemoryStore

from pipeline.codecs import state_shapes
from pipeline.core.errors import LockedError
from pipeline.core.files import parse_object
from pipeline.core.hashing import canonical_json
from pipeline.core.threads import side_by_side
from pipeline.places.folder import Root, at
from pipeline.places.location import Location
from pipeline.store import arrays
from pipeline.store.arrays import logits_array, reading
from pipeline.store.columns import index_array
from pipeline.store.faults import files_in
from pipeline.store.header import Header
from pipeline.store.index import SampleIndex
from pipeline.store.layout import (
    CATALOGUES,
    CODEC_GROUP,
    GROWTH,
    INDEX_ARRAYS,
    RECORDS,
    ZARR_JSON,
    Layout,
    Section,
)

Node = Any  # an array or group, as zarr.Group returns it by name
_WHOLE_ARRAY = r"(zarr\.json|c(/\d+)*)"
_FRAME_FILE = re.compile(
    rf"zarr\.json|codec/(zarr\.json|\w+/{_WHOLE_ARRAY})"
    rf"|(train|validation|test)/(zarr\.json|(keys|digests|labels)/{_WHOLE_ARRAY}|\w+/zarr\.json)"
)


def compressor(level: int = 1) -> ZstdCodec:
    """Return the compressor of a chunk; level 1 was the smallest and fastest here for most arrays."""
    return ZstdCodec(level=level, checksum=True)


def build_frame(
    path: Root, header: Header, *, index: Mapping[str, SampleIndex], state: Mapping[str, Tensor]
) -> None:
    """Create or update everything in a store except shards.

    The header comes last, once the rows that it describes are on the disk.

    Args:
        path: the store's folder or place.
        header: of the store.
        index: the samples of each section.
        state: the codec's state, which the store keeps once.

    Raises:
        LockedError: another process has written a different header meanwhile.
    """
    replaced, before = at(path).tag(ZARR_JSON), _read_frame(path)
    _put(path, before, _frame(path, before, header, index, state))
    if not _root_is(path, header) and not header.publish(path, replaced):
        raise LockedError(
            f"{path}: another process has changed this store in the meantime; wait for it, and run the "
            "command again"
        )


def begin_frame(
    path: Root, header: Header, *, index: Mapping[str, SampleIndex], state: Mapping[str, Tensor]
) -> None:
    """Write the frame of a new store without its header, and remove what a killed run had begun.

    Several processes may do so at once: of the same store, none removes a file of another.
    """
    _put(path, _read_frame(path), _frame(path, {}, header, index, state))


def _frame(
    path: Root,
    before: Mapping[str, Buffer],
    header: Header,
    index: Mapping[str, SampleIndex],
    state: Mapping[str, Tensor],
) -> dict[str, Buffer]:
    """Return the files of a frame by name, but for the header, made in memory from those before."""
    after = dict(before)
    with reading(path, "a group or array"):
        if state:
            group = zarr.open_group(MemoryStore(after), path=CODEC_GROUP, mode="a", zarr_format=3)
            for name, values in state.items():
                _put_state(group, name, values.cpu().numpy())
        for name, section in header.layout.sections.items():
            _build_section(after, header.layout, section, index[name])
    # zarr makes a root of its own; the header is written last.
    return {name: content for name, content in after.items() if name != ZARR_JSON}


def _put(path: Root, before: Mapping[str, Buffer], after: Mapping[str, Buffer]) -> None:
    """Write the files of a frame that changed, and remove those that it no longer has."""
    for name in sorted(after):
        content = after[name].to_bytes()
        if name not in before or before[name].to_bytes() != content:
            at(path).put(name, content)
    at(path).delete(sorted(set(before) - {*after, ZARR_JSON}))


def _read_frame(path: Root) -> dict[str, Buffer]:
    """Return the files of a frame by name; zarr changes them in memory, and only then the store changes."""
    names = sorted(frame_files(path))
    contents = side_by_side(at(path).get, names, at(path).at_once)
    return {
        name: cpu.Buffer.from_bytes(content)
        for name, content in zip(names, contents, strict=True)
        if content is not None
    }


def is_framed(path: Root, layout: Layout) -> bool:
    """Whether a store has all files of its frame; in object storage, the header is written before them."""
    state = (f"{CODEC_GROUP}/{name}/{ZARR_JSON}" for name in state_shapes(layout.codec))
    names = {*layout.frame_files(), *state}
    return len(at(path).sizes_of(names)) == len(names)


def has_frame(path: Root, header: Header, state: Mapping[str, Tensor]) -> bool:
    """Whether `build_frame` has nothing to do; the content of arrays is not compared.

    Args:
        path: the store's folder.
        header: of the store.
        state: the codec's state.
    """
    names = {*header.layout.frame_files(), *(f"{CODEC_GROUP}/{name}/{ZARR_JSON}" for name in state)}
    return _root_is(path, header) and all(at(path).exists(name) for name in names)


def frame_files(path: Root) -> set[str]:
    """Return the names of a store's metadata, index and codec state files."""
    # Folders of shards are skipped: a store may have 100,000.
    return {name for name in files_in(path, skip=_is_of_shards) if _FRAME_FILE.fullmatch(name)}


def _is_of_shards(folder: str) -> bool:
    section, _, rest = folder.partition("/")
    array, _, below = rest.partition("/")
    return section in (GROWTH, RECORDS, CATALOGUES) or (
        below == "c" and section != CODEC_GROUP and array not in INDEX_ARRAYS
    )


def _build_section(
    files: dict[str, Buffer], layout: Layout, section: Section, samples: SampleIndex
) -> None:
    group = zarr.open_group(MemoryStore(files), path=section.name, mode="a", zarr_format=3)
    # Labels may be zeros; zarr would omit such a file, and every file of an index has a digest.
    with zarr.config.set({"array.write_empty_chunks": True}):
        for column in layout.index_arrays:
            there = all(name in files for name in layout.index_files(section.name, column))
            _put_index(group, column, layout, section, samples.column(column), is_there=there)
    for array in layout.arrays:
        shape = logits_array(layout, section, array).shape
        if array in group and _shrinks(group[array], shape):
            # Shrinking by zarr would delete the shards outside the new shape; new metadata keeps them.
            del files[f"{section.name}/{array}/{ZARR_JSON}"]
        if array not in group:
            create_array(group, layout, section, array)
        _resize(group[array], shape)


def read_state(path: Root, layout: Layout | None = None) -> dict[str, Tensor]:
    """Return the codec's state from an unfinished store.

    Args:
        path: the store's folder.
        layout: the header's; None to read the header.

    Raises:
        CorruptStoreError: the state cannot be read.
    """
    location = Location(path)
    cut = Header.read(location).layout if layout is None else layout
    kept = arrays.read_state(path, cut, location.find)
    return {name: torch.from_numpy(values) for name, values in kept.items()}


def create_array(group: zarr.Group, layout: Layout, section: Section, array: str) -> Any:
    """Create one of the codec's arrays in a section's group."""
    form = logits_array(layout, section, array)
    return group.create_array(
        array,
        shape=form.shape,
        dtype=form.dtype,
        chunks=form.chunk,
        shards=form.shard,
        filters=[TransposeCodec(order=form.order)] if form.order is not None else None,
        compressors=[compressor(layout.arrays[array].level)],
        # zarr would omit a shard of zeros; every shard needs a file.
        config={"write_empty_chunks": True},
    )


def _root_is(path: Root, header: Header) -> bool:
    try:
        found = parse_object(at(path).get(ZARR_JSON) or b"")["attributes"]
    except (ValueError, KeyError):
        return False
    return canonical_json(found) == canonical_json(header.to_dict())


def _put_state(group: zarr.Group, name: str, values: NDArray[Any]) -> None:
    if name in group and _is(group[name], values):
        return
    group.create_array(name, data=values, compressors=[compressor()], overwrite=True)


def _put_index(
    group: zarr.Group,
    name: str,
    layout: Layout,
    section: Section,
    samples: NDArray[np.uint64],
    *,
    is_there: bool,
) -> None:
    """Write keys, digests or labels; existing ones keep their places and their files."""
    form = index_array(layout, section, name)
    values = np.zeros(form.shape, form.dtype)
    values[section.rows()] = samples
    if name not in group:
        group.create_array(
            name, shape=form.shape, dtype=form.dtype, chunks=form.chunk, compressors=[compressor()]
        )
    array: Node = group[name]
    _resize(array, values.shape)
    if not (is_there and _is(array, values)):
        array[:] = values


def _resize(array: Node, shape: tuple[int, ...]) -> None:
    if isinstance(array, zarr.Array) and array.shape != shape:
        array.resize(shape)


def _shrinks(array: Node, shape: tuple[int, ...]) -> bool:
    return isinstance(array, zarr.Array) and any(
        new < old for new, old in zip(shape, array.shape, strict=True)
    )


def _is(array: Node, values: NDArray[Any]) -> bool:
    try:
        found = np.asarray(array[...])
    except (ValueError, RuntimeError, FileNotFoundError):
        return False
    return found.dtype == values.dtype and np.array_equal(found, values)
