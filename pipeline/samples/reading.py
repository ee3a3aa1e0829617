"""Samples of a source to entries of a draft, on threads and in order."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from threading import Condition
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError
from pipeline.core.hashing import bytes_glance, content_digest, encoded_digest, sample_key
from pipeline.modalities.images.damage import Ear, remark_on
from pipeline.modalities.images.decoding import ImageFile, shrink, shrunk_shape
from pipeline.modalities.images.images import Moments
from pipeline.samples.draft import IDENTITY, ROW, Entry, Spare
from pipeline.samples.index import Form
from pipeline.samples.samples import Sample

# Room for pixels: how many may be in memory at once, from their decoding until the result is taken.


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


T = TypeVar("T")
R = TypeVar("R")
_AHEAD_A_WORKER = 4
_NO_FILE = -1, -1
# Of a file that stays encoded, its end tells whether it may be another one's copy.
_GLANCE_BYTES = 4096


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Reader:
    """What all reading threads share.

    Args:
        form: of the images.
        ear: hears what the decoder says of damaged files.
        spare: samples of an earlier run.
        thorough: whether also files that stay encoded are decoded, to find those that are damaged.
    """

    form: Form
    ear: Ear
    spare: Spare
    thorough: bool


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


def read_sample(sample: Sample, seat: Seat, reader: Reader) -> Entry | DataError:
    """Return what a draft keeps of a sample, from a spare draft if it is there.

    An image that is not readable is returned as the error that says so: there may be more of them.
    """
    # Before it is read: if the file is replaced meanwhile, a later run sees another one.
    identity = identity_of(sample)
    known = reader.spare.find(identity)
    if known is not None:
        return known
    make = _scanned if reader.form.keep == "encoded" else _decoded
    try:
        return make(sample, seat, reader, identity)
    except DataError as error:
        return error


def read_pixels(sample: Sample, seat: Seat, form: Form, ear: Ear) -> tuple[NDArray[np.uint8], int]:
    """Decode an image, and shrink it as the form says: (H, W, C) uint8, and the remarks on it."""
    file = sample.load
    if not isinstance(file, ImageFile):
        return shrink(file(), form.short_side), 0
    content = file.read()
    seat.take(file.pixels(content))
    pixels, damaged = ear.listen(partial(file.decode, content))
    return shrink(pixels, form.short_side), remark_on(content, pixels, damaged=damaged)


def identity_of(sample: Sample) -> tuple[int, ...]:
    """Return the values of `IDENTITY` of a sample."""
    return sample_key(sample.name), sample.label, *_stamp(sample.file)


def count_unchanged(rows: NDArray[np.void], samples: Sequence[Sample], workers: int) -> int:
    """Return how many of a draft's rows, from the first on, are still what the source has there.

    Args:
        rows: (n,) of dtype `ROW`.
        samples: of the split.
        workers: threads that look at files.
    """
    count = min(len(rows), len(samples))
    if not count:
        return 0
    with ThreadPoolExecutor(workers) as pool:
        parts = pool.map(lambda part: _identities(samples, part), np.array_split(np.arange(count), workers))
        now = np.concatenate(list(parts))
    same = now["file_bytes"] >= 0
    for name, _ in IDENTITY:
        same &= rows[name][:count] == now[name]
    return count if same.all() else int(same.argmin())


def _identities(samples: Sequence[Sample], rows: NDArray[np.int64]) -> NDArray[np.void]:
    return np.fromiter((identity_of(samples[row]) for row in rows.tolist()), np.dtype(IDENTITY), len(rows))


def _stamp(file: str | None) -> tuple[int, int]:
    """Return a file's size and time of change; -1 where there is none."""
    if file is None:
        return _NO_FILE
    try:
        status = os.stat(file)
    except OSError:
        return _NO_FILE
    return status.st_size, status.st_mtime_ns


def _decoded(sample: Sample, seat: Seat, reader: Reader, identity: tuple[int, ...]) -> Entry:
    pixels, remarks = read_pixels(sample, seat, reader.form, reader.ear)
    moments = Moments.of(pixels)
    row = (*identity, *pixels.shape[:2], content_digest(pixels, sample.label), moments.glance(), remarks)
    return Entry(np.array(row, ROW), pixels, moments)


def _scanned(sample: Sample, seat: Seat, reader: Reader, identity: tuple[int, ...]) -> Entry:
    """Look at a file without decoding it, unless its header does not tell its shape."""
    file, form, remarks = sample.load, reader.form, 0
    if not isinstance(file, ImageFile):
        raise TypeError(f"{sample.name} is no file, and cannot stay encoded")
    content = file.read()
    seat.take(file.pixels(content))
    if reader.thorough:
        pixels, damaged = reader.ear.listen(partial(file.decode, content))
        remarks = remark_on(content, pixels, damaged=damaged)
    shape = shrunk_shape(*file.shape(content), form.short_side)
    digest = encoded_digest(content, (*shape, form.channels), sample.label)
    glance = bytes_glance(content[-_GLANCE_BYTES:])
    return Entry(np.array((*identity, *shape, digest, glance, remarks), ROW), None, None)
