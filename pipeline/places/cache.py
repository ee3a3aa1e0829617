"""A folder on a fast disk that keeps what was read from buckets, shared by all processes of a machine.

    PIPELINE_CACHE      the folder, e.g. /nvme/cache; by default ~/.cache/softlabel-pipeline
    PIPELINE_CACHE_GB   its largest size; without it, a tenth of the disk stays free

Samples are always kept. Shards of stores are kept if the folder is named: each rank of a student then reads
the file that one of them fetched.

Several processes that need the same bytes ask for them once: one fetches, the others wait for its file. The
files that were unused for longest make room. The whole folder may be removed at any time.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import io
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.core.errors import ConfigError, StoreError, quoted
from pipeline.core.files import write_atomic

FOLDER, GIGABYTES = "PIPELINE_CACHE", "PIPELINE_CACHE_GB"
_FREE_SHARE = 0.1
# The folder is listed again after this share of its largest size was written.
_SLACK = 1 / 16
# Of a SHA-256; names of locks and of unfinished files are longer.
_NAME_LETTERS = 64
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


class Cache:
    """Bytes by key, one file each.

    Args:
        folder: of the files; created when the first one is written.
        most_bytes: size at which the oldest files are removed, about; None keeps a tenth of the disk free.

    Example:
        >>> from pipeline.places.cache import Cache
        >>> cache = Cache(Path("cache"))
        >>> with cache.open("s3://bucket/train.tar 0", lambda: b"bytes of the bucket") as file:
        ...     file.read(5)
        b'bytes'
        >>> with cache.open("s3://bucket/train.tar 0", lambda: b"not asked again") as file:
        ...     file.read(5)
        b'bytes'
    """

    def __init__(self, folder: Path, most_bytes: int | None = None) -> None:
        self._folder, self._most_bytes = folder, most_bytes
        self._unlisted = math.inf
        self._used: set[Path] = set()

    def __str__(self) -> str:
        return str(self._folder)

    def open(self, key: str, fetch: Callable[[], bytes]) -> io.BufferedReader:
        """Open the file of a key for reading; it is fetched if it is not there.

        Args:
            key: any text; equal keys have equal bytes.
            fetch: returns the bytes; called by one process at a time.

        Raises:
            StoreError: the folder cannot be written.
        """
        path = self._path(key)
        try:
            while True:
                # Between writing and opening, another process may remove the file to make room.
                with suppress(FileNotFoundError):
                    file = path.open("rb")
                    self._tell_used(path)
                    return file
                self._fill(path, fetch)
        except OSError as error:
            raise StoreError(
                f"{self._folder}: cannot keep what is read from a bucket ({error.strerror}); expected a "
                f"folder on a disk with room; set {FOLDER} to one"
            ) from None

    def forget(self, key: str) -> None:
        """Remove the bytes of a key, e.g. damaged ones."""
        self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()
        return self._folder / name[:2] / name

    def _fill(self, path: Path, fetch: Callable[[], bytes]) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone(path):
            if path.exists():
                return
            content = fetch()
            self._make_room(len(content))
            write_atomic(path, lambda file: file.write(content))

    def _tell_used(self, path: Path) -> None:
        """Mark a file as used now, once per process: the files that were unused for longest go first."""
        if path not in self._used:
            self._used.add(path)
            with suppress(OSError):
                os.utime(path)

    def _make_room(self, count: int) -> None:
        """Remove old files, if `count` more bytes are too many."""
        self._unlisted += count
        if self._most_bytes is None:
            usage = shutil.disk_usage(self._folder)
            surplus = count + _FREE_SHARE * usage.total - usage.free
            slack = 0.0
        else:
            slack = _SLACK * self._most_bytes
            if self._unlisted < slack:
                return
            surplus = sum(size for _, size, _ in self._files()) + count - self._most_bytes
            self._unlisted = 0
        if surplus <= 0:
            return
        surplus += slack
        for _, size, path in sorted(self._files()):
            if surplus <= 0:
                break
            path.unlink(missing_ok=True)
            surplus -= size

    def _files(self) -> Iterator[tuple[int, int, Path]]:
        """Yield time of use in ns, size in bytes and path of every file that is not being written."""
        for folder, _, names in os.walk(self._folder):
            for name in names:
                path = Path(folder, name)
                with suppress(FileNotFoundError):
                    if len(name) != _NAME_LETTERS:
                        continue
                    state = path.stat()
                    yield state.st_mtime_ns, state.st_size, path


@functools.cache
def machine_cache() -> Cache:
    """Return the cache that the environment names, or else the one in the user's folder of caches.

    Raises:
        ConfigError: its size is no number above 0.
    """
    usual = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "softlabel-pipeline"
    folder, given = os.environ.get(FOLDER) or usual, os.environ.get(GIGABYTES)
    return Cache(Path(folder).expanduser(), None if given is None else _bytes_of(given))


def named_cache() -> Cache | None:
    """Return the cache of `PIPELINE_CACHE`; None if it is not set."""
    return machine_cache() if os.environ.get(FOLDER) else None


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock of one file, which ends with the process; without locks, several processes may fetch."""
    name = path.with_suffix(".lock")
    with name.open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        try:
            yield
        finally:
            # Whoever waits for the removed file finds the bytes there, and fetches none.
            name.unlink(missing_ok=True)


def _bytes_of(given: str) -> int:
    """Return a number of bytes, given in gigabytes.

    >>> _bytes_of("0.5")
    500000000
    """
    try:
        count = float(given)
    except ValueError:
        count = 0
    if not 0 < count < math.inf:
        raise ConfigError(f"{GIGABYTES} is {quoted(given)}; expected gigabytes, above 0; correct it")
    return int(count * 1e9)
