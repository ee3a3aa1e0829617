"""Room for pixels: how many may be in memory at once, from their decoding until the result is taken."""

from __future__ import annotations

from concurrent.futures import CancelledError
from dataclasses import dataclass
from threading import Condition

# 0.8 GB of colour, half of it a 179-megapixel image; decoders take as much again while they work.
ROOM_PIXELS = 1 << 28


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
