"""The store's form: which arrays there are, how they are cut, what each shard's file is called.

    NAME.zarr/
      zarr.json                       root group; its attributes are the header
      manifest.json                   written last: the store is complete when it is there
      codec/ARRAY                     what the codec keeps once, if it does
      {train,validation,test}/
        keys, digests   (R,) uint64   which samples the rows are
        ARRAY       (V, R, ...)       the codec's arrays, view by view
      records.jsonl                   a line a finished shard, as the manifest repeats it
      records/                        only while unfinished: the lines of shards made since
      growth/                         only while a complete store grows; see growth.py

A shard is one view of one block of rows, one file an array; its inner chunks are read alone or
together. `train` holds V augmented views, the other two the un-augmented images as their one view.
A split without samples has no section. Rows come in extents: the samples of the first dump, then those
of each later addition, which begin at the next block, so that no finished shard is touched; rows
between two extents hold nothing.

These names are all that a store can have: each is computed here, none is taken from a file of the store.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.codecs import ArraySpec
from pipeline.codecs.rule import SOFTMAX, Measures
from pipeline.core.errors import quoted
from pipeline.core.forms import require_form
from pipeline.store.wire import LayoutForm

SCHEMA = 3
MANIFEST = "manifest.json"
ZARR_JSON = "zarr.json"
RECORDS = "records"
GROWTH = "growth"
GATHERED = "records.jsonl"
CODEC_GROUP = "codec"
INDEX_ARRAYS = ("keys", "digests")
CHUNK_ROWS = 4096
_SHARD_BYTES = 64 << 20
_BLOCKS_AT_LEAST = 8
_INDEX_CHUNK_ROWS = 1 << 16
_SHARD_ID = re.compile(r"(train|validation|test)\.v([0-9]{5,7})\.b([0-9]{5,11})")
_CODEC_FILE = re.compile(r"codec/(zarr\.json|[a-z]{1,16}/(zarr\.json|c(/[0-9]{1,9}){0,3}))")


@dataclass(frozen=True, slots=True, order=True)
class ShardId:
    """One view of one block of one section's rows."""

    section: str
    view: int
    block: int

    def __str__(self) -> str:
        return f"{self.section}.v{self.view:05d}.b{self.block:05d}"

    @classmethod
    def parse(cls, text: str) -> ShardId:
        """Return the shard that `str` named.

        Raises:
            ValueError: it named none.
        """
        match = _SHARD_ID.fullmatch(text)
        shard = None if match is None else cls(match[1], int(match[2]), int(match[3]))
        if shard is None or str(shard) != text:
            raise ValueError(f"{quoted(text)} is no shard")
        return shard


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A split's part of the store.

    Args:
        name: train, validation or test.
        extents: (first row, samples) of each addition, ascending; each begins at a block.
        n_views: V views of each sample.
    """

    name: str
    extents: tuple[tuple[int, int], ...]
    n_views: int

    @property
    def n_samples(self) -> int:
        """Rows that hold a sample."""
        return sum(count for _, count in self.extents)

    @property
    def n_rows(self) -> int:
        """R, the length of the arrays: samples, and unused rows between extents."""
        first, count = self.extents[-1]
        return first + count

    def n_blocks(self, shard_rows: int) -> int:
        """Return the number of its blocks."""
        return sum(-(-count // shard_rows) for _, count in self.extents)

    def rows(self) -> NDArray[np.int64]:
        """Return the row of each sample (N,)."""
        return np.concatenate([np.arange(first, first + count) for first, count in self.extents])


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a store is cut.

    Args:
        codec: its name.
        arrays: those of the codec, in each section.
        n_classes: C.
        shard_rows: rows of a block; a multiple of `chunk_rows`.
        sections: of the splits that have samples, by name, in the order train, validation, test.
    """

    codec: str
    arrays: Mapping[str, ArraySpec]
    n_classes: int
    shard_rows: int
    sections: Mapping[str, Section]

    @property
    def chunk_rows(self) -> int:
        """Rows of an inner chunk."""
        return min(CHUNK_ROWS, self.shard_rows)

    @property
    def measures(self) -> Measures:
        """What its records measure the codec by: a layout says nothing else so far than a softmax."""
        return SOFTMAX

    @property
    def n_shards(self) -> int:
        """The number of shards, told without counting them one by one."""
        return sum(s.n_blocks(self.shard_rows) * s.n_views for s in self.sections.values())

    @property
    def index_chunk_rows(self) -> int:
        """Rows of a file of keys, or of digests."""
        return max(self.shard_rows, _INDEX_CHUNK_ROWS)

    def holds(self, shard: ShardId) -> bool:
        """Whether a shard is one of this layout's."""
        section = self.sections.get(shard.section)
        if section is None:
            return False
        return shard.view < section.n_views and shard.block < section.n_blocks(self.shard_rows)

    def blocks(self, section: str) -> list[slice]:
        """Return the rows of each block of a section."""
        return [
            slice(start, min(start + self.shard_rows, first + count))
            for first, count in self.sections[section].extents
            for start in range(first, first + count, self.shard_rows)
        ]

    def rows(self, shard: ShardId) -> slice:
        """Return a shard's rows."""
        start = shard.block * self.shard_rows
        end = next(
            first + n for first, n in reversed(self.sections[shard.section].extents) if first <= start
        )
        return slice(start, min(start + self.shard_rows, end))

    def n_rows(self, shard: ShardId) -> int:
        """Return the number of a shard's rows."""
        rows = self.rows(shard)
        return int(rows.stop - rows.start)

    def shards(self) -> Iterator[ShardId]:
        """Yield every shard: held-out sections first, then block by block with all its views."""
        for name in reversed(list(self.sections)):
            for block in range(len(self.blocks(name))):
                for view in range(self.sections[name].n_views):
                    yield ShardId(name, view, block)

    def shard_file(self, shard: ShardId, array: str) -> Path:
        """Return the path of a shard's file of one array, relative to the store."""
        chunk = [str(shard.view), str(shard.block), *("0" for _ in self.arrays[array].shape)]
        return Path(shard.section, array, "c", *chunk)

    def shard_files(self) -> Iterator[str]:
        """Yield the names of all shards' files."""
        for shard in self.shards():
            for array in self.arrays:
                yield self.shard_file(shard, array).as_posix()

    def index_files(self, section: str, column: str) -> list[str]:
        """Return the names of the files of a section's keys, or of its digests."""
        chunks = -(-self.sections[section].n_rows // self.index_chunk_rows)
        return [f"{section}/{column}/c/{chunk}" for chunk in range(chunks)]

    def frame_files(self) -> set[str]:
        """Return the names of the files that every store of this layout has besides its shards.

        Those of the codec's state, which only its arrays tell, are not among them: see `is_codec_file`.
        """
        names = {ZARR_JSON}
        for section in self.sections:
            arrays = (*INDEX_ARRAYS, *self.arrays)
            names |= {f"{section}/{ZARR_JSON}", *(f"{section}/{a}/{ZARR_JSON}" for a in arrays)}
            names |= {name for column in INDEX_ARRAYS for name in self.index_files(section, column)}
        return names

    def with_section(self, section: Section) -> Layout:
        """Return a layout that has this section in the place of the one of its name."""
        names = [name for name in ("train", "validation", "test") if name in {*self.sections, section.name}]
        both = {**self.sections, section.name: section}
        return replace(self, sections={name: both[name] for name in names})

    def to_dict(self) -> dict[str, Any]:
        """Return the layout as plain values."""
        return {
            "codec": self.codec,
            "arrays": {name: spec.to_dict() for name, spec in self.arrays.items()},
            "n_classes": self.n_classes,
            "shard_rows": self.shard_rows,
            "sections": {
                name: {"extents": [list(extent) for extent in section.extents], "views": section.n_views}
                for name, section in self.sections.items()
            },
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Layout:
        """Return the layout that `to_dict` described.

        Raises:
            ValueError: a value is out of its range, or does not go with the others.
        """
        require_form(LayoutForm, value)
        sections = {
            name: Section(
                name=name,
                extents=tuple((first, count) for first, count in entry["extents"]),
                n_views=entry["views"],
            )
            for name, entry in value["sections"].items()
        }
        arrays = {name: ArraySpec.from_dict(spec) for name, spec in value["arrays"].items()}
        layout = cls(**{**value, "arrays": arrays, "sections": sections})
        layout._require_consistent()
        return layout

    def _require_consistent(self) -> None:
        """Refuse a layout that no dump has: the numbers of rows, blocks and views go together."""
        if self.shard_rows % self.chunk_rows:
            raise ValueError(f"shard_rows is {self.shard_rows}, no multiple of {self.chunk_rows}")
        if "train" not in self.sections:
            raise ValueError("it has no section train")
        if taken := set(self.arrays) & set(INDEX_ARRAYS):
            raise ValueError(f"the codec has an array {min(taken)}, which is the index's")
        for section in self.sections.values():
            if section.name != "train" and section.n_views != 1:
                raise ValueError(f"{section.name} has {section.n_views} views, expected one")
            expected = 0
            for first, count in section.extents:
                if first != expected or not count:
                    raise ValueError(
                        f"{section.name} has {count:,} rows from row {first:,} on, expected some from row "
                        f"{expected:,} on"
                    )
                expected = -(-(first + count) // self.shard_rows) * self.shard_rows


def is_codec_file(name: str) -> bool:
    """Whether a name is one that a file of a codec's state can have."""
    return _CODEC_FILE.fullmatch(name) is not None


def default_shard_rows(row_bytes: int, n_samples: int) -> int:
    """Return rows for shards of about 64 MB, fewer for small data: a shard is the unit of lost work."""
    by_size = _SHARD_BYTES // (row_bytes * CHUNK_ROWS)
    by_count = n_samples // (_BLOCKS_AT_LEAST * CHUNK_ROWS)
    return CHUNK_ROWS * max(1, min(by_size, by_count))
