"""The samples of a section's rows, found by key; and additions to an existing store.

A row has the key of its sample, the digest of its content, and the word of its label at the dump. An output
of the teacher depends on the first two: another content is refused. Another label is told, and no more.

A row without a label word (`UNTOLD`) is of an older version: its digest covers content and label together,
so that another label is refused, too, until `upgrade.py` tells them apart. Stores of schema 3, and those of
schema 4 without `keeps_labels`, have such rows only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.codecs.spec import CodecSpec
from pipeline.core.errors import CorruptStoreError, MismatchError, counted
from pipeline.core.hashing import Described, array_digest, difference, spec_digest
from pipeline.places.addresses import removal
from pipeline.places.folder import Root
from pipeline.places.local import require_own_folders
from pipeline.places.location import Location
from pipeline.samples.packed import Split
from pipeline.samples.samples import NO_DECODER
from pipeline.store.arrays import Fetch
from pipeline.store.columns import read_section
from pipeline.store.commands import restoring
from pipeline.store.header import Header
from pipeline.store.layout import Layout, Section

ABSENT = -1
_MOST_SWAPS = 10_000
UNTOLD = np.iinfo(np.int64).min
Splits = Mapping[str, Split]


@dataclass(frozen=True, eq=False)
class SampleIndex:
    """Keys, content digests and labels of N samples.

    Args:
        keys: (N,) uint64.
        digests: (N,) uint64, of the content; of `UNTOLD` rows, of content and label.
        decoder: the program that decoded the samples from files.
        labels: (N,) int64, the word of each label or `UNTOLD`; None if all rows are.
    """

    keys: NDArray[np.uint64]
    digests: NDArray[np.uint64]
    decoder: str = NO_DECODER
    labels: NDArray[np.int64] | None = None
    # The last answer of `find`: keys, rows, and whether these are the first rows in order.
    _last: list[tuple[NDArray[np.uint64] | None, NDArray[np.int64], bool]] = field(
        default_factory=lambda: [(None, np.zeros(0, np.int64), False)], init=False, repr=False
    )

    @classmethod
    def of(cls, images: Split, *, labels: bool = True) -> SampleIndex:
        """Return the index of a split, in its order, with or without labels of their own."""
        if not labels:
            return cls(images.keys, images.digests, images.decoder)
        return cls(images.keys, images.content_digests, images.decoder, images.label_words)

    @classmethod
    def empty(cls, *, labels: bool) -> SampleIndex:
        """Return an index of no samples."""
        none = np.zeros(0, np.uint64)
        return cls(none, none, labels=none.view(np.int64) if labels else None)

    def column(self, name: str) -> NDArray[np.uint64]:
        """Return keys, digests or labels as a store has them, (N,) uint64."""
        values: NDArray[np.uint64] = getattr(self, name).view(np.uint64)
        return values

    @cached_property
    def untold(self) -> NDArray[np.bool_]:
        """Whether a row's digest covers its label, which is not known by itself (N,)."""
        return np.ones(len(self), np.bool_) if self.labels is None else self.labels == UNTOLD

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def _ascending(self) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        # Sorted once for all lookups, 16 bytes per sample: the order (N,), and the keys in it (N,).
        return _in_order(self.keys)

    def find(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the position of each key (n,) int64; `ABSENT` if the key is missing.

        Data in the store's order, the usual case, takes one comparison of all keys. The last answer is kept
        for the same array, and not to be changed: a student's start asks for all samples several times.
        """
        last, rows, _ = self._last[0]
        if last is not keys:
            are_first = np.array_equal(self.keys[: len(keys)], keys)
            rows = np.arange(len(keys)) if are_first else self._find(keys)
            self._last[0] = keys, rows, are_first
        return rows

    def _at(self, values: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return the values of rows that `find` returned; without a gather if they are the first ones."""
        _, last, are_first = self._last[0]
        return values[: len(rows)] if are_first and rows is last else values[rows]

    def _find(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        if not len(self):
            return np.full(len(keys), ABSENT, np.int64)
        # Both sides are sorted, so the searches walk through memory; random access takes ten times as long.
        order, ascending = self._ascending
        (asked, wanted), rows = _in_order(keys), np.empty(len(keys), np.int64)
        if np.array_equal(ascending, wanted):
            # Equal sets: the k-th smallest asked is the k-th smallest here.
            rows[asked] = order
            return rows
        # A key above all others gets place N: clamp it; the comparison then rejects it.
        place = np.minimum(np.searchsorted(ascending, wanted), len(self) - 1)
        rows[asked] = np.where(ascending[place] == wanted, order[place], ABSENT)
        return rows

    def samples_of(self, images: Split) -> NDArray[np.int64]:
        """Return the position in a split of each sample here (N,) int64; `ABSENT` if the split lacks it."""
        rows = self.find(images.keys)
        there = np.flatnonzero(rows != ABSENT)
        places = np.full(len(self), ABSENT, np.int64)
        places[rows[there]] = there
        return places

    def find_unchanged(self, images: Split, origin: str) -> NDArray[np.int64]:
        """Return the position of each sample of a split; `ABSENT` if the sample is missing.

        Args:
            images: the split.
            origin: the store, for errors.

        Raises:
            MismatchError: a sample has different content here.
        """
        rows = self.find(images.keys)
        self._require_unchanged(images, rows, origin)
        return rows

    def _require_unchanged(self, images: Split, rows: NDArray[np.int64], origin: str) -> None:
        """Refuse samples with different content here; see `find_unchanged`."""
        if not len(self):
            return
        # `ABSENT` is -1: a missing key compares with the last digest, and the first term masks the result.
        changed = self._at(self.digests, rows) != self._digests_of(images, rows)
        changed &= rows != ABSENT
        what, hint = "different content", ""
        if self.untold[rows[changed]].any():
            what += " or another label"
            hint = f"if labels were corrected, run: pipeline verify {origin} --upgrade; otherwise "
        _refuse(changed, images, origin, f"has {what} in the store{self._other_decoder(images)}", hint)

    def _digests_of(self, images: Split, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return the digests (n,) of a split's samples, made as those of these rows (n,) are."""
        # Each kind alone, if it does: content digests of older data are read from all samples.
        if not self.untold.any():
            return images.content_digests
        untold = self._at(self.untold, rows)
        if untold.all():
            return images.digests
        return np.where(untold, images.digests, images.content_digests)

    def rows_of(self, images: Split, origin: str, *, changed: bool = False) -> NDArray[np.int64]:
        """Return the position of each sample of a split.

        Args:
            images: the split.
            origin: the store, for errors.
            changed: accept samples with different content here.

        Raises:
            MismatchError: a sample is missing here, or has different content.
        """
        rows = self.find(images.keys)
        _refuse(rows == ABSENT, images, origin, "is not in the store")
        if not changed:
            self._require_unchanged(images, rows, origin)
        return rows

    def _other_decoder(self, images: Split) -> str:
        same = self.decoder == images.decoder
        return "" if same else f", decoded by {self.decoder}, here by {images.decoder}"

    def begins_with(self, other: SampleIndex) -> bool:
        """Whether the first samples are exactly the samples of another index."""
        count = len(other)
        return np.array_equal(self.keys[:count], other.keys) and np.array_equal(
            self.digests[:count], other.digests
        )

    def with_new(self, images: Split) -> SampleIndex:
        """Return an index with a split's new samples appended to the existing ones."""
        # Appended, not sorted in: existing rows keep their places in finished shards.
        labels, new = self.labels, np.flatnonzero(self.find(images.keys) == ABSENT)
        added = SampleIndex.of(images.subset(new), labels=labels is not None)
        return SampleIndex(
            np.concatenate([self.keys, added.keys]),
            np.concatenate([self.digests, added.digests]),
            self.decoder,
            None if labels is None or added.labels is None else np.concatenate([labels, added.labels]),
        )

    def digest(self) -> str:
        """Return the SHA-256 (hex) of keys and contents, in order."""
        return array_digest(self.keys, self.digests)


def _in_order(keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Return the order (n,) that sorts hashes, and the hashes in it (n,), in a third of argsort's time.

    The position of a hash takes the place of its lowest bits, and plain numbers are sorted. E.g. 14.2
    million positions have 24 bits. About a hundred pairs of hashes are equal in the other 40, and may have
    to change places.
    """
    low = np.uint64((1 << max(1, len(keys) - 1).bit_length()) - 1)
    mixed = (keys & ~low) | np.arange(len(keys), dtype=np.uint64)
    mixed.sort()
    order = (mixed & low).view(np.int64)
    ascending = keys[order]
    while len(wrong := np.flatnonzero(ascending[:-1] > ascending[1:])):
        if len(wrong) > _MOST_SWAPS or (np.diff(wrong) == 1).any():
            order = np.argsort(keys)
            return order, keys[order]
        for values in (order, ascending):
            values[wrong], values[wrong + 1] = values[wrong + 1], values[wrong]
    return order, ascending


def _refuse(problem: NDArray[np.bool_], images: Split, origin: str, what: str, hint: str = "") -> None:
    if problem.any():
        sample = images.names[int(np.argmax(problem))]
        raise MismatchError(
            f"{origin}: written for a different dataset: sample {sample!r} {what} ({int(problem.sum()):,} "
            f"of {len(images):,} samples); expected the samples that the teacher saw; {hint}restore the "
            f"data, use a new dump name, or remove the store with: {removal(origin)}"
        )


Index = dict[str, SampleIndex]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A dump's requirements of its store.

    Args:
        teacher: the teacher of the logits.
        views: the view spec.
        view_count: V.
        codec: the codec spec.
        splits: the splits with samples, by name.
    """

    teacher: Described
    views: Described
    view_count: int
    codec: CodecSpec
    splits: Splits


def dataset_digest(index: Mapping[str, SampleIndex]) -> str:
    """Return the digest of keys and contents of the samples of all sections."""
    return spec_digest({name: part.digest() for name, part in index.items()})


def labels_digest(index: Mapping[str, SampleIndex]) -> str | None:
    """Return the digest of the labels of all sections; None for an index without labels."""
    parts = {name: part.labels for name, part in index.items()}
    # Labels are of every section or of none: stores of older versions have none.
    known = {name: array_digest(labels) for name, labels in parts.items() if labels is not None}
    return spec_digest(known) if len(known) == len(parts) else None


def describing(header: Header, layout: Layout, index: Mapping[str, SampleIndex]) -> Header:
    """Return a header with this layout, and the digests of these samples and their labels."""
    fingerprint = replace(header.fingerprint, dataset=dataset_digest(index))
    return replace(header, layout=layout, fingerprint=fingerprint, labels=labels_digest(index))


def adopt(path: Root, header: Header, index: Index, wanted: Wanted) -> tuple[Header, Index]:
    """Return header and index of a store extended to what a dump wants.

    Views and samples can be added; existing ones keep their places. Every other difference is refused by
    name, with the ways out.

    Raises:
        MismatchError: teacher, dataset, views or codec differ, or the store has more views.
    """
    ways_out = f"use a new dump name, or remove it with: {removal(path)}"
    require_same_making(path, header, wanted)
    layout, grown = header.layout, dict(index)
    for name, images in wanted.splits.items():
        # A split that is new to the store begins with an empty index.
        known = index.get(name, SampleIndex.empty(labels=layout.keeps_labels))
        rows = known.find_unchanged(images, str(path))
        # No common training sample means a different dataset, not an addition.
        if name == "train" and (rows == ABSENT).all():
            raise MismatchError(
                f"{path}: written for a different dataset: the store has none of the {len(images):,} "
                f"training samples, e.g. {images.names[0]!r}; expected the samples that the teacher saw; "
                f"restore the data, {ways_out}"
            )
        grown[name] = known.with_new(images)
        n_views = wanted.view_count if name == "train" else 1
        layout = layout.with_section(
            _extended(layout, name, added=len(grown[name]) - len(known), n_views=n_views)
        )
    grown = {name: grown[name] for name in layout.sections}
    return describing(header, layout, grown), grown


def read_index(path: Root, header: Header) -> Index:
    """Return the samples of each section of an unfinished store.

    Args:
        path: the store's folder.
        header: of the store.

    Raises:
        CorruptStoreError: keys, digests or labels changed since they were written.
    """
    if isinstance(path, Path):
        require_own_folders(path)
    location, sections = Location(path), header.layout.sections
    index = {
        name: read_samples(path, header, section, location.find, at_once=location.reads_at_once)
        for name, section in sections.items()
    }
    if not is_described(index, header):
        raise CorruptStoreError(
            f"{path}: the sample index (keys, digests or labels) has changed since it was written; "
            f"{restoring(path)}"
        )
    return index


def is_described(index: Mapping[str, SampleIndex], header: Header) -> bool:
    """Whether samples and labels have the digests of a header."""
    return (dataset_digest(index), labels_digest(index)) == (header.fingerprint.dataset, header.labels)


def read_samples(
    store: object, header: Header, section: Section, fetch: Fetch, *, at_once: int
) -> SampleIndex:
    """Read the samples of one section; see `read_section`."""
    keys, digests, *labels = read_section(store, header.layout, section, fetch, at_once=at_once)
    words = labels[0].view(np.int64) if labels else None
    return SampleIndex(keys, digests, header.versions["decoder"], words)


def require_same_making(path: Root, header: Header, wanted: Wanted) -> None:
    """Refuse a store of another teacher, of other views, or of another codec.

    Raises:
        MismatchError: names the difference.
    """
    found, teacher = header.fingerprint, wanted.teacher
    ways_out = f"use a new dump name, or remove it with: {removal(path)}"
    for what, same, differing in (
        (
            "a different teacher",
            teacher.digest == found.teacher,
            "it was trained again since, e.g. on changed data, or replaced "
            f"({header.teacher_difference(teacher) or 'different weights'})",
        ),
        (
            "different views",
            wanted.views.digest == found.views,
            difference(header.views, wanted.views.plain),
        ),
    ):
        if not same:
            raise MismatchError(
                f"{path}: written with {what}: {differing}; a store is never overwritten: {ways_out}"
            )
    if not wanted.codec.accepts(header.codec_spec, header.layout.codec):
        raise MismatchError(
            f"{path}: written with a different codec ({header.layout.codec}, requested as "
            f"{header.codec_spec}, now {wanted.codec}); a store is never overwritten: {ways_out}"
        )
    # More views extend the store: `adopt`.
    had = header.layout.sections["train"].n_views
    if wanted.view_count < had:
        raise MismatchError(
            f"{path}: has {counted(had, 'view')}, but views.count is {wanted.view_count}; a store never "
            f"loses views: raise views.count to {had}, {ways_out}"
        )


def _extended(layout: Layout, name: str, *, added: int, n_views: int) -> Section:
    """Return a section with room for `added` samples, starting at the next block."""
    section = layout.sections.get(name)
    if section is None:
        return Section(name=name, extents=((0, added),), n_views=n_views)
    # Round up to a block, e.g. from 10,000 rows to row 12,288 with blocks of 4,096.
    first = -(-section.n_rows // layout.shard_rows) * layout.shard_rows
    extents = (*section.extents, (first, added)) if added else section.extents
    return Section(name=name, extents=extents, n_views=n_views)
