"""A team: processes, on any machines, that call a function for many items. Engines of `--on` make them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")
Opened = TypeVar("Opened")


class Team(Protocol):
    """Processes that share work."""

    @property
    def size(self) -> int:
        """Number of processes."""

    def map(self, work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """Call a function with each item; yield the results in the order of the items.

        An error ends all of it. A process that dies is replaced, so an item may be worked on twice.

        Args:
            work: can be pickled, as can items and results; each process gets a copy of its own.
            items: all of them.
        """


class Alone:
    """One process, the caller's, which works on one item at a time.

    Example:
        >>> list(ALONE.map(abs, [1, -2]))
        [1, 2]
    """

    size = 1

    def map(self, work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """Call a function with each item."""
        return map(work, items)


ALONE = Alone()


def parts_for(team: Team, items: Sequence[T], each: int = 4) -> list[Sequence[T]]:
    """Cut items into consecutive parts of nearly equal length, so many for each process of a team.

    Example:
        >>> parts_for(ALONE, range(10), each=3)
        [range(0, 3), range(3, 6), range(6, 10)]
    """
    count = max(1, min(len(items), each * team.size))
    ends = [len(items) * part // count for part in range(count + 1)]
    return [items[start:end] for start, end in pairwise(ends)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere(Generic[Opened]):
    """A team whose processes open something by themselves, once, e.g. a store and its data.

    Args:
        team: the processes.
        reopen: opens it there; can be pickled.
    """

    team: Team
    reopen: Callable[[], Opened]

    def map(self, work: Callable[[Opened, T], R], items: Sequence[T]) -> Iterator[R]:
        """Call a function with what was opened and each item; yield the results in the items' order."""
        return self.team.map(_Opening(self.reopen, work), items)


class _Opening(Generic[Opened, T, R]):
    """A function of one argument, which keeps what it opened at its first call."""

    def __init__(self, reopen: Callable[[], Opened], work: Callable[[Opened, T], R]) -> None:
        self._reopen, self._work = reopen, work
        self._opened: list[Opened] = []

    def __call__(self, item: T) -> R:
        if not self._opened:
            self._opened.append(self._reopen())
        return self._work(self._opened[0], item)
