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
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.core.errors import ConfigError, StoreError, quoted
from pipeline.core.files import write_atomic

FOLDER, GIGABYTES = "PIPELINE_CACHE", "PIPELINE_CACHE_GB"
_FREE_SHARE = 0.1
_LEAST_BYTES = 1 << 30
_MARKED_SECONDS = 300.0
_ATTEMPTS = 10
DIGEST_BYTES = 32
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
        self._used: dict[Path, float] = {}

    def __str__(self) -> str:
        return str(self._folder)

    def open(self, key: str, fetch: Callable[[], bytes]) -> io.BufferedReader:
        """Open the file of a key for reading; it is fetched if it is not there.

        The file has the bytes and then their SHA-256, which each process compares once.

        Args:
            key: any text; equal keys have equal bytes.
            fetch: returns the bytes; called by one process at a time.

        Raises:
            StoreError: the folder cannot be written.
        """
        path = self._path(key)
        try:
            for _ in range(_ATTEMPTS):
                # At any time, another process may remove the file, or the whole folder, to make room.
                with suppress(FileNotFoundError):
                    file = path.open("rb")
                    if self._is_sound(path, file):
                        return file
                    file.close()
                    self.forget(key)
                with suppress(FileNotFoundError):
                    self._fill(path, fetch)
        except OSError as error:
            raise self._unusable(str(error.strerror)) from None
        raise self._unusable("its files disappear")

    def forget(self, key: str) -> None:
        """Remove the bytes of a key, e.g. damaged ones."""
        path = self._path(key)
        self._used.pop(path, None)
        with suppress(OSError):
            path.unlink()

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()
        return self._folder / name[:2] / name

    def _unusable(self, reason: str) -> StoreError:
        return StoreError(
            f"{self._folder}: cannot keep what is read from a bucket ({reason}); expected a folder on a "
            f"disk with room; set {FOLDER} to one"
        )

    def _is_sound(self, path: Path, file: io.BufferedReader) -> bool:
        """Compare a file with its digest, once; mark it as used now, every few minutes."""
        now = time.monotonic()
        if now - self._used.get(path, -math.inf) < _MARKED_SECONDS:
            return True
        if path not in self._used:
            content = file.read()
            if hashlib.sha256(content[:-DIGEST_BYTES]).digest() != content[-DIGEST_BYTES:]:
                return False
            file.seek(0)
        self._used[path] = now
        with suppress(OSError):
            os.utime(path)
        return True

    def _fill(self, path: Path, fetch: Callable[[], bytes]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path):
            if path.exists():
                return
            content = fetch()
            path.parent.mkdir(parents=True, exist_ok=True)
            self._make_room(len(content) + DIGEST_BYTES)
            write_atomic(path, lambda file: file.write(content + hashlib.sha256(content).digest()))

    def _make_room(self, count: int) -> None:
        """Remove the files that were unused for longest, if `count` more bytes are too many."""
        self._unlisted += count
        if self._most_bytes is None:
            usage = shutil.disk_usage(self._folder)
            if usage.free - count >= _FREE_SHARE * usage.total:
                return
        elif self._unlisted < _SLACK * self._most_bytes:
            return
        self._unlisted = 0
        files = sorted(self._files())
        there = float(sum(size for _, size, _ in files) + count)
        if self._most_bytes is not None:
            surplus = there - self._most_bytes
        else:
            # On a disk that others have filled, a cache of this size is worth its room.
            surplus = min(_FREE_SHARE * usage.total - usage.free + count, there - _LEAST_BYTES)
        # Some more, so that the next files need no listing.
        surplus += _SLACK * there if surplus > 0 else 0
        for _, size, path in files:
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
