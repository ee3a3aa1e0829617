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
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.codecs import ArraySpec

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
        """Return the shard that `str` named."""
        section, view, block = text.split(".")
        return cls(section, int(view[1:]), int(block[1:]))


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
        """Return the layout that `to_dict` described."""
        sections = {
            name: Section(
                name=name,
                extents=tuple((first, count) for first, count in entry["extents"]),
                n_views=entry["views"],
            )
            for name, entry in value["sections"].items()
        }
        arrays = {name: ArraySpec.from_dict(spec) for name, spec in value["arrays"].items()}
        return cls(**{**value, "arrays": arrays, "sections": sections})


def default_shard_rows(row_bytes: int, n_samples: int) -> int:
    """Return rows for shards of about 64 MB, fewer for small data: a shard is the unit of lost work."""
    by_size = _SHARD_BYTES // (row_bytes * CHUNK_ROWS)
    by_count = n_samples // (_BLOCKS_AT_LEAST * CHUNK_ROWS)
    return CHUNK_ROWS * max(1, min(by_size, by_count))
