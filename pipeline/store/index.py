"""The samples of a section's rows, found by key; and additions to an existing store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

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
from pipeline.store.arrays import RESTORE, read_section
from pipeline.store.header import Header
from pipeline.store.layout import Layout, Section

ABSENT = -1
Splits = Mapping[str, Split]


@dataclass(frozen=True, eq=False)
class SampleIndex:
    """Keys and content digests of N samples.

    Args:
        keys: (N,) uint64.
        digests: (N,) uint64, of image and label.
        decoder: the program that decoded the images from files.
    """

    keys: NDArray[np.uint64]
    digests: NDArray[np.uint64]
    decoder: str = NO_DECODER

    @classmethod
    def of(cls, images: Split) -> SampleIndex:
        """Return the index of a split, in its order."""
        return cls(images.keys, images.digests, images.decoder)

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def _ascending(self) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        # Sorted once for all lookups, 16 bytes per sample: the order (N,), and the keys in it (N,).
        order = np.argsort(self.keys)
        return order, self.keys[order]

    def find(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the position of each key (n,) int64; `ABSENT` if the key is missing.

        Data in the store's order, the usual case, takes one comparison of all keys.
        """
        if np.array_equal(self.keys[: len(keys)], keys):
            return np.arange(len(keys))
        if not len(self):
            return np.full(len(keys), ABSENT, np.int64)
        # Both sides are sorted, so the searches walk through memory; random access takes ten times as long.
        order, ascending = self._ascending
        asked = np.argsort(keys)
        # A key above all others gets place N: clamp it; the comparison then rejects it.
        place = np.minimum(np.searchsorted(ascending, keys[asked]), len(self) - 1)
        rows = np.empty(len(keys), np.int64)
        rows[asked] = np.where(ascending[place] == keys[asked], order[place], ABSENT)
        return rows

    def find_unchanged(self, images: Split, origin: str) -> NDArray[np.int64]:
        """Return the position of each sample of a split; `ABSENT` if the sample is missing.

        Args:
            images: the split.
            origin: the store, for errors.

        Raises:
            MismatchError: a sample has different content here.
        """
        rows = self.find(images.keys)
        # `ABSENT` is -1: a missing key compares with the last digest, and the first term masks the result.
        changed = (rows != ABSENT) & (self.digests[rows] != images.digests) if len(self) else rows != rows
        _refuse(changed, images, origin, f"has different content in the store{self._other_decoder(images)}")
        return rows

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
        return rows if changed else self.find_unchanged(images, origin)

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
        new = self.find(images.keys) == ABSENT
        return SampleIndex(
            np.concatenate([self.keys, images.keys[new]]),
            np.concatenate([self.digests, images.digests[new]]),
            self.decoder,
        )

    def digest(self) -> str:
        """Return the SHA-256 (hex) of keys and contents, in order."""
        return array_digest(self.keys, self.digests)


def _refuse(problem: NDArray[np.bool_], images: Split, origin: str, what: str) -> None:
    if problem.any():
        sample = images.names[int(np.argmax(problem))]
        raise MismatchError(
            f"{origin}: written for a different dataset: sample {sample!r} {what} ({int(problem.sum()):,} "
            f"of {len(images):,} samples); expected the samples that the teacher saw; restore the data, "
            f"use a new dump name, or remove the store with: {removal(origin)}"
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
    """Return the digest of the samples of all sections."""
    return spec_digest({name: part.digest() for name, part in index.items()})


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
        known = index.get(name, SampleIndex(np.zeros(0, np.uint64), np.zeros(0, np.uint64)))
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
    fingerprint = replace(header.fingerprint, dataset=dataset_digest(grown))
    return replace(header, layout=layout, fingerprint=fingerprint), grown


def read_index(path: Root, header: Header) -> Index:
    """Return the samples of each section of an unfinished store.

    Args:
        path: the store's folder.
        header: of the store.

    Raises:
        CorruptStoreError: keys or digests changed since they were written.
    """
    if isinstance(path, Path):
        require_own_folders(path)
    index, location = {}, Location(path)
    for name, section in header.layout.sections.items():
        keys, digests = read_section(path, header.layout, section, location.find)
        index[name] = SampleIndex(keys, digests, header.versions["decoder"])
    if dataset_digest(index) != header.fingerprint.dataset:
        raise CorruptStoreError(
            f"{path}: the sample index (keys or digests) has changed since it was written; {RESTORE}"
        )
    return index


def require_same_making(path: Root, header: Header, wanted: Wanted) -> None:
    """Refuse a store of another teacher, of other views, or of another codec.

    Raises:
        MismatchError: names the difference.
    """
    found, teacher = header.fingerprint, wanted.teacher
    ways_out = f"use a new dump name, or remove it with: {removal(path)}"
    for what, same, differing in (
        ("a different teacher", teacher.digest == found.teacher, header.teacher_difference(teacher)),
        (
            "different views",
            wanted.views.digest == found.views,
            difference(header.views, wanted.views.plain),
        ),
    ):
        if not same:
            raise MismatchError(
                f"{path}: written with {what}: {differing or 'different weights'}; a store is "
                f"never overwritten: {ways_out}"
            )
    if not wanted.codec.accepts(header.codec_spec, header.layout.codec):
        raise MismatchError(
            f"{path}: written with a different codec ({header.layout.codec}, requested as "
            f"{header.codec_spec}, now {wanted.codec}); a store is never overwritten: {ways_out}"
        )
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
