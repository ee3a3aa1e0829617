"""Read, list and remove files of an untrusted folder without leaving it.

A store is data. A file may be a link, e.g. into DVC's cache, since its bytes are compared with a digest. A
folder inside a store must not be a link, so nothing outside is listed, written or removed. FIFOs, devices
and sockets are refused before they are opened: reading one may block forever.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.core.errors import CorruptStoreError, quoted

_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_LONGEST = 200
_OWN = "expected a real folder of the store; replace the link by its target"
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISLNK, "a link"),
)


class NoFileError(CorruptStoreError):
    """A name in a store that is not a usable file.

    Args:
        store: its location.
        name: path of the file inside the store.
        problem: the rest of the message, after the name.
    """

    def __init__(self, store: object, name: str, problem: str) -> None:
        super().__init__(f"{store}: {quoted(name, _LONGEST)[1:-1]} {problem}")
        self.name, self.problem = name, problem


def read_inside(
    root: Path, name: str, most_bytes: int | None = None, *, first: int = 0, count: int | None = None
) -> bytes | None:
    """Return a file's bytes, or None if it is missing.

    Args:
        root: the folder.
        name: path of the file inside the folder, with / between the parts.
        most_bytes: the largest accepted size; None for any.
        first, count: the first byte to return, and their number at most; None for all.

    Raises:
        CorruptStoreError: the file is not regular, too large, or outside the folder.
    """
    path = path_inside(root, name)
    try:
        kind = path.stat().st_mode
        if not stat.S_ISREG(kind):
            raise NoFileError(root, name, f"is {_kind(kind)}, expected a file; remove it")
        with os.fdopen(os.open(path, _FLAGS), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise NoFileError(root, name, "was replaced while being opened")
            if most_bytes is not None and found.st_size > most_bytes:
                raise too_large(root, name, found.st_size, most_bytes)
            file.seek(first)
            # The size is no proof: a file may grow, and files of /proc report 0.
            content = file.read(count if most_bytes is None else most_bytes + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if most_bytes is not None and len(content) > most_bytes:
        raise too_large(root, name, len(content), most_bytes)
    return content


def exists_inside(root: Path, name: str) -> bool:
    """Whether the name exists, even as a dangling link."""
    return os.path.lexists(root / name)


def remove_inside(root: Path, name: str) -> None:
    """Remove a file, or a link itself, if it exists.

    Raises:
        CorruptStoreError: the name leads out of the folder.
    """
    path_inside(root, name).unlink(missing_ok=True)


def names_in(root: Path, skip: Callable[[str], bool] | None = None) -> Iterator[str]:
    """Yield the names of all files and links in a folder, recursively; links are not followed.

    Args:
        root: the folder.
        skip: whether to leave out a folder in it, by its name; None for none.
    """
    # Not pathlib: a store has 100,000 files, and a path object costs more than a system call.
    start = len(os.path.join(root, ""))
    for folder, folders, files in os.walk(root):
        here = folder[start:].replace(os.sep, "/")
        inside = f"{here}/" if here else ""
        linked = [name for name in folders if os.path.islink(f"{folder}/{name}")]
        if skip is not None:
            folders[:] = [name for name in folders if name in linked or not skip(inside + name)]
        for name in (*files, *linked):
            yield inside + name


def require_own_folders(root: Path) -> None:
    """Refuse a folder with a link to a folder, a FIFO, a device or a socket in it.

    Writing or removing behind a link would happen outside; opening a FIFO may block forever.

    Raises:
        CorruptStoreError: naming the first.
    """
    for name in names_in(root):
        path = f"{root}/{name}"
        if os.path.islink(path) and os.path.isdir(path):
            raise NoFileError(root, name, f"is a link to a folder; {_OWN}")
        if os.path.exists(path) and not os.path.isfile(path):
            raise NoFileError(root, name, f"is {_kind(os.stat(path).st_mode)}, expected a file; remove it")


def too_large(store: object, name: str, size: int, most_bytes: int) -> NoFileError:
    """Return the error for a file that is larger than any valid file of its name."""
    return NoFileError(store, name, f"has {size} bytes, expected at most {most_bytes}")


def path_inside(root: Path, name: str) -> Path:
    """Return the path of a name inside the root.

    Raises:
        CorruptStoreError: the name is absolute, has "..", or one of its folders is a link.
    """
    parts = name.split("/")
    if not all(parts) or not {"..", "."}.isdisjoint(parts) or "\0" in name or "\\" in name:
        raise NoFileError(root, name, "is not a valid file name in a store")
    for count in range(1, len(parts)):
        parent = "/".join(parts[:count])
        if os.path.islink(f"{root}/{parent}"):
            raise NoFileError(root, parent, f"is a link to a folder; {_OWN}")
    return root.joinpath(*parts)


def _kind(mode: int) -> str:
    return next((text for matches, text in _KINDS if matches(mode)), "a device")
