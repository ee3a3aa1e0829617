"""The folder of an unfinished preparation: one at a time, and of one plan."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.core.errors import DataError, first_of
from pipeline.core.files import read_json, write_bytes, write_json
from pipeline.core.progress import note

# A killed DVC leaves its stage a moment to end.
WAIT_SECONDS = 20.0
_PLAN = "plan.json"
_UNREADABLE = "unreadable.txt"
_BOUND = "max_pixels"  # a key of the plan


@contextmanager
def unfinished(folder: Path, plan: Mapping[str, Any]) -> Iterator[None]:
    """Hold a folder for drafts, and remove it when they are finished and nothing went wrong.

    Drafts that are there are left over from a preparation of the same plan, or they are removed.

    Args:
        folder: of the drafts; a lock lies beside it.
        plan: what decides the content of a draft beside its samples; max_pixels among it.

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
        _begin(folder, plan)
        yield
        shutil.rmtree(folder)


def _begin(folder: Path, plan: Mapping[str, Any]) -> None:
    found = None
    with suppress(FileNotFoundError, ValueError):
        found = read_json(folder / _PLAN)
    if not _goes_on(found, plan) and folder.exists():
        note(f"{folder}: left by a preparation with other parameters or versions; starting anew")
        shutil.rmtree(folder)
    if found != plan:
        write_json(folder / _PLAN, plan)
    (folder / _UNREADABLE).unlink(missing_ok=True)


def _goes_on(found: Any, plan: Mapping[str, Any]) -> bool:
    """Whether drafts of one plan are those of another: images within a bound are within a larger one."""
    if not isinstance(found, dict) or not isinstance(found.get(_BOUND), int):
        return False
    return {**found, _BOUND: plan[_BOUND]} == plan and bool(found[_BOUND] <= plan[_BOUND])


def require_none(lines: Sequence[str], fault: str, folder: Path) -> None:
    """Refuse to finish because of some images.

    Args:
        lines: a message for each of them, which begins with its file and a colon.
        fault: what they are, behind their number, e.g. "of 9 images are not readable".
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
        f"{path}; replace or remove them and run the command again: the other images are kept"
    )
