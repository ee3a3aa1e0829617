"""Process samples on threads, with ordered results and a bounded number of pixels in memory."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition
from typing import Protocol, TypeVar

# Room for pixels: a limit on the pixels in memory, from decoding until the result is taken.


# 0.8 GB in colour; a 179-megapixel image takes two thirds. Decoders need as much again while they work.
ROOM_PIXELS = 1 << 28
T = TypeVar("T")
R = TypeVar("R")
_AHEAD_A_WORKER = 4


class Room:
    """A budget of pixels, shared by results from their decoding until they are taken in order.

    The next result in order is always admitted, even if it exceeds the budget, so work never stalls.

    Args:
        pixels: the budget.
    """

    def __init__(self, pixels: int = ROOM_PIXELS) -> None:
        self._left, self._next, self._closed = pixels, 0, False
        self._held: dict[int, int] = {}
        self._changed = Condition()

    def enter(self, place: int, pixels: int) -> None:
        """Wait until the pixels of the result at a position fit.

        Raises:
            CancelledError: the room was closed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or place == self._next or pixels <= self._left)
            if self._closed:
                raise CancelledError
            self._left -= pixels
            self._held[place] = self._held.get(place, 0) + pixels

    def leave(self, place: int) -> None:
        """Release the pixels of a result that was taken; results are taken in order."""
        with self._changed:
            self._left += self._held.pop(place, 0)
            self._next = place + 1
            self._changed.notify_all()

    def close(self) -> None:
        """Cancel all waiting threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Budget(Protocol):
    """A room to wait for, of threads or of processes."""

    def enter(self, place: int, pixels: int) -> None:
        """Wait until the pixels of the result at a position fit."""


@dataclass(frozen=True, eq=False, slots=True)
class Seat:
    """The access of one result's work to a room."""

    room: Budget
    place: int

    def take(self, pixels: int) -> None:
        """Wait until this many pixels fit."""
        self.room.enter(self.place, pixels)


def in_order(
    work: Callable[[T, Seat], R], items: Sequence[T], workers: int, watched: Iterator[object]
) -> Generator[R, None, None]:
    """Process items on threads, a bounded number of items and pixels ahead; yield results in order.

    Args:
        work: called with an item and a seat, on any thread; takes the pixels of its result from the seat.
        items: to process.
        workers: threads.
        watched: yields once per item, and shows the progress.
    """
    room = Room()
    with closing_progress(watched), ThreadPoolExecutor(workers) as pool:
        upcoming = ((item, Seat(room, place)) for place, item in enumerate(items))
        first = itertools.islice(upcoming, workers * _AHEAD_A_WORKER)
        pending: deque[Future[R]] = deque(pool.submit(work, *some) for some in first)
        try:
            for place, _ in enumerate(watched):
                result = pending.popleft().result()
                pending.extend(pool.submit(work, *some) for some in itertools.islice(upcoming, 1))
                yield result
                room.leave(place)
        finally:
            for future in pending:
                future.cancel()
            room.close()


@contextmanager
def closing_progress(watched: object) -> Iterator[None]:
    """Close a progress bar before an error is printed."""
    try:
        yield
    finally:
        getattr(watched, "close", lambda: None)()
