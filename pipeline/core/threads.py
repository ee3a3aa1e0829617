"""Run a function on many items on threads, with results in order and few items ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
_AHEAD_A_WORKER = 2


def side_by_side(work: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """Yield the result of each item in order; pays off where the work releases Python's lock.

    At most three results per worker are in memory. The first error is raised in its place.

    Args:
        work: called on any thread.
        items: taken as they are needed, so that there may be millions.
        workers: number of threads; with one, nothing runs on another thread.

    Example:
        >>> list(side_by_side(lambda number: number**2, range(4), workers=2))
        [0, 1, 4, 9]
    """
    if workers == 1:
        yield from map(work, items)
        return
    upcoming = iter(items)
    with ThreadPoolExecutor(workers) as pool:
        ahead = islice(upcoming, workers * (1 + _AHEAD_A_WORKER))
        pending: deque[Future[R]] = deque(pool.submit(work, item) for item in ahead)
        try:
            while pending:
                result = pending.popleft().result()
                pending.extend(pool.submit(work, item) for item in islice(upcoming, 1))
                yield result
        finally:
            for future in pending:
                future.cancel()
