"""Read samples in forked processes: batches in order, with a bounded number of pixels in memory.

Python runs on one core per process, so threads do not help where reading is Python: small images, texts,
clips. A forked process inherits the source, whose samples cannot be pickled, and shares its memory. It
sends finished samples back through a pipe, as bytes of the draft.

    process 0   batches 0, 2, 4, …   ─┐
    process 1   batches 1, 3, 5, …   ─┴─►   taken in the order of the batches, so drafts have equal bytes

A process waits for its turn while its pipe is full. Threads (`reading.py`) serve small datasets, and
sources whose samples share an open file.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import numpy as np

from pipeline.core.errors import DataError
from pipeline.samples.intake import Entry, Intake, row_dtype
from pipeline.samples.reading import ROOM_PIXELS, Seat
from pipeline.samples.samples import Sample

T = TypeVar("T")
# Fewer samples are read before the processes have started.
LEAST_SAMPLES = 4096
BATCH = 128
# A larger batch is sent in several pieces.
_PIECE_BYTES = 8 << 20
_PR_SET_PDEATHSIG = 1
_FORK = get_context("fork")
Read = Callable[[Sample, Seat], Entry | DataError]


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Piece:
    """Consecutive samples that were read.

    Args:
        rows: bytes of the records of the readable ones, of `row_dtype`.
        arrays: bytes of their arrays, one after the other; None if files are kept unchanged.
        statistics: sum over their arrays.
        unreadable: one message per unreadable sample.
        count: number of samples, readable or not.
        pixels: room that they take.
        is_last: whether the batch ends here.
    """

    rows: bytes
    arrays: bytes | None
    statistics: Any
    unreadable: tuple[str, ...]
    count: int
    pixels: int
    is_last: bool


class SharedRoom:
    """A budget of pixels of several processes, as `reading.Room` is of threads.

    The batch whose turn it is is always admitted, even if it exceeds the budget, so work never stalls.

    Args:
        pixels: the budget.
    """

    def __init__(self, pixels: int = ROOM_PIXELS) -> None:
        self._changed = _FORK.Condition()
        self._left, self._turn = _FORK.RawValue("q", pixels), _FORK.RawValue("q", 0)
        self._taken = 0

    def enter(self, place: int, pixels: int) -> None:
        """Wait in a reading process until a sample of a batch fits."""
        with self._changed:
            self._changed.wait_for(lambda: place == self._turn.value or pixels <= self._left.value)
            self._left.value -= pixels
        self._taken += pixels

    def taken(self) -> int:
        """Return the pixels that this process has taken since the last call."""
        taken, self._taken = self._taken, 0
        return taken

    def release(self, pixels: int, turn: int) -> None:
        """Give back the room of a piece that arrived; `turn` is the batch that is wanted now."""
        with self._changed:
            self._left.value += pixels
            self._turn.value = turn
            self._changed.notify_all()


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class ProcessReader:
    """Reads the samples of a split in several processes.

    Args:
        read: returns the entry of a sample, or its error as the result.
        intake: open; its statistics are added up.
        workers: number of processes.
    """

    read: Read
    intake: Intake
    workers: int

    def pieces(self, samples: Sequence[Sample]) -> Generator[Piece, None, None]:
        """Yield all samples in order, piece by piece.

        Raises:
            DataError: a process ended early, e.g. for want of memory.
        """
        room, n_batches = SharedRoom(), -(-len(samples) // BATCH)
        works = [
            partial(self._send_batches, samples, range(first, n_batches, self.workers), room)
            for first in range(min(self.workers, n_batches))
        ]
        with started(works) as readers:
            for batch in range(n_batches):
                while True:
                    piece: Piece = readers[batch % self.workers].receive()
                    room.release(piece.pixels, batch + piece.is_last)
                    yield piece
                    if piece.is_last:
                        break

    def _send_batches(
        self, samples: Sequence[Sample], batches: range, room: SharedRoom, send: Callable[[Any], None]
    ) -> None:
        """Read some batches, in a process of their own."""
        with self._own_intake():
            for batch in batches:
                rows = range(batch * BATCH, min(len(samples), (batch + 1) * BATCH))
                for piece in self.batch(samples, rows, Seat(room, batch), room.taken):
                    send(piece)

    @contextmanager
    def _own_intake(self) -> Iterator[None]:
        """Close this process's copy of the intake: it may hold back lines for stderr."""
        try:
            yield
        finally:
            self.intake.__exit__(None, None, None)

    def batch(
        self, samples: Sequence[Sample], rows: range, seat: Seat, taken: Callable[[], int] = int
    ) -> Iterator[Piece]:
        """Read consecutive samples in this process.

        Args:
            samples: of the split.
            rows: the ones to read.
            seat: takes the room that they need.
            taken: returns the room that was taken since its last call.
        """
        entries: list[Entry] = []
        unreadable: list[str] = []
        held = 0
        for row in rows:
            found = self.read(samples[row], seat)
            if isinstance(found, DataError):
                unreadable.append(str(found))
            else:
                entries.append(found)
                held += 0 if found.array is None else found.array.nbytes
            is_last = row == rows.stop - 1
            if is_last or held > _PIECE_BYTES:
                yield self._piece(entries, unreadable, taken(), is_last=is_last)
                entries, unreadable, held = [], [], 0

    def _piece(
        self, entries: Sequence[Entry], unreadable: Sequence[str], pixels: int, *, is_last: bool
    ) -> Piece:
        form, statistics = self.intake.form, self.intake.nothing()
        for entry in entries:
            statistics = statistics if entry.array is None else statistics + entry.statistics
        arrays = (
            np.ascontiguousarray(e.array, form.dtype).tobytes() for e in entries if e.array is not None
        )
        rows = np.array([entry.row for entry in entries], row_dtype(form))
        return Piece(
            rows=rows.tobytes(),
            arrays=b"".join(arrays) if form.packs else None,
            statistics=statistics,
            unreadable=tuple(unreadable),
            count=len(entries) + len(unreadable),
            pixels=pixels,
            is_last=is_last,
        )


def in_processes(works: Sequence[Callable[[], T]]) -> list[T]:
    """Return the result of each function, each run in a forked process of its own.

    Raises:
        DataError: a process ended early.
    """
    with started([partial(_send_result, work) for work in works]) as readers:
        return [reader.receive() for reader in readers]


def _send_result(work: Callable[[], Any], send: Callable[[Any], None]) -> None:
    send(work())


# A forked process, and the pipe from it.


@dataclass(frozen=True, slots=True)
class _Failure:
    """An exception in a process."""

    error: BaseException


class Reader:
    """A process that sends values.

    Args:
        work: called there with a function that sends a value; it may wait until the value is taken.
    """

    def __init__(self, work: Callable[[Callable[[Any], None]], None]) -> None:
        self._receiving, sending = _FORK.Pipe(duplex=False)
        self._process = _FORK.Process(target=_run, args=(work, sending, os.getpid()), daemon=True)
        with warnings.catch_warnings():
            # Python 3.12 warns of forks beside threads. None of these holds a lock here: torch's are idle.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process.start()
        sending.close()

    def receive(self) -> Any:
        """Return the next value.

        Raises:
            DataError: the process ended early. Errors inside of it are raised as they are.
        """
        try:
            value = self._receiving.recv()
        except EOFError:
            self._process.join()
            raise DataError(
                f"a reading process ended early (status {self._process.exitcode}, -9 if memory ran out); "
                "expected all of its samples; run the command again with fewer --workers"
            ) from None
        if isinstance(value, _Failure):
            raise value.error
        return value

    def stop(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.join()
        self._receiving.close()


@contextmanager
def started(works: Sequence[Callable[[Callable[[Any], None]], None]]) -> Iterator[list[Reader]]:
    """Start a process for each function, and end all of them afterwards."""
    readers: list[Reader] = []
    try:
        for work in works:
            readers.append(Reader(work))
        yield readers
    finally:
        for reader in readers:
            reader.stop()


def _run(work: Callable[[Callable[[Any], None]], None], sending: Connection, parent: int) -> None:
    """Run a function in a new process, which ends with its parent."""
    # A terminal's interrupt reaches all processes; the parent then ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    if "torch" in sys.modules:
        # Threads of the parent do not exist here: with more than one, torch would wait for them.
        sys.modules["torch"].set_num_threads(1)
    with suppress(BrokenPipeError):
        try:
            work(sending.send)
        except BaseException as error:
            sending.send(_Failure(_sendable(error)))


def _sendable(error: BaseException) -> BaseException:
    """Return an exception, or its text if it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 (made one line above)
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
