"""A slice of the work: which shards one of several writers makes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

from pipeline.core.errors import quoted

T = TypeVar("T")
_NAME = re.compile(r"([0-9]{1,6})-of-([0-9]{1,6})")


@dataclass(frozen=True, slots=True)
class Slice:
    """One of `count` equal parts, by its index from 0."""

    index: int
    count: int

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """Return this part of a list: neighbours, so that a writer works whole blocks."""
        start, stop = (len(items) * k // self.count for k in (self.index, self.index + 1))
        return items[start:stop]

    def overlaps(self, other: Slice) -> bool:
        """Whether both hold a part of the same list, however finely each is cut."""
        (a, b), (c, d) = self._ends(), other._ends()
        return a < d and c < b

    def _ends(self) -> tuple[Fraction, Fraction]:
        return Fraction(self.index, self.count), Fraction(self.index + 1, self.count)

    def __str__(self) -> str:
        return f"{self.index}-of-{self.count}"

    @classmethod
    def parse(cls, text: str) -> Slice:
        """Return the slice that `str` named.

        Raises:
            ValueError: it named none.
        """
        match = _NAME.fullmatch(text)
        if match is None or int(match[1]) >= int(match[2]):
            raise ValueError(f"{quoted(text)} is no slice")
        return cls(int(match[1]), int(match[2]))


WHOLE = Slice(0, 1)
