"""Write files that are complete or absent: write a temporary, sync, rename, sync the folder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

_CREATED = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
_ATTEMPTS, _PAUSE_SECONDS = 10, 0.01
# Temporary files of `write_atomic`: `.NAME.partial`; without locks, eight random characters instead.
_TEMPORARY = re.compile(r"\.(.+)\.(partial|[a-z0-9_]{8})")


def write_atomic(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Create or replace `path` durably and atomically; `write` is called with a binary file.

    A reader sees the old file or the new one, never a part. The folder is created if it is missing. A
    killed writer leaves `.NAME.partial` behind, and the next writer of the same file reuses it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path):
        partial, file = _open_partial(path)
        with file:
            try:
                write(file)
                file.flush()
                os.fsync(file.fileno())
                os.replace(partial, path)
            except BaseException:
                if _is_at(file, partial):
                    partial.unlink()
                raise
    sync_folder(path.parent)


def _open_partial(path: Path) -> tuple[Path, IO[bytes]]:
    """Open an empty temporary file that no other process writes, with the umask's modes."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        return partial, _open_alone(partial)
    except OSError as error:
        # The file system has no locks, or another user left the file.
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EACCES, errno.EPERM):
            raise
    partial = _beside(path)
    return partial, os.fdopen(os.open(partial, _CREATED | os.O_EXCL, 0o666), "wb")


def _open_alone(path: Path) -> IO[bytes]:
    """Lock and empty a temporary file; a killed writer may have left it."""
    while True:
        # O_NONBLOCK: a FIFO fails at once instead of blocking.
        file = os.fdopen(os.open(path, _CREATED | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666), "wb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            # During the wait, the previous holder may have renamed the file that both opened.
            if _is_at(file, path):
                file.truncate()
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Whether a path still names this open file."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def write_new(path: Path, content: bytes, publish: Callable[[Path, Path], None]) -> os.stat_result:
    """Write a file under a name of its own, durably, then give it its name; needs no lock.

    Args:
        path: of the file; its folder exists.
        content: the bytes.
        publish: called with the written file and `path`, e.g. `os.replace`.

    Returns:
        The state of the file, which does not change as it gets its name.
    """
    for attempt in range(_ATTEMPTS):
        time.sleep(_PAUSE_SECONDS * attempt)
        partial = _beside(path)
        file = os.fdopen(os.open(partial, _CREATED | os.O_EXCL, 0o666), "wb")
        try:
            with file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                state = os.fstat(file.fileno())
            publish(partial, path)
        except FileNotFoundError:
            # Without working locks another process may take the file for a killed writer's, and remove it.
            if attempt == _ATTEMPTS - 1 or os.path.lexists(partial):
                raise
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        else:
            return state
    raise AssertionError


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def write_tensors(path: Path, value: Any) -> None:
    """Create or replace a torch file of tensors in plain containers, atomically.

    Raises:
        OSError: the original error; torch reports a full disk as a RuntimeError about positions.
    """
    from torch import save

    def write(file: IO[bytes]) -> None:
        told = _TellingFile(file)
        try:
            save(value, cast("IO[bytes]", told))
        except RuntimeError:
            if told.refused is None:
                raise
            raise told.refused from None

    write_atomic(path, write)


class _TellingFile:
    """A file that remembers the error of a failed write.

    Args:
        file: the wrapped binary file.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.refused: OSError | None = None

    def write(self, content: bytes) -> int:
        try:
            return self._file.write(content)
        except OSError as error:
            self.refused = error
            raise

    def flush(self) -> None:
        self._file.flush()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add this path to an OSError without a file name, e.g. for a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Create or replace a file atomically."""
    write_atomic(path, lambda file: file.write(content))


def write_json(path: Path, value: Any) -> None:
    """Create or replace a JSON file (sorted keys, indented, no NaN), atomically."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Return the content of a JSON file: sorted keys, indented, no NaN."""
    return (json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> Any:
    """Return the value of a JSON file."""
    return json.loads(path.read_text())


def parse_object(content: bytes) -> dict[str, Any]:
    """Parse a JSON file that holds an object.

    Raises:
        ValueError: not JSON, nested too deeply, not an object, or a number outside JSON, e.g. NaN.
    """
    try:
        value = json.loads(content, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"contains a {type(value).__name__}, expected an object")
    return value


def written_beside(name: str) -> str | None:
    """Return the target of a temporary file that a killed `write_atomic` left, or None.

    >>> written_beside(".manifest.json.partial")
    'manifest.json'
    >>> written_beside(".manifest.json.swp") is None
    True
    """
    match = _TEMPORARY.fullmatch(name)
    return match[1] if match else None


def _refuse_constant(text: str) -> None:
    raise ValueError(f"contains {text}, which is not a JSON number")


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
