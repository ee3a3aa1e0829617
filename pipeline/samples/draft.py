"""The draft of a split: finished samples on disk, so that an interrupted preparation can be resumed.

    NAME.rows      one record per sample, in order
    NAME.arrays    their arrays, concatenated; empty if files are kept unchanged
    NAME.json      the last checkpoint: valid length of both files, and statistics of the arrays

Both files only grow. Opening the draft again truncates everything after the checkpoint.

Worked example, samples of 10, 20 and 30 bytes, and a power failure after the checkpoint of the second:

    train.rows      3 records              train.json   {"rows": 2, "array_bytes": 30, ...}
    train.arrays    10 + 20 + 17 bytes     reopened: 2 records, 30 bytes; sample 3 is read again
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from pipeline.core.errors import DataError, first_of
from pipeline.core.files import naming, read_json, write_bytes, write_json
from pipeline.core.progress import note
from pipeline.samples.intake import IDENTITY, Entry, Intake, row_dtype
from pipeline.samples.packed import offsets_of

Buffer = bytes | memoryview

SECONDS_BETWEEN_CHECKPOINTS = 30.0
# After DVC is killed, its stage takes a moment to end.
WAIT_SECONDS = 20.0
_PLAN = "plan.json"
_UNREADABLE = "unreadable.txt"


@dataclass(frozen=True, eq=False, slots=True)
class _Done:
    """The state of a draft; replaced as one value, so an interrupt never splits a sample."""

    rows: int
    array_bytes: int
    statistics: Any

    def to_dict(self) -> dict[str, Any]:
        statistics = self.statistics.to_plain()
        return {"rows": self.rows, "array_bytes": self.array_bytes, "statistics": statistics}


class Draft:
    """An unfinished split; use it in a `with` statement, which writes a checkpoint at the end.

    Args:
        folder: of the files.
        name: of the draft.
        intake: reads the samples.
    """

    def __init__(self, folder: Path, name: str, intake: Intake) -> None:
        self._intake, self._form, self._row = intake, intake.form, row_dtype(intake.form)
        self._rows_path, self.arrays_path = folder / f"{name}.rows", folder / f"{name}.arrays"
        self._checkpoint = folder / f"{name}.json"
        self._done = self._saved = self._last_checkpoint()
        self._open()

    def _last_checkpoint(self) -> _Done:
        with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            found = read_json(self._checkpoint)
            statistics = self._intake.restored(found["statistics"])
            done = _Done(found["rows"], found["array_bytes"], statistics)
            # Files shorter than the checkpoint claims, e.g. after a power failure, void the draft.
            sizes = {self._rows_path: done.rows * self._row.itemsize, self.arrays_path: done.array_bytes}
            if all(path.stat().st_size >= size for path, size in sizes.items()):
                return done
        return _Done(0, 0, self._intake.nothing())

    def _open(self) -> None:
        self._rows_file, self._arrays_file = self._rows_path.open("ab"), self.arrays_path.open("ab")
        # Opened for appending, so after the cut the next write lands right behind the checkpoint.
        self._rows_file.truncate(self._done.rows * self._row.itemsize)
        self._arrays_file.truncate(self._done.array_bytes)
        self._saved_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # After an error, e.g. a full disk, saving may fail too: the older checkpoint stays valid.
        harmless = () if error is None else (OSError,)
        with suppress(*harmless), ExitStack() as closing:
            closing.callback(self._rows_file.close)
            closing.callback(self._arrays_file.close)
            self.save()

    def __len__(self) -> int:
        return self._done.rows

    @property
    def statistics(self) -> Any:
        """Statistics of all samples so far."""
        return self._done.statistics

    def rows(self) -> NDArray[np.void]:
        """Return the records so far (n,), of `row_dtype`."""
        self._rows_file.flush()
        return np.fromfile(self._rows_path, self._row, len(self))

    def offsets(self) -> NDArray[np.int64]:
        """Return the start of each sample's values and the end of the last (n + 1,), in values."""
        rows = self.rows()
        if not self._form.packs:
            return np.zeros(len(rows) + 1, np.int64)
        return offsets_of(rows["shape"], self._form)

    def array(self, row: NDArray[np.void], offset: int) -> NDArray[Any] | None:
        """Read the array of a sample that the draft contained when it was opened."""
        if not self._form.packs:
            return None
        # `offset` counts values, a file counts bytes: sample 2 of int16 at offset 30 starts at byte 60.
        shape, dtype = self._form.shape(row["shape"].tolist()), np.dtype(self._form.dtype)
        start = offset * dtype.itemsize
        return np.fromfile(self.arrays_path, dtype, math.prod(shape), offset=start).reshape(shape)

    def add(self, entry: Entry) -> None:
        """Append a sample; write a checkpoint every `SECONDS_BETWEEN_CHECKPOINTS`."""
        array = None if entry.array is None else np.ascontiguousarray(entry.array, self._form.dtype).data
        self.extend(entry.row.tobytes(), array, entry.statistics)

    def extend(self, rows: bytes, arrays: Buffer | None, statistics: Any) -> None:
        """Append several samples; see `add`.

        Args:
            rows: bytes of their records.
            arrays: bytes of their arrays; None if files are kept unchanged.
            statistics: sum over their arrays.
        """
        written, done = 0, self._done
        # An error between the two writes leaves `_done` as it was, so both tails are cut off later.
        if arrays is not None:
            with naming(self.arrays_path):
                written = self._arrays_file.write(arrays)
        with naming(self._rows_path):
            self._rows_file.write(rows)
        total = done.statistics if arrays is None else done.statistics + statistics
        self._done = _Done(done.rows + len(rows) // self._row.itemsize, done.array_bytes + written, total)
        if time.monotonic() - self._saved_at >= SECONDS_BETWEEN_CHECKPOINTS:
            self.save()

    def save(self) -> None:
        """Write a durable checkpoint, unless nothing has changed since the last one."""
        if self._done is self._saved:
            return
        # Data must reach the disk before the checkpoint that vouches for it: an fsync per file.
        for path, file in ((self.arrays_path, self._arrays_file), (self._rows_path, self._rows_file)):
            with naming(path):
                file.flush()
                os.fsync(file.fileno())
        write_json(self._checkpoint, self._done.to_dict())
        self._saved = self._done
        self._saved_at = time.monotonic()

    def shorten(self, count: int, spare: Draft | None) -> None:
        """Keep the first samples of a draft that was just opened.

        Args:
            count: number of samples to keep.
            spare: draft for the others, if they have a file to recognise them by; None drops them.
        """
        end, statistics = int(self.offsets()[count]) * self._form.value_bytes, self.statistics
        # Statistics are exact sums: dropped samples are subtracted, which reads each of them once.
        # With nothing kept and no spare draft, no read is needed.
        if count == 0 and spare is None:
            statistics = self._intake.nothing()
        else:
            for entry in self._entries(count):
                statistics = statistics if entry.array is None else statistics - entry.statistics
                if spare is not None and entry.row["file_bytes"] >= 0:
                    spare.add(entry)
        if spare is not None:
            spare.save()
        self._done = _Done(count, end, statistics)
        self.save()
        self._rows_file.close()
        self._arrays_file.close()
        self._open()

    def _entries(self, start: int) -> Iterator[Entry]:
        for row, offset in zip(self.rows()[start:], self.offsets()[start:-1].tolist(), strict=True):
            yield self.entry(row, offset)

    def entry(self, row: NDArray[np.void], offset: int) -> Entry:
        """Return a sample that the draft contained when it was opened; from any thread."""
        array = self.array(row, offset)
        return Entry(row, array, None if array is None else self._intake.statistics(array))


class ReusableSamples:
    """Samples of an earlier run that may have moved to a different position.

    Args:
        draft: the spare draft with them, which must not grow any more.
    """

    def __init__(self, draft: Draft) -> None:
        self._draft, self._rows, self._offsets = draft, draft.rows(), draft.offsets()
        # Keys (n,) in ascending order, for a binary search: 16 bytes per sample, no dict of objects.
        self._order = np.argsort(self._rows["key"], kind="stable")
        self._keys = self._rows["key"][self._order]

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, identity: tuple[int, ...]) -> Entry | None:
        """Return the sample with these values of `IDENTITY`, or None; from any thread."""
        # Of several records with one key, `side="right"` and the stable sort give the newest.
        place = int(np.searchsorted(self._keys, np.uint64(identity[0]), side="right")) - 1
        if place < 0:
            return None
        row = self._rows[self._order[place]]
        if tuple(row[name] for name, _ in IDENTITY) != identity:
            return None
        return self._draft.entry(row, int(self._offsets[self._order[place]]))


# The folder of an unfinished preparation: one process and one plan at a time.


@contextmanager
def unfinished(folder: Path, plan: Mapping[str, Any], intake: Intake) -> Iterator[None]:
    """Lock a folder for drafts, and remove it on success.

    Existing drafts are kept if they belong to a compatible plan, and removed otherwise.

    Args:
        folder: of the drafts; the lock file is beside it.
        plan: all values that decide the content of a draft, except its samples.
        intake: reads the samples; decides which other plan's drafts it can resume.

    Raises:
        DataError: another process holds the lock.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        lock.acquire(timeout=WAIT_SECONDS)
    except Timeout:
        raise DataError(
            f"{folder}: another `pipeline prepare` is running and did not finish within {WAIT_SECONDS:g} "
            "s; wait for it, or stop it and run the command again"
        ) from None
    with lock:
        _begin(folder, plan, intake)
        yield
        shutil.rmtree(folder)


def _begin(folder: Path, plan: Mapping[str, Any], intake: Intake) -> None:
    found = None
    with suppress(FileNotFoundError, ValueError):
        found = read_json(folder / _PLAN)
    if not (isinstance(found, dict) and intake.goes_on(found, plan)) and folder.exists():
        note(f"{folder}: left by a preparation with different parameters or versions; starting over")
        shutil.rmtree(folder)
    if found != plan:
        write_json(folder / _PLAN, plan)
    (folder / _UNREADABLE).unlink(missing_ok=True)


def require_none(lines: Sequence[str], fault: str, folder: Path) -> None:
    """Refuse to finish if there are messages about samples.

    Args:
        lines: one message per sample, which begins with its file and a colon.
        fault: text after their number, e.g. "of 9 samples are not readable".
        folder: gets the file with all messages.

    Raises:
        DataError: naming the first samples and the file.
    """
    if not lines:
        return
    path = folder / _UNREADABLE
    write_bytes(path, "".join(f"{line}\n" for line in lines).encode(errors="replace"))
    if len(lines) == 1:
        raise DataError(lines[0])
    first = first_of([line.partition(":")[0] for line in lines])
    raise DataError(
        f"{len(lines):,} {fault}: {first}; the full list is in {path}; replace or remove them, and run "
        "the command again to resume"
    )
