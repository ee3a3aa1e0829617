"""The store's format: its arrays, their shards, and the name of every file.

    NAME.zarr/
      zarr.json                       root group; its attributes are the header
      manifest.json                   written last: a store with a manifest is complete
      codec/ARRAY                     arrays of the codec's state, if it has one
      {train,validation,test}/
        keys, digests   (R,) uint64   identify the rows' samples and their contents
        labels          (R,) uint64   the labels at the dump: see index.py; older stores have none
        ARRAY       (V, R, ...)       the codec's arrays, view by view
      catalogues/DIGEST, DIGEST.copy  records of one view's shards; see catalogue.py
      records/                        only while unfinished: a record per shard
      records.jsonl                   instead of catalogues in stores of schema 3
      growth/                         only while a complete store grows; see growth.py

A shard is one view of one block of rows, one file per array. Its inner chunks can be read one by one or
together. `train` holds V augmented views; the other two hold the un-augmented samples as their only view. A
split without samples has no section.

Rows come in extents: the samples of the first dump, then the samples of each later addition. An extent
begins at the next block, so that finished shards stay untouched; rows between extents are unused. E.g. with
blocks of 4,096 rows, 10,000 samples and then 500 more:

    extents (0, 10000), (12288, 500)    R = 12,788 rows, N = 10,500 samples
    blocks  0: 0-4095    1: 4096-8191    2: 8192-9999    3: 12288-12787

A store has no other names: this module computes each one, and takes none from a file of the store.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.codecs import ArraySpec
from pipeline.codecs.rule import SOFTMAX, Measures
from pipeline.core.errors import quoted
from pipeline.core.forms import require_form
from pipeline.store.wire import LayoutForm

SCHEMA = 4
# Schema 3 has a record per shard in the manifest, and a copy of them in `records.jsonl`.
OF_RECORDS = 3
SCHEMAS = (OF_RECORDS, SCHEMA)
MANIFEST = "manifest.json"
ZARR_JSON = "zarr.json"
# Of a re-headed store: the weights of its head.
HEAD = "head.safetensors"
RECORDS = "records"
GROWTH = "growth"
GATHERED = "records.jsonl"
CATALOGUES = "catalogues"
CODEC_GROUP = "codec"
INDEX_ARRAYS = ("keys", "digests", "labels")
# Rows that are compressed, and decompressed, together.
CHUNK_ROWS = 4096
_SHARD_BYTES = 64 << 20
_BLOCKS_AT_LEAST = 8
# A catalogue of so many shards is about a megabyte.
_SPAN_SHARDS = 1024
_INDEX_CHUNK_ROWS = 1 << 16  # 512 KiB per file of keys, digests or labels
_SHARD_ID = re.compile(r"(train|validation|test)\.v([0-9]{5,7})\.b([0-9]{5,11})")
_SHARD_FILE = re.compile(r"(train|validation|test)/(\w+)/c/([0-9]{1,7})/([0-9]{1,11})(?:/0)*")
_CATALOGUE_FILE = re.compile(rf"{CATALOGUES}/([0-9a-f]{{64}})(\.copy)?")
_CODEC_FILE = re.compile(r"codec/(zarr\.json|[a-z]{1,16}/(zarr\.json|c(/[0-9]{1,9}){0,3}))")


@dataclass(frozen=True, slots=True, order=True)
class ShardId:
    """One view of one block of a section's rows."""

    section: str
    view: int
    block: int

    def __str__(self) -> str:
        return f"{self.section}.v{self.view:05d}.b{self.block:05d}"

    @classmethod
    def parse(cls, text: str) -> ShardId:
        """Return the shard that `str` named.

        Raises:
            ValueError: the text names no shard.
        """
        match = _SHARD_ID.fullmatch(text)
        shard = None if match is None else cls(match[1], int(match[2]), int(match[3]))
        # Only the canonical text: `train.v0000012.b00000` is view 12 too, but names no file.
        if shard is None or str(shard) != text:
            raise ValueError(f"{quoted(text)} is not a shard")
        return shard


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """The shards of one catalogue: consecutive blocks of one view of one extent."""

    section: str
    view: int
    first: int
    count: int

    @classmethod
    def of(cls, shard: ShardId) -> Span:
        """Return the span of one shard."""
        return cls(shard.section, shard.view, shard.block, 1)

    def __str__(self) -> str:
        return str(ShardId(self.section, self.view, self.first))

    def shards(self) -> Iterator[ShardId]:
        """Yield the shards."""
        return (ShardId(self.section, self.view, self.first + place) for place in range(self.count))


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """The rows and views of one split.

    Args:
        name: train, validation or test.
        extents: (first row, samples) of each addition, ascending; each begins at a block.
        n_views: V, views per sample.
    """

    name: str
    extents: tuple[tuple[int, int], ...]
    n_views: int

    @property
    def n_samples(self) -> int:
        """N, the number of rows with a sample."""
        return sum(count for _, count in self.extents)

    @property
    def n_rows(self) -> int:
        """R, the length of the arrays: samples, and unused rows between extents."""
        first, count = self.extents[-1]
        return first + count

    def n_blocks(self, shard_rows: int) -> int:
        """Return the number of blocks."""
        return sum(-(-count // shard_rows) for _, count in self.extents)

    def rows(self) -> NDArray[np.int64]:
        """Return the row of each sample (N,)."""
        # e.g. (N,) = 0 ... 9999, 12288 ... 12787 for the extents of this module's docstring.
        return np.concatenate([np.arange(first, first + count) for first, count in self.extents])


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The arrays, sections and shards of a store.

    Args:
        codec: its name.
        arrays: the codec's arrays, which each section has.
        n_classes: C.
        shard_rows: rows per block; a multiple of `chunk_rows`.
        sections: by name, of the splits with samples, in the order train, validation, test.
        measures: names of the codec's costs in the records, and the outputs' link; a softmax's are not
            written, since stores of older versions have no others.
        keeps_labels: whether rows have labels of their own. In stores of older versions they have none,
            and digests cover contents and labels together.
    """

    codec: str
    arrays: Mapping[str, ArraySpec]
    n_classes: int
    shard_rows: int
    sections: Mapping[str, Section]
    measures: Measures = SOFTMAX
    keeps_labels: bool = False

    @property
    def index_arrays(self) -> tuple[str, ...]:
        """The arrays that identify the samples of rows."""
        return INDEX_ARRAYS if self.keeps_labels else INDEX_ARRAYS[:2]

    @property
    def chunk_rows(self) -> int:
        """Rows per inner chunk."""
        return min(CHUNK_ROWS, self.shard_rows)

    @property
    def n_shards(self) -> int:
        """The number of shards, computed without enumerating them."""
        return sum(s.n_blocks(self.shard_rows) * s.n_views for s in self.sections.values())

    @property
    def index_chunk_rows(self) -> int:
        """Rows per file of keys, digests or labels."""
        return max(self.shard_rows, _INDEX_CHUNK_ROWS)

    def holds(self, shard: ShardId) -> bool:
        """Whether the layout has this shard."""
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
        # Every extent begins at a block, so a block's number gives its first row; only its end varies.
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
        """Yield every shard: held-out sections first, then all views of each training block in turn."""
        for name in reversed(list(self.sections)):
            for block in range(len(self.blocks(name))):
                for view in range(self.sections[name].n_views):
                    yield ShardId(name, view, block)

    @property
    def n_spans(self) -> int:
        """The number of spans, computed without enumerating them."""
        return sum(section.n_views * len(self._cuts(section)) for section in self.sections.values())

    def spans(self) -> Iterator[Span]:
        """Yield the spans of all shards, view by view.

        No span crosses an extent, so that a growth adds spans and changes none: more views have their own,
        and so do the blocks of an addition.
        """
        for section in self.sections.values():
            for view in range(section.n_views):
                yield from (Span(section.name, view, first, count) for first, count in self._cuts(section))

    def span_of(self, shard: ShardId) -> Span:
        """Return the span of a shard of this layout."""
        cuts = self._cuts(self.sections[shard.section])
        first, count = next(cut for cut in reversed(cuts) if cut[0] <= shard.block)
        return Span(shard.section, shard.view, first, count)

    def has_span(self, span: Span) -> bool:
        """Whether one of the layout's spans is this one."""
        first = ShardId(span.section, span.view, span.first)
        return self.holds(first) and self.span_of(first) == span

    def _cuts(self, section: Section) -> list[tuple[int, int]]:
        """Return (first block, blocks) of each span of a view."""
        # e.g. 2,500 blocks, then an addition of 2: (0, 1024), (1024, 1024), (2048, 452), (2500, 2)
        cuts = []
        for first, count in section.extents:
            start, blocks = first // self.shard_rows, -(-count // self.shard_rows)
            cuts += [
                (start + place, min(_SPAN_SHARDS, blocks - place))
                for place in range(0, blocks, _SPAN_SHARDS)
            ]
        return cuts

    def held_out_shards(self) -> Iterator[ShardId]:
        """Yield the shards of all sections but train, without a step for each training shard."""
        return takewhile(lambda shard: shard.section != "train", self.shards())

    def shard_file(self, shard: ShardId, array: str) -> Path:
        """Return the path of a shard's file of one array, relative to the store."""
        return Path(self.shard_name(shard, array))

    def shard_name(self, shard: ShardId, array: str) -> str:
        """Return the name of a shard's file of one array in the store."""
        # zarr's key of a shard of shape (1, shard_rows, *sample): view, block, then 0 for each sample axis.
        zeros = "/0" * len(self.arrays[array].shape)
        return f"{shard.section}/{array}/c/{shard.view}/{shard.block}{zeros}"

    def shard_of(self, file: str) -> ShardId | None:
        """Return the shard of a file by its name in the store; None for other files."""
        match = _SHARD_FILE.fullmatch(file)
        if match is None or match[2] not in self.arrays:
            return None
        shard = ShardId(match[1], int(match[3]), int(match[4]))
        same = self.holds(shard) and self.shard_name(shard, match[2]) == file
        return shard if same else None

    def shard_files(self) -> Iterator[str]:
        """Yield the names of all shards' files."""
        for shard in self.shards():
            for array in self.arrays:
                yield self.shard_name(shard, array)

    def index_files(self, section: str, column: str) -> list[str]:
        """Return the names of the files of a section's keys, digests or labels."""
        chunks = -(-self.sections[section].n_rows // self.index_chunk_rows)
        return [f"{section}/{column}/c/{chunk}" for chunk in range(chunks)]

    def frame_files(self) -> set[str]:
        """Return the names of the files, besides shards, in every store of this layout.

        Files of the codec's state are excluded, because they depend on its arrays: see `is_codec_file`.
        """
        names = {ZARR_JSON}
        for section in self.sections:
            arrays = (*self.index_arrays, *self.arrays)
            names |= {f"{section}/{ZARR_JSON}", *(f"{section}/{a}/{ZARR_JSON}" for a in arrays)}
            names |= {name for column in self.index_arrays for name in self.index_files(section, column)}
        return names

    def with_section(self, section: Section) -> Layout:
        """Return a layout with this section instead of the one of the same name."""
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
            **({} if self.measures == SOFTMAX else {"measures": self.measures.to_dict()}),
            **({"keeps_labels": True} if self.keeps_labels else {}),
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Layout:
        """Return the layout that `to_dict` described.

        Raises:
            ValueError: a value is out of range, or contradicts another.
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
        measures = Measures.from_dict(value["measures"]) if "measures" in value else SOFTMAX
        layout = cls(**{**value, "arrays": arrays, "sections": sections, "measures": measures})
        layout._require_consistent()
        return layout

    def _require_consistent(self) -> None:
        """Refuse a layout that no dump produces, with contradicting numbers of rows, blocks or views."""
        if self.shard_rows % self.chunk_rows:
            raise ValueError(f"shard_rows is {self.shard_rows}, not a multiple of {self.chunk_rows}")
        if "train" not in self.sections:
            raise ValueError("section train is missing")
        if len(self.measures.scales) not in (0, self.n_classes):
            raise ValueError(f"it has {len(self.measures.scales)} scales for {self.n_classes} outputs")
        if taken := set(self.arrays) & set(INDEX_ARRAYS):
            raise ValueError(f"the codec has an array {min(taken)}, a name reserved for the index")
        for section in self.sections.values():
            if section.name != "train" and section.n_views != 1:
                raise ValueError(f"{section.name} has {section.n_views} views, expected one")
            expected = 0
            for first, count in section.extents:
                if first != expected or not count:
                    raise ValueError(
                        f"{section.name} has {count:,} rows from row {first:,}, expected at least one "
                        f"from row {expected:,}"
                    )
                # Round up to the next block: where the next extent must begin.
                expected = -(-(first + count) // self.shard_rows) * self.shard_rows


def catalogue_file(digest: str, *, copy: bool = False) -> str:
    """Return the name of a catalogue, or of its copy, by its SHA-256 (hex)."""
    return f"{CATALOGUES}/{digest}{'.copy' if copy else ''}"


def catalogue_digest(name: str) -> str | None:
    """Return the digest in the name of a catalogue or of its copy; None for other files."""
    match = _CATALOGUE_FILE.fullmatch(name)
    return match[1] if match else None


def is_codec_file(name: str) -> bool:
    """Whether a file of a codec's state can have this name."""
    return _CODEC_FILE.fullmatch(name) is not None


def default_shard_rows(row_bytes: int, n_samples: int) -> int:
    """Return rows per shard: about 64 MB, less for small data, because a kill loses unfinished shards."""
    # e.g. affine8 with 1,000 classes, 1,002 bytes per row: 16 chunks, so 65,536 rows, for ImageNet;
    # 1 chunk, 4,096 rows, for 50,000 samples, so that a view still has several blocks.
    by_size = _SHARD_BYTES // (row_bytes * CHUNK_ROWS)
    by_count = n_samples // (_BLOCKS_AT_LEAST * CHUNK_ROWS)
    return CHUNK_ROWS * max(1, min(by_size, by_count))
