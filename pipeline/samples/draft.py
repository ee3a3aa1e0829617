"""The draft of a split: what is made so far, on disk, so that an interrupted preparation can be resumed.

    NAME.rows      a record a sample, in order
    NAME.arrays    their arrays, one after the other; empty where files are kept as they are
    NAME.json      the last checkpoint: how much of both files is whole, and statistics of the arrays

Both files only grow. What lies behind the checkpoint is cut off when the draft is opened again.
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

SECONDS_BETWEEN_CHECKPOINTS = 30.0
# A killed DVC leaves its stage a moment to end.
WAIT_SECONDS = 20.0
_PLAN = "plan.json"
_UNREADABLE = "unreadable.txt"


@dataclass(frozen=True, eq=False, slots=True)
class _Done:
    """How far a draft is. One value, replaced at once: an interruption falls before or after a sample."""

    rows: int
    array_bytes: int
    statistics: Any

    def to_dict(self) -> dict[str, Any]:
        statistics = self.statistics.to_plain()
        return {"rows": self.rows, "array_bytes": self.array_bytes, "statistics": statistics}


class Draft:
    """A split on its way, to be used in a `with` statement, which leaves a checkpoint.

    Args:
        folder: of the files.
        name: of the draft.
        intake: that reads the samples.
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
            sizes = {self._rows_path: done.rows * self._row.itemsize, self.arrays_path: done.array_bytes}
            if all(path.stat().st_size >= size for path, size in sizes.items()):
                return done
        return _Done(0, 0, self._intake.nothing())

    def _open(self) -> None:
        self._rows_file, self._arrays_file = self._rows_path.open("ab"), self.arrays_path.open("ab")
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
        # What stopped the work, a full disk for one, may stop this too: then an older checkpoint stands.
        harmless = () if error is None else (OSError,)
        with suppress(*harmless), ExitStack() as closing:
            closing.callback(self._rows_file.close)
            closing.callback(self._arrays_file.close)
            self.save()

    def __len__(self) -> int:
        return self._done.rows

    @property
    def statistics(self) -> Any:
        """Of all samples so far."""
        return self._done.statistics

    def rows(self) -> NDArray[np.void]:
        """Return the records so far (n,), of `row_dtype`."""
        self._rows_file.flush()
        return np.fromfile(self._rows_path, self._row, len(self))

    def offsets(self) -> NDArray[np.int64]:
        """Return where the values of each sample so far start, and where the last ones end (n + 1,)."""
        rows = self.rows()
        if not self._form.packs:
            return np.zeros(len(rows) + 1, np.int64)
        return offsets_of(rows["shape"], self._form)

    def array(self, row: NDArray[np.void], offset: int) -> NDArray[Any] | None:
        """Read the array of a sample that was there when the draft was opened."""
        if not self._form.packs:
            return None
        shape, dtype = self._form.shape(row["shape"].tolist()), np.dtype(self._form.dtype)
        start = offset * dtype.itemsize
        return np.fromfile(self.arrays_path, dtype, math.prod(shape), offset=start).reshape(shape)

    def add(self, entry: Entry) -> None:
        """Append a sample, and leave a checkpoint from time to time."""
        written = 0
        if entry.array is not None:
            values = np.ascontiguousarray(entry.array, self._form.dtype)
            with naming(self.arrays_path):
                written = self._arrays_file.write(values.data)
        with naming(self._rows_path):
            self._rows_file.write(entry.row.tobytes())
        done = self._done
        statistics = done.statistics if entry.array is None else done.statistics + entry.statistics
        self._done = _Done(done.rows + 1, done.array_bytes + written, statistics)
        if time.monotonic() - self._saved_at >= SECONDS_BETWEEN_CHECKPOINTS:
            self.save()

    def save(self) -> None:
        """Leave a checkpoint, durably, unless nothing has changed since the last one."""
        if self._done is self._saved:
            return
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
            count: how many.
            spare: where the others go that have a file to tell them by; None drops them.
        """
        end, statistics = int(self.offsets()[count]) * self._form.value_bytes, self.statistics
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
        """Return a sample that was there when the draft was opened; from any thread."""
        array = self.array(row, offset)
        return Entry(row, array, None if array is None else self._intake.statistics(array))


class ReusableSamples:
    """Samples of an earlier run that are in another place now.

    Args:
        draft: that holds them, and does not grow any more.
    """

    def __init__(self, draft: Draft) -> None:
        self._draft, self._rows, self._offsets = draft, draft.rows(), draft.offsets()
        self._order = np.argsort(self._rows["key"], kind="stable")
        self._keys = self._rows["key"][self._order]

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, identity: tuple[int, ...]) -> Entry | None:
        """Return the sample with these values of `IDENTITY`, if it is here; from any thread."""
        place = int(np.searchsorted(self._keys, np.uint64(identity[0]), side="right")) - 1
        if place < 0:
            return None
        row = self._rows[self._order[place]]
        if tuple(row[name] for name, _ in IDENTITY) != identity:
            return None
        return self._draft.entry(row, int(self._offsets[self._order[place]]))


# The folder of an unfinished preparation: one at a time, and of one plan.


@contextmanager
def unfinished(folder: Path, plan: Mapping[str, Any], intake: Intake) -> Iterator[None]:
    """Hold a folder for drafts, and remove it when they are finished and nothing went wrong.

    Drafts that are there are left over from a preparation of the same plan, or they are removed.

    Args:
        folder: of the drafts; a lock lies beside it.
        plan: what decides the content of a draft beside its samples.
        intake: that reads the samples, and knows which other plan's drafts it can go on with.

    Raises:
        DataError: another process holds it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        lock.acquire(timeout=WAIT_SECONDS)
    except Timeout:
        raise DataError(
            f"{folder}: another `pipeline prepare` is at work and did not end in {WAIT_SECONDS:g} s; "
            "expected one at a time; wait for it, or end it and run the command again"
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
        note(f"{folder}: left by a preparation with other parameters or versions; starting anew")
        shutil.rmtree(folder)
    if found != plan:
        write_json(folder / _PLAN, plan)
    (folder / _UNREADABLE).unlink(missing_ok=True)


def require_none(lines: Sequence[str], fault: str, folder: Path) -> None:
    """Refuse to finish because of some samples.

    Args:
        lines: a message for each of them, which begins with its file and a colon.
        fault: what they are, behind their number, e.g. "of 9 samples are not readable".
        folder: where the whole list goes.

    Raises:
        DataError: naming the first, and the list.
    """
    if not lines:
        return
    path = folder / _UNREADABLE
    write_bytes(path, "".join(f"{line}\n" for line in lines).encode(errors="replace"))
    if len(lines) == 1:
        raise DataError(lines[0])
    first = first_of([line.partition(":")[0] for line in lines])
    raise DataError(
        f"{len(lines):,} {fault}: {first}; all are listed in "
        f"{path}; replace or remove them and run the command again: the others are kept"
    )
