"""The names of many samples, in one block of bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError

_END = b"\n"


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
