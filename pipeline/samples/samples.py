"""Samples before they are prepared: names, labels, loaders, and the files that a source leaves out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError, counted, first_of

# The names of many samples, in one block of bytes.


_END = b"\n"
_SHOWN = 8
UNLABELLED = -1
# Stands for the classes of a dataset without any label, which only embeddings can use.
NO_CLASSES = ("unlabelled",)
NO_DECODER = "none"
# A class index, (C,) int8 tags or (C,) float32 numbers: see `label_forms.py`.
Label = int | NDArray[np.int8] | NDArray[np.float32]


class Names(Sequence[str]):
    """N names in one block of bytes: 16 bytes per name beside its text, against 57 in a tuple of str.

    Args:
        text: names in UTF-8, each followed by a line break.
        starts, ends: (N,) int64, bounds of each name in the text.
    """

    def __init__(self, text: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        self._text, self._starts, self._ends = text, starts, ends

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """Gather names from any iterable.

        Raises:
            DataError: a name has a line break, or is not UTF-8.
        """
        text = bytearray()
        for name in names:
            text += _encoded(name) + _END
        return cls.parse(bytes(text))

    @classmethod
    def parse(cls, text: bytes) -> Names:
        """Return the names of a text in which each is followed by a line break."""
        ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord(_END))
        starts = np.zeros_like(ends)
        starts[1:] = ends[:-1] + 1
        return cls(text, starts, ends)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, row: int) -> str: ...

    @overload
    def __getitem__(self, row: slice) -> Names: ...

    def __getitem__(self, row: int | slice) -> str | Names:
        if isinstance(row, slice):
            return Names(self._text, self._starts[row], self._ends[row])
        return self._text[self._starts[row] : self._ends[row]].decode()

    def subset(self, rows: NDArray[np.int64]) -> Names:
        """Return the names of these rows (n,), in the given order; the text is shared."""
        return Names(self._text, self._starts[rows], self._ends[rows])

    def to_bytes(self) -> bytes:
        """Return the text that `parse` reads."""
        return b"".join(name.encode() + _END for name in self)


def _encoded(name: str) -> bytes:
    try:
        encoded = name.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{name!r}: name is not valid UTF-8 ({error.reason}); rename the file") from None
    if _END in encoded:
        raise DataError(f"{name!r}: name contains a line break; rename it")
    return encoded


# Files that a source leaves out, counted by reason, so that nothing is skipped silently.


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """Counts of the files that are not read.

    Args:
        suffixes: suffix, or "no suffix" -> number of such files in class folders.
        loose: folder -> number of sample files directly in it, outside any class folder.
        unlisted: folder -> number of its sample files that the table of the dataset does not name.
        hidden: files and folders whose name begins with a dot, and system files, e.g. Thumbs.db.
        linked_back: linked folders that lead back to one of their parents.
        unused: names of ignored folders, arrays or splits.
        dropped: reason -> number of ignored rows, users, items or the like.
    """

    suffixes: Counter[str] = field(default_factory=Counter)
    loose: Counter[str] = field(default_factory=Counter)
    unlisted: Counter[str] = field(default_factory=Counter)
    hidden: int = 0
    linked_back: int = 0
    unused: tuple[str, ...] = ()
    dropped: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: LeftOut) -> LeftOut:
        return LeftOut(
            suffixes=self.suffixes + other.suffixes,
            loose=self.loose + other.loose,
            unlisted=self.unlisted + other.unlisted,
            hidden=self.hidden + other.hidden,
            linked_back=self.linked_back + other.linked_back,
            unused=self.unused + other.unused,
            dropped=self.dropped + other.dropped,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the counts as plain values, without zeros."""
        values = {
            "suffixes": dict(sorted(self.suffixes.items())),
            "loose": dict(sorted(self.loose.items())),
            "unlisted": dict(sorted(self.unlisted.items())),
            "hidden": self.hidden,
            "linked_back": self.linked_back,
            "unused": list(self.unused),
            "dropped": dict(sorted(self.dropped.items())),
        }
        return {name: value for name, value in values.items() if value}

    def __str__(self) -> str:
        """Return one line; empty if nothing is left out.

        >>> print(LeftOut(suffixes=Counter({".heic": 3, ".mp4": 1}), loose=Counter({"train/": 6})))
        4 files (.heic 3, .mp4 1), 6 loose in train/
        """
        parts = [f"{count:,} loose in {folder}" for folder, count in sorted(self.loose.items())]
        parts += [f"{count:,} in {folder} that the table lacks" for folder, count in self.unlisted.items()]
        if self.suffixes:
            parts.insert(0, _files(self.suffixes))
        if self.hidden:
            parts.append(f"{self.hidden:,} hidden")
        if self.linked_back:
            lead = "leads back to itself" if self.linked_back == 1 else "lead back to themselves"
            parts.append(f"{counted(self.linked_back, 'linked folder')} that {lead}")
        if self.unused:
            parts.append(f"not read: {first_of(self.unused, _SHOWN)}")
        parts += [f"{reason}: {count:,}" for reason, count in sorted(self.dropped.items())]
        return ", ".join(parts)


def _files(suffixes: Counter[str]) -> str:
    by_count = sorted(suffixes.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{suffix} {count:,}" for suffix, count in by_count]
    return f"{counted(suffixes.total(), 'file')} ({first_of(named, _SHOWN)})"


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample of a source.

    Args:
        name: unique in its source; stable when other samples are added, removed or reordered.
        label: index into the source's classes, or -1 for unlabelled; (C,) int8 of 1, 0 and -1 for unknown,
            if the classes are tags; (C,) float32, or all NaN for unlabelled, if they are names of numbers.
        load: returns the decoded array, for images (H, W, C) uint8; safe to call from any thread.
        file: its source file: while the file is unchanged, so is the sample. None if unknown.
        stamp: returns two integers that change with the sample, for one inside a larger file; `file` is
            then a name for messages. None takes size and time of `file`.

    """

    name: str
    label: Label
    load: Callable[[], NDArray[Any]]
    file: str | None = None
    stamp: Callable[[], tuple[int, int]] | None = None


class Samples(Sequence[Sample]):
    """Samples that are created on access, so a million samples need no million objects.

    Args:
        make: maps a position to its sample.
        rows: (N,) the positions, in order.
    """

    def __init__(self, make: Callable[[int], Sample], rows: NDArray[np.int64]) -> None:
        self._make, self._rows = make, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, row: int) -> Sample: ...

    @overload
    def __getitem__(self, row: slice) -> Samples: ...

    def __getitem__(self, row: int | slice) -> Sample | Samples:
        if isinstance(row, slice):
            return Samples(self._make, self._rows[row])
        return self._make(int(self._rows[row]))

    def __iter__(self) -> Iterator[Sample]:
        return map(self._make, self._rows.tolist())

    def subset(self, rows: NDArray[np.int64]) -> Samples:
        """Return the samples at these positions (n,), in the given order."""
        return Samples(self._make, self._rows[rows])


def part_of(samples: Sequence[Sample], rows: NDArray[np.int64]) -> Samples:
    """Return the samples at these positions (n,) of any sequence, in the given order."""
    return samples.subset(rows) if isinstance(samples, Samples) else Samples(samples.__getitem__, rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A dataset as found: training samples, test samples and class names.

    Args:
        classes: names of classes, tags or numbers, in label order.
        train, test: the samples in the order of the source.
        validation: the samples that choose the epoch; None to draw them from `train`.
        decoder: name and version of the decoder of files; none for arrays.
        left_out: files that the source does not read.
        forks: whether samples load in forked processes as well: they share no open file, connection or
            lock. If not, threads read them.

    """

    classes: tuple[str, ...]
    train: Sequence[Sample]
    test: Sequence[Sample]
    decoder: str = NO_DECODER
    validation: Sequence[Sample] | None = None
    left_out: LeftOut = field(default_factory=LeftOut)
    forks: bool = False
