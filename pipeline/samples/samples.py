"""Samples before they are prepared: names, labels, how to decode them, and what a source leaves out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError, counted, first_of

# The names of many samples, in one block of bytes.


_END = b"\n"
_SHOWN = 8
UNLABELLED = -1
NO_DECODER = "none"


class Names(Sequence[str]):
    """N names; each takes 16 bytes beside its text, where a tuple of str takes 57.

    Args:
        text: names in UTF-8, a line break behind each.
        starts, ends: (N,) int64, where each is in the text.
    """

    def __init__(self, text: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        self._text, self._starts, self._ends = text, starts, ends

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """Gather names, which may come one by one.

        Raises:
            DataError: a name cannot be written down: a line break in it, or bytes that are no UTF-8.
        """
        text = bytearray()
        for name in names:
            text += _encoded(name) + _END
        return cls.parse(bytes(text))

    @classmethod
    def parse(cls, text: bytes) -> Names:
        """Return the names of a text with a line break behind each."""
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
        """Return some of the names, in the given order, over the same text."""
        return Names(self._text, self._starts[rows], self._ends[rows])

    def to_bytes(self) -> bytes:
        """Return the text that `parse` reads."""
        return b"".join(name.encode() + _END for name in self)


def _encoded(name: str) -> bytes:
    try:
        encoded = name.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{name!r}: not a name in UTF-8 ({error.reason}); rename the file") from None
    if _END in encoded:
        raise DataError(f"{name!r}: a line break in a sample's name; expected none; rename it")
    return encoded


# What a source holds and does not give: counted by reason, so that nothing is passed over in silence.


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """Counts of what is not read.

    Args:
        suffixes: suffix -> files in class folders that have it; of a file without one it is "no suffix".
        loose: folder -> sample files that lie in it and in no class folder.
        hidden: files and folders whose name begins with a dot, and the systems' own, e.g. Thumbs.db.
        linked_back: linked folders that lead back to a folder that they are in.
        unused: names of folders, arrays or splits that are not looked at.
    """

    suffixes: Counter[str] = field(default_factory=Counter)
    loose: Counter[str] = field(default_factory=Counter)
    hidden: int = 0
    linked_back: int = 0
    unused: tuple[str, ...] = ()

    def __add__(self, other: LeftOut) -> LeftOut:
        return LeftOut(
            suffixes=self.suffixes + other.suffixes,
            loose=self.loose + other.loose,
            hidden=self.hidden + other.hidden,
            linked_back=self.linked_back + other.linked_back,
            unused=self.unused + other.unused,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the counts as plain values, without those of nothing."""
        values = {
            "suffixes": dict(sorted(self.suffixes.items())),
            "loose": dict(sorted(self.loose.items())),
            "hidden": self.hidden,
            "linked_back": self.linked_back,
            "unused": list(self.unused),
        }
        return {name: value for name, value in values.items() if value}

    def __str__(self) -> str:
        """One line, empty if nothing is left out.

        >>> print(LeftOut(suffixes=Counter({".heic": 3, ".mp4": 1}), loose=Counter({"train/": 6})))
        4 files (.heic 3, .mp4 1), 6 loose in train/
        """
        parts = [f"{count:,} loose in {folder}" for folder, count in sorted(self.loose.items())]
        if self.suffixes:
            parts.insert(0, _files(self.suffixes))
        if self.hidden:
            parts.append(f"{self.hidden:,} hidden")
        if self.linked_back:
            lead = "leads back to itself" if self.linked_back == 1 else "lead back to themselves"
            parts.append(f"{counted(self.linked_back, 'linked folder')} that {lead}")
        if self.unused:
            parts.append(f"not looked at: {first_of(self.unused, _SHOWN)}")
        return ", ".join(parts)


def _files(suffixes: Counter[str]) -> str:
    by_count = sorted(suffixes.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{suffix} {count:,}" for suffix, count in by_count]
    return f"{counted(suffixes.total(), 'file')} ({first_of(named, _SHOWN)})"


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample of a source.

    Args:
        name: stable over additions, removals and reorderings of other samples, unique in its source.
        label: index into the source's classes, or -1 for unlabelled.
        load: returns its array, decoded, of an image (H, W, C) uint8; safe to call from any thread.
        file: what it is read from: while this file stays the same, so does the sample. None where there is
            no telling.

    """

    name: str
    label: int
    load: Callable[[], NDArray[Any]]
    file: str | None = None


class Samples(Sequence[Sample]):
    """Samples that are made when they are asked for: a million are no million objects.

    Args:
        make: from a position to its sample.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A dataset as it is found: what there is to train on and what is held out for the test.

    Args:
        classes: class names in label order.
        train, test: the samples in the source's own order.
        validation: the samples that choose epochs; None where they are to be drawn from `train`.
        decoder: what turns their files into arrays, with its version; none for arrays.
        left_out: what the source holds beside these samples.

    """

    classes: tuple[str, ...]
    train: Sequence[Sample]
    test: Sequence[Sample]
    decoder: str = NO_DECODER
    validation: Sequence[Sample] | None = None
    left_out: LeftOut = field(default_factory=LeftOut)
