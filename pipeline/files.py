"""Files that are either whole or not there: write beside, sync, rename, sync the folder."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


def write_atomic(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Create or replace `path` with what `write` puts into a binary file, durably and at once.

    A reader sees the old file or the new one, never a part. The folder is created if need be.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with naming(path), os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError that names no file, as that of a full disk, name this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Create or replace a file with these bytes, atomically."""
    write_atomic(path, lambda file: file.write(content))


def write_json(path: Path, value: Any) -> None:
    """Create or replace a JSON file (sorted keys, indented, no NaN), atomically."""
    text = json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n"
    write_bytes(path, text.encode())


def read_json(path: Path) -> Any:
    """Return the value of a JSON file."""
    return json.loads(path.read_text())


def parse_object(content: bytes) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        ValueError: it is not JSON, nested too deeply, has a number that JSON has not, or is no object.
    """
    try:
        value = json.loads(content, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"holds a {type(value).__name__}, expected an object")
    return value


def _refuse_constant(text: str) -> None:
    raise ValueError(f"holds {text}, which is no number of JSON")


def sync_file(path: Path) -> None:
    """Wait until a file's bytes are on the disk."""
    _sync(path, os.O_RDONLY)


def sync_folder(path: Path) -> None:
    """Wait until a folder's entries are on the disk."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
