"""A team whose processes are copies in this one: all that crosses between them is pickled."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any


class Copies:
    """A team; its copies of a function take items in turn.

    Args:
        size: number of copies.
    """

    def __init__(self, size: int = 2) -> None:
        self.size = size
        self.works: list[Any] = []

    def map(self, work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        self.works = [_copied(work) for _ in range(self.size)]
        for number, item in enumerate(items):
            yield _copied(self.works[number % self.size](_copied(item)))


def _copied(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))
