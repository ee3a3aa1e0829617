"""Catalogues: the records of one view's shards as arrays, in one small file that is written once.

    line 1    JSON: shards, names and sizes of the arrays below
    then      the arrays of `_columns`, little-endian, one after the other

A catalogue's name is its SHA-256, so it proves itself, and nothing ever changes it. The manifest names the
catalogue of each span. While a store is written, each finished shard has a catalogue of its own,
its record.

Of n shards with A arrays, K divergences, W checksummed samples and B bins of histograms in total:

    rows, labelled, correct, samples, same   (n,)     correct is -1 if the task counts no correct answers
    sizes (n, A), digests (n, A, 32)                  bytes and SHA-256 of each file
    totals, bins             (n, K)                   sum of each divergence, and bins of its histogram
    crcs (W,), values (W, n values)                   of rendered samples, see `records.RenderChecksums`
    edges, counts            (B,)                     histograms: all of the first shard, then the next
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.codecs.fidelity import HIGHEST_BIN, Divergence, Fidelity
from pipeline.codecs.rule import Measures
from pipeline.core.errors import quoted
from pipeline.core.files import parse_object
from pipeline.core.forms import require_form
from pipeline.core.hashing import canonical_json
from pipeline.store.arrays import logits_array
from pipeline.store.layout import Layout, ShardId, Span
from pipeline.store.records import CHECKSUMS_A_SHARD, RenderChecksums, ShardRecord, require_measures
from pipeline.store.wire import MOST_SHARD_ROWS, CatalogueForm

_DIGEST_BYTES = 32
_MOST_HEAD_BYTES = 1 << 14
# Checksums and values of a shard's samples.
_MOST_CHECKED_BYTES = 1 << 16
Columns = dict[str, NDArray[Any]]
Largest = Mapping[tuple[str, str], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    """The first line of a catalogue.

    Args:
        first: name of the first shard.
        shards: n.
        made: digest of teacher, views and codec: see `Header.origin`.
        arrays: A names, sorted.
        divergences, agreement: names of the measures.
        dtype, width: of the values that are kept of each checksummed sample.
        checked, bins: W and B.
    """

    first: str
    shards: int
    made: str
    arrays: tuple[str, ...]
    divergences: tuple[str, ...]
    agreement: str
    dtype: str
    width: int
    checked: int
    bins: int

    def line(self) -> bytes:
        plain = {name: getattr(self, name) for name in self.__slots__}
        return canonical_json(plain).encode() + b"\n"

    def columns(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return dtype and shape of each array, in the order of the file."""
        n, n_arrays, n_divergences = self.shards, len(self.arrays), len(self.divergences)
        kind = np.dtype(self.dtype).newbyteorder("<").str
        return {
            **dict.fromkeys(("rows", "labelled", "samples", "same"), ("<u4", (n,))),
            "correct": ("<i4", (n,)),
            "sizes": ("<u8", (n, n_arrays)),
            "digests": ("|u1", (n, n_arrays, _DIGEST_BYTES)),
            "totals": ("<f8", (n, n_divergences)),
            "bins": ("<u4", (n, n_divergences)),
            "crcs": ("<u4", (self.checked,)),
            "values": (kind, (self.checked, self.width)),
            "edges": ("<i2", (self.bins,)),
            "counts": ("<u4", (self.bins,)),
        }


@dataclass(frozen=True, eq=False)
class Catalogue:
    """The records of the shards of one span.

    Args:
        span: of the shards.
        head: names and sizes.
        columns: the arrays of the module's docstring.
    """

    span: Span
    head: _Head
    columns: Columns

    @classmethod
    def of(cls, span: Span, records: Sequence[ShardRecord], made: str) -> Catalogue:
        """Return the catalogue of n records of the same arrays and measures, by ascending block.

        Raises:
            ValueError: the records keep different values of samples.
        """
        arrays, measures = sorted(records[0].files), records[0].fidelity.measures
        names = measures.divergences
        parts = [record.fidelity.divergences[name] for record in records for name in names]
        histograms = [sorted(part.histogram.items()) for part in parts]
        values = [record.checksums.values for record in records]
        if len({(some.shape[1], some.dtype.name) for some in values}) != 1:
            raise ValueError(f"{span} and the next shards have different kinds of samples")
        files = [record.files[array] for record in records for array in arrays]
        columns: dict[str, Any] = {
            **{name: [getattr(r, name) for r in records] for name in ("rows", "labelled")},
            "samples": [record.fidelity.samples for record in records],
            "same": [record.fidelity.same for record in records],
            "correct": [-1 if record.correct is None else record.correct for record in records],
            "sizes": [size for size, _ in files],
            "digests": list(b"".join(bytes.fromhex(digest) for _, digest in files)),
            "totals": [part.total for part in parts],
            "bins": [len(histogram) for histogram in histograms],
            "crcs": [crc for record in records for crc in record.checksums.crcs],
            "values": np.concatenate(values),
            "edges": [edge for histogram in histograms for edge, _ in histogram],
            "counts": [count for histogram in histograms for _, count in histogram],
        }
        head = _Head(
            first=str(span),
            shards=span.count,
            made=made,
            arrays=tuple(arrays),
            divergences=tuple(names),
            agreement=measures.agreement,
            dtype=values[0].dtype.name,
            width=values[0].shape[1],
            checked=sum(len(record.checksums.crcs) for record in records),
            bins=sum(map(len, histograms)),
        )
        shaped = {
            name: np.asarray(columns[name], dtype).reshape(shape)
            for name, (dtype, shape) in head.columns().items()
        }
        return cls(span, head, shaped)

    @classmethod
    def joined(cls, span: Span, parts: Sequence[Catalogue]) -> Catalogue:
        """Return one catalogue of the shards of several, which follow one another.

        Raises:
            ValueError: the parts keep different values of samples.
        """
        first, totals = parts[0].head, ("shards", "checked", "bins")
        sums = {name: sum(getattr(part.head, name) for part in parts) for name in totals}
        own = {name: getattr(first, name) for name in first.__slots__ if name not in totals}
        for part in parts:
            other = {name: getattr(part.head, name) for name in own if name != "first"}
            if other != {name: value for name, value in own.items() if name != "first"}:
                raise ValueError(f"{part.span} and {span} have different kinds of records")
        columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in first.columns()}
        return cls(span, _Head(**own, **sums), columns)

    @classmethod
    def parse(cls, content: bytes, *, is_sound: bool = False) -> Catalogue:
        """Return the catalogue that `to_bytes` described; the content may be anybody's.

        Args:
            content: of the file.
            is_sound: leave the check of its values to the caller.

        Raises:
            ValueError: it is none, or a value is out of range or contradicts another.
        """
        line, mark, _ = content[:_MOST_HEAD_BYTES].partition(b"\n")
        if not mark:
            raise ValueError("not a catalogue")
        plain = parse_object(line)
        require_form(CatalogueForm, plain)
        head = _Head(
            **{**plain, "arrays": tuple(plain["arrays"]), "divergences": tuple(plain["divergences"])}
        )
        shard, offset = ShardId.parse(head.first), len(line) + 1
        kinds = {
            name: (np.dtype(dtype), shape, prod(shape)) for name, (dtype, shape) in head.columns().items()
        }
        expected = offset + sum(dtype.itemsize * count for dtype, _, count in kinds.values())
        if len(content) != expected:
            raise ValueError(f"a catalogue of {len(content):,} bytes, expected {expected:,}")
        columns: Columns = {}
        for name, (dtype, shape, count) in kinds.items():
            columns[name] = np.frombuffer(content, dtype, count, offset).reshape(shape)
            offset += columns[name].nbytes
        found = cls(Span(shard.section, shard.view, shard.block, head.shards), head, columns)
        if not is_sound:
            found.require_sound()
        return found

    def to_bytes(self) -> bytes:
        """Return the content of the file."""
        return self.head.line() + b"".join(
            np.ascontiguousarray(self.columns[name], dtype).tobytes()
            for name, (dtype, _) in self.head.columns().items()
        )

    def require_sound(self) -> None:
        """Refuse values that contradict each other.

        Raises:
            ValueError: says which.
        """
        rows, samples, bins = (self.columns[name].astype(np.int64) for name in ("rows", "samples", "bins"))
        labelled, correct = self.columns["labelled"], self.columns["correct"]
        totals, edges = self.columns["totals"], self.columns["edges"].astype(np.int64)
        ends = np.cumsum(bins.ravel())
        # (n K,) samples of each histogram, from running sums: counts [3, 1, 4] in 2 bins and 1: 4 and 4.
        running = np.concatenate([[0], np.cumsum(self.columns["counts"], dtype=np.int64)])
        ascending = np.diff(edges) > 0
        ascending[ends[ends < len(edges)] - 1] = True
        for problem, holds in (
            ("rows", ((rows > 0) & (rows <= MOST_SHARD_ROWS)).all()),
            ("labels", ((labelled <= rows) & (correct <= labelled.astype(np.int64))).all()),
            ("correct answers", (correct >= -1).all()),
            ("measured samples", ((samples <= rows) & (self.columns["same"] <= samples)).all()),
            ("file sizes", (self.columns["sizes"] > 0).all()),
            ("divergences", (np.isfinite(totals) & (totals >= 0)).all()),
            ("render checksums", np.minimum(rows, CHECKSUMS_A_SHARD).sum() == self.head.checked),
            ("bins", int(bins.sum()) == len(edges) and (np.abs(edges) <= HIGHEST_BIN).all()),
        ):
            if not holds:
                raise ValueError(f"a catalogue with impossible {problem}")
        counted = running[ends] - running[ends - bins.ravel()]
        if not ascending.all() or (counted != np.repeat(samples, bins.shape[1])).any():
            raise ValueError("a histogram does not count its samples")

    def require(self, layout: Layout, made: str, largest: Largest | None = None) -> None:
        """Refuse a catalogue of another store, or of shards that the layout lacks or has differently.

        Args:
            layout: of the store.
            made: `Header.origin` of the store.
            largest: `largest_files` of the layout, if many catalogues are compared.

        Raises:
            ValueError: says what differs.
        """
        if self.head.made != made:
            raise ValueError(f"{self.span} belongs to another store: teacher, views or codec differ")
        measures = Measures(divergences=self.head.divergences, agreement=self.head.agreement)
        require_measures(str(self.span), measures, layout.measures)
        if list(self.head.arrays) != sorted(layout.arrays):
            raise ValueError(
                f"{self.span} has files for {quoted(self.head.arrays)}, but the layout has others"
            )
        for shard, rows in zip(self.span.shards(), self.columns["rows"].tolist(), strict=True):
            if not layout.holds(shard):
                raise ValueError(f"{shard} is not a shard of the layout")
            if rows != layout.n_rows(shard):
                raise ValueError(f"{shard} has {rows} rows, but the layout has {layout.n_rows(shard)}")
        largest = largest_files(layout) if largest is None else largest
        sizes = self.columns["sizes"].max(0).tolist()
        for array, size in zip(self.head.arrays, sizes, strict=True):
            most = largest[self.span.section, array]
            if size > most:
                raise ValueError(f"{self.span}, {array} has {size:,} bytes, expected at most {most:,}")

    def files(self, shard: ShardId) -> dict[str, tuple[int, str]]:
        """Return (bytes, SHA-256 in hex) of a shard's file of each array."""
        place = shard.block - self.span.first
        sizes, digests = self.columns["sizes"][place].tolist(), self.columns["digests"][place]
        return {
            array: (size, digest.tobytes().hex())
            for array, size, digest in zip(self.head.arrays, sizes, digests, strict=True)
        }

    def record(self, shard: ShardId) -> ShardRecord:
        """Return the record of one shard."""
        place, columns = shard.block - self.span.first, self.columns
        correct = int(columns["correct"][place])
        return ShardRecord(
            rows=int(columns["rows"][place]),
            files=self.files(shard),
            fidelity=self._fidelity(place),
            labelled=int(columns["labelled"][place]),
            correct=None if correct < 0 else correct,
            checksums=self._checksums(place),
        )

    def only(self, shard: ShardId) -> Catalogue:
        """Return the catalogue of one of the shards."""
        if self.span.count == 1:
            return self
        place, n_divergences = shard.block - self.span.first, len(self.head.divergences)
        checked, first = self._checked[place : place + 2], place * n_divergences
        bins = slice(*self._bins[[first, first + n_divergences]].tolist())
        rows = {"crcs": slice(*checked.tolist()), "values": slice(*checked.tolist())}
        rows |= {"edges": bins, "counts": bins}
        columns = {
            name: values[rows.get(name, slice(place, place + 1))] for name, values in self.columns.items()
        }
        own = {name: getattr(self.head, name) for name in self.head.__slots__}
        own |= {"first": str(shard), "shards": 1, "checked": len(columns["crcs"])}
        return Catalogue(Span.of(shard), _Head(**{**own, "bins": len(columns["edges"])}), columns)

    def _fidelity(self, place: int) -> Fidelity:
        columns, n_divergences = self.columns, len(self.head.divergences)
        divergences = {}
        for k, name in enumerate(self.head.divergences):
            number = place * n_divergences + k
            bins = slice(*self._bins[number : number + 2].tolist())
            edges, counts = columns["edges"][bins].tolist(), columns["counts"][bins].tolist()
            histogram = dict(zip(edges, counts, strict=True))
            divergences[name] = Divergence(total=float(columns["totals"][place, k]), histogram=histogram)
        return Fidelity(
            samples=int(columns["samples"][place]),
            divergences=divergences,
            agreement=self.head.agreement,
            same=int(columns["same"][place]),
        )

    def _checksums(self, place: int) -> RenderChecksums:
        rows = slice(*self._checked[place : place + 2].tolist())
        return RenderChecksums(tuple(self.columns["crcs"][rows].tolist()), self.columns["values"][rows])

    @cached_property
    def _bins(self) -> NDArray[np.int64]:
        """The first bin of each histogram, and the end (n K + 1,)."""
        return np.concatenate([[0], np.cumsum(self.columns["bins"].ravel(), dtype=np.int64)])

    @cached_property
    def _checked(self) -> NDArray[np.int64]:
        """The first checksum of each shard, and the end (n + 1,)."""
        each = np.minimum(self.columns["rows"], CHECKSUMS_A_SHARD)
        return np.concatenate([[0], np.cumsum(each, dtype=np.int64)])


def largest_files(layout: Layout) -> Largest:
    """Return the upper bound of a shard's file, by section and array."""
    return {
        (name, array): logits_array(layout, section, array).most_file_bytes
        for name, section in layout.sections.items()
        for array in layout.arrays
    }


def most_bytes(layout: Layout, span: Span) -> int:
    """Return an upper bound of the size of a span's catalogue."""
    rows = max(layout.n_rows(shard) for shard in span.shards())
    n_divergences, bins = len(layout.measures.divergences), min(2 * HIGHEST_BIN + 1, rows)
    shard = 64 + len(layout.arrays) * 40 + n_divergences * (12 + 6 * bins)
    return _MOST_HEAD_BYTES + span.count * (shard + _MOST_CHECKED_BYTES)
