"""Work on samples on threads, in order, with a bounded number of them and of their values in memory."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Condition
from typing import TypeVar

# Room for pixels: how many may be in memory at once, from their decoding until the result is taken.


# 0.8 GB of colour, half of it a 179-megapixel image; decoders take as much again while they work.
ROOM_PIXELS = 1 << 28
T = TypeVar("T")
R = TypeVar("R")
_AHEAD_A_WORKER = 4


class Room:
    """A number of pixels that results, in order, share from their decoding until they are taken.

    The next result to be taken is always let in, however large, so work goes on.

    Args:
        pixels: how many fit.
    """

    def __init__(self, pixels: int = ROOM_PIXELS) -> None:
        self._left, self._next, self._closed = pixels, 0, False
        self._held: dict[int, int] = {}
        self._changed = Condition()

    def enter(self, place: int, pixels: int) -> None:
        """Wait until so many pixels of the result of a place fit.

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
        """Give back the room of a result that was taken; results are taken in order."""
        with self._changed:
            self._left += self._held.pop(place, 0)
            self._next = place + 1
            self._changed.notify_all()

    def close(self) -> None:
        """Turn away all that wait."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


@dataclass(frozen=True, eq=False, slots=True)
class Seat:
    """A place in a room, for the work on one result."""

    room: Room
    place: int

    def take(self, pixels: int) -> None:
        """Wait until so many pixels fit."""
        self.room.enter(self.place, pixels)


def in_order(
    work: Callable[[T, Seat], R], items: Sequence[T], workers: int, watched: Iterator[object]
) -> Generator[R, None, None]:
    """Do work on threads, a bounded number of items and pixels ahead, and yield the results in order.

    Args:
        work: what is done, on any thread; it takes a seat for the pixels that its result has.
        items: to what.
        workers: threads.
        watched: yields once an item, and shows how far it is.
    """
    room = Room()
    with ThreadPoolExecutor(workers) as pool:
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
            # A progress bar goes before an error is told.
            getattr(watched, "close", lambda: None)()
