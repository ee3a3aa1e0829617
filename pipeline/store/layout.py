"""The store's form: which arrays there are, how they are cut, what each shard's file is called.

    NAME.zarr/
      zarr.json                       root group; attributes: schema, codec, fingerprint, sections
      manifest.json                   written last: the store is complete when it is there
      {train,validation,test}/
        keys, digests   (N,) uint64   which samples the rows are
        ARRAY       (V, N, ...)       the codec's arrays, view by view
      records/                        only while unfinished: a line of the later manifest a shard

A shard is one view of one block of rows, one file an array; its inner chunks are read alone or
together. `train` holds V augmented views, the other two the un-augmented images as their one view.
A split without samples has no section.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.codecs import Codec, find_codec
from pipeline.codecs.codec import ArraySpec

SCHEMA = 1
MANIFEST = "manifest.json"
ZARR_JSON = "zarr.json"
RECORDS = "records"
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
        n_samples: N rows.
        n_views: V views of each.
    """

    name: str
    n_samples: int
    n_views: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a store is cut.

    Args:
        codec: its name.
        n_classes: C.
        shard_rows: rows of a block; a multiple of `chunk_rows`.
        sections: of the splits that have samples, by name, in the order train, validation, test.
    """

    codec: str
    n_classes: int
    shard_rows: int
    sections: Mapping[str, Section]

    @property
    def chunk_rows(self) -> int:
        """Rows of an inner chunk."""
        return min(CHUNK_ROWS, self.shard_rows)

    def arrays(self) -> Mapping[str, ArraySpec]:
        """Return the arrays that each section has."""
        return find_codec(self.codec, self.n_classes).arrays

    def blocks(self, section: str) -> int:
        """Return the number of blocks of a section."""
        return -(-self.sections[section].n_samples // self.shard_rows)

    def rows(self, shard: ShardId) -> slice:
        """Return a shard's rows."""
        start = shard.block * self.shard_rows
        return slice(start, start + self.n_rows(shard))

    def n_rows(self, shard: ShardId) -> int:
        """Return the number of a shard's rows."""
        start = shard.block * self.shard_rows
        return min(self.shard_rows, self.sections[shard.section].n_samples - start)

    def shards(self) -> Iterator[ShardId]:
        """Yield every shard: held-out sections first, then block by block with all its views."""
        for name in reversed(list(self.sections)):
            for block in range(self.blocks(name)):
                for view in range(self.sections[name].n_views):
                    yield ShardId(name, view, block)

    def shard_file(self, shard: ShardId, array: str) -> Path:
        """Return the path of a shard's file of one array, relative to the store."""
        spec = self.arrays()[array]
        chunk = [str(shard.view), str(shard.block), *("0" for _ in spec.shape)]
        return Path(shard.section, array, "c", *chunk)

    def to_dict(self) -> dict[str, Any]:
        """Return the layout as plain values."""
        return {
            "codec": self.codec,
            "n_classes": self.n_classes,
            "shard_rows": self.shard_rows,
            "sections": {
                name: {"samples": section.n_samples, "views": section.n_views}
                for name, section in self.sections.items()
            },
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Layout:
        """Return the layout that `to_dict` described."""
        sections = {
            name: Section(name=name, n_samples=entry["samples"], n_views=entry["views"])
            for name, entry in value["sections"].items()
        }
        return cls(**{**value, "sections": sections})


def default_shard_rows(codec: Codec, n_samples: int) -> int:
    """Return rows for shards of about 64 MB, fewer for small data: a shard is the unit of lost work."""
    row_bytes = sum(_bytes(spec) for spec in codec.arrays.values())
    by_size = _SHARD_BYTES // (row_bytes * CHUNK_ROWS)
    by_count = n_samples // (_BLOCKS_AT_LEAST * CHUNK_ROWS)
    return CHUNK_ROWS * max(1, min(by_size, by_count))


def _bytes(spec: ArraySpec) -> int:
    return math.prod(spec.shape) * np.dtype(spec.dtype).itemsize
