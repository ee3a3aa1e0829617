"""Samples of one split: the common interface, and the samples that are packed into one file."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.core.arrays import Rows, spread
from pipeline.core.errors import DataError
from pipeline.core.hashing import array_digest, content_digest
from pipeline.core.progress import note
from pipeline.samples.index import Form, missing, read_index
from pipeline.samples.label_forms import is_known, label_word, label_words
from pipeline.samples.samples import UNLABELLED, Names

Uniform = tuple[NDArray[Any], Rows]
# Reading fewer samples takes a moment, which needs no word.
_MANY = 10_000


@dataclass(frozen=True, eq=False, kw_only=True)
class Split(ABC):
    """N samples with labels, stable keys and content digests; subclasses read the arrays.

    Args:
        form: the storage format.
        shapes: (N, axes) int32, lengths of the variable axes; for images, height and width.
        labels: (N,) int64, -1 for unlabelled; (N, C) int8 or float32: see `label_forms.py`.
        keys: (N,) uint64, hashes of the samples' names.
        digests: (N,) uint64, hashes of each sample's shape, content and label.
        names: the samples' names, for people.
        contents: (N,) uint64, the same hashes without the label; None in data of older versions: see
            `content_digests`.

    """

    form: Form
    shapes: NDArray[np.int32]
    labels: NDArray[Any]
    keys: NDArray[np.uint64]
    digests: NDArray[np.uint64]
    names: Names
    contents: NDArray[np.uint64] | None = None

    columns: ClassVar[tuple[str, ...]] = ("shapes", "labels", "keys", "digests")
    decodes_at_use: ClassVar[bool] = False

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def array(self, row: int) -> NDArray[Any]:
        """Return one sample with its own shape and the format's dtype; safe to call from any thread."""

    def content(self, row: int) -> int:
        """Return a digest of one sample's content, without its label."""
        return self.digests_with(row, [UNLABELLED])[0]

    def digests_with(self, row: int, words: Iterable[int]) -> list[int]:
        """Return a digest of one sample's content with each of these label words."""
        array = self.array(row)
        return [content_digest(array, word) for word in words]

    @functools.cached_property
    def content_digests(self) -> NDArray[np.uint64]:
        """Digests of the samples' contents, without their labels (N,).

        Data of older versions has none: then every labelled sample is read, once per process.
        """
        if self.contents is not None:
            return self.contents
        labelled = np.flatnonzero(is_known(self.labels))
        if len(labelled) >= _MANY:
            note(
                f"reading {len(labelled):,} samples for the digests of their contents, which data of an "
                "older version lacks; to keep them, run: pipeline prepare"
            )
        found = self.digests.copy()  # an unlabelled sample's digest covers its content alone
        with ThreadPoolExecutor() as pool:
            found[labelled] = np.fromiter(pool.map(self.content, labelled.tolist()), "<u8", len(labelled))
        return found

    @functools.cached_property
    def label_words(self) -> NDArray[np.int64]:
        """A 64-bit integer per label (N,): see `label_word`."""
        return label_words(self.labels)

    @abstractmethod
    def faults(self, rows: Rows) -> list[str]:
        """Return one message per sample (n,) whose bytes have changed since the preparation."""

    def require_unchanged(self, rows: Rows) -> None:
        """Refuse samples (n,) whose bytes have changed since the preparation; from any thread.

        Samples that are decoded at use are compared on every read, so they are skipped here.

        Raises:
            DataError: naming the first, and the number of them.
        """
        faults = [] if self.decodes_at_use else self.faults(rows)
        if faults:
            more = f" ({len(faults):,} of {len(rows):,} checked)" if len(faults) > 1 else ""
            raise DataError(f"{faults[0]}{more}")

    @property
    def decoder(self) -> str:
        """Name and version of the decoder of files; none for arrays."""
        return self.form.decoder

    @property
    def uniform(self) -> Uniform | None:
        """All samples as one array (M, *shape), and the index of each sample in it (N,).

        None if there is no such array, e.g. for different shapes.
        """
        return None

    @property
    def size_bytes(self) -> int:
        """Size of the samples' arrays in bytes."""
        return int(self.array_bytes(np.arange(len(self))).sum())

    def array_bytes(self, rows: Rows) -> NDArray[np.int64]:
        """Return the size in bytes (n,) of the arrays of these samples (n,)."""
        return self.form.sizes(self.shapes[rows]) * self.form.value_bytes

    def subset(self, rows: Rows) -> Split:
        """Return the samples of these rows (n,), in the given order."""
        chosen = {column: getattr(self, column)[rows] for column in self.columns}
        if self.contents is not None:
            chosen["contents"] = self.contents[rows]
        return replace(self, **chosen, names=self.names.subset(rows))

    def spread(self, count: int) -> Split:
        """Return at most `count` samples, evenly spread over the split, in its order."""
        return self.subset(spread(len(self), count))

    def digest(self) -> str:
        """Return the SHA-256 (hex) of keys, contents and labels, in order."""
        return array_digest(self.keys, self.digests)


@dataclass(frozen=True, eq=False, kw_only=True)
class PackedSplit(Split):
    """Decoded samples, concatenated in one flat memory-mapped file.

    Args:
        values: flat, of the format's dtype; all samples, each in C order.
        offsets: (N,) int64, start of each sample in `values`.
        origin: the file, for errors.

    """

    values: NDArray[Any]
    offsets: NDArray[np.int64]
    origin: str = "values"

    columns: ClassVar[tuple[str, ...]] = ("offsets", *Split.columns)

    def array(self, row: int) -> NDArray[Any]:
        """Return one sample, without a copy."""
        shape = self.form.shape(self.shapes[row].tolist())
        start, count = int(self.offsets[row]), 1
        for length in shape:
            count *= length
        return self.values[start : start + count].reshape(shape)

    def faults(self, rows: Rows) -> list[str]:
        """Return one message per sample (n,) whose values have changed since the preparation.

        Costs a BLAKE2b hash per sample, about 1 ms per megabyte.
        """
        found = (content_digest(self.array(row), label_word(self.labels[row])) for row in rows.tolist())
        digests = np.fromiter(found, np.uint64, len(rows))
        return [
            f"{self.origin}: {self.form.noun} {self.names[row]!r} has changed since it was prepared (the "
            f"{self.form.suffix} do not match its digest); run: pipeline prepare"
            for row in rows[digests != self.digests[rows]].tolist()
        ]

    @functools.cached_property
    def uniform(self) -> Uniform | None:
        """The file as one array (M, *shape), and the index of each sample in it (N,).

        Nothing is copied. None if shapes differ; for a subset, M is larger than N.
        """
        if len(self) == 0 or (self.shapes != self.shapes[0]).any():
            return None
        count = int(self.form.sizes(self.shapes[:1])[0])
        if self.values.size % count or (self.offsets % count).any():
            return None
        shape = self.form.shape(self.shapes[0].tolist())
        return self.values.reshape(-1, *shape), self.offsets // count


def offsets_of(shapes: NDArray[np.int32], form: Form) -> NDArray[np.int64]:
    """Return the start of each of N concatenated samples, and the end (N + 1,), in values, not bytes."""
    offsets = np.zeros(len(shapes) + 1, np.int64)
    np.cumsum(form.sizes(shapes), out=offsets[1:])
    return offsets


def open_packed(folder: Path, split: str, form: Form) -> PackedSplit:
    """Open a split of packed samples.

    Raises:
        DataError: a file is missing or incomplete.
    """
    path = folder / f"{split}.{form.suffix}"
    columns, names = read_index(folder, split, form, PackedSplit.columns)
    if not path.exists():
        raise missing(path)
    offsets = offsets_of(columns["shapes"], form)
    size, expected = path.stat().st_size, int(offsets[-1]) * form.value_bytes
    if size != expected:
        raise DataError(f"{path}: {size} bytes, expected {expected}; run: pipeline prepare")
    if not np.array_equal(columns["offsets"], offsets[:-1]):
        raise DataError(
            f"{folder / split}.npz: offsets do not match the shapes of consecutive samples; run: pipeline "
            "prepare"
        )
    dtype = np.dtype(form.dtype).newbyteorder("<")
    # A plain array view: slicing a memmap costs more than copying a small image.
    values = np.memmap(path, dtype, "r").view(np.ndarray) if size else np.zeros(0, dtype)
    return PackedSplit(values=values, origin=str(path), form=form, names=names, **columns)
