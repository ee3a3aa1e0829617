"""Files of a folder that somebody else may have made: read, listed and removed without leaving it.

A store is data. A file may be a link, as into DVC's cache, since its bytes are compared with a digest; a
folder inside a store is never one, so that nothing outside is listed, written or removed. What is no
regular file (a FIFO, a device, a socket) is refused before it is opened: reading one may never end.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pipeline.core.errors import CorruptStoreError, quoted

_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_LONGEST = 200
_OWN = "expected the store's own; replace it by what it leads to"
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISLNK, "a link"),
)


class NoFileError(CorruptStoreError):
    """Something of a store that is not the file it should be.

    Args:
        store: where it is.
        name: of it, in the store.
        problem: as it goes on after the name.
    """

    def __init__(self, store: object, name: str, problem: str) -> None:
        super().__init__(f"{store}: {quoted(name, _LONGEST)[1:-1]} {problem}")
        self.name, self.problem = name, problem


def read_inside(root: Path, name: str, most_bytes: int) -> bytes | None:
    """Return a file's bytes, or None where there is no such file.

    Args:
        root: the folder.
        name: of the file in it, with / between the parts.
        most_bytes: the largest size that is read.

    Raises:
        CorruptStoreError: it is no regular file, larger, or outside the folder.
    """
    path = _inside(root, name)
    try:
        kind = path.stat().st_mode
        if not stat.S_ISREG(kind):
            raise NoFileError(root, name, f"is {_kind(kind)}, expected a file; remove it")
        with os.fdopen(os.open(path, _FLAGS), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise NoFileError(root, name, "was replaced while it was opened")
            if found.st_size > most_bytes:
                raise too_large(root, name, found.st_size, most_bytes)
            # A file may still grow, and those of /proc have no size.
            content = file.read(most_bytes + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if len(content) > most_bytes:
        raise too_large(root, name, len(content), most_bytes)
    return content


def exists_inside(root: Path, name: str) -> bool:
    """Whether there is anything of this name, were it a dangling link."""
    return os.path.lexists(root / name)


def remove_inside(root: Path, name: str) -> None:
    """Remove a file of a folder, or a link itself, if it is there.

    Raises:
        CorruptStoreError: the name leads out of the folder.
    """
    _inside(root, name).unlink(missing_ok=True)


def names_in(root: Path) -> Iterator[str]:
    """Yield the names of everything in a folder that is no folder itself; links are not followed."""
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        linked = [name for name in folders if (here / name).is_symlink()]
        for name in (*files, *linked):
            yield (here / name).relative_to(root).as_posix()


def require_own_folders(root: Path) -> None:
    """Refuse a folder in which another one is a link, or something is no file, as a FIFO or a device.

    What is written or removed behind a link is outside; opening a FIFO may never end.

    Raises:
        CorruptStoreError: naming it.
    """
    for name in names_in(root):
        path = root / name
        if path.is_symlink() and path.is_dir():
            raise NoFileError(root, name, f"is a link to a folder; {_OWN}")
        if path.exists() and not path.is_file():
            raise NoFileError(root, name, f"is {_kind(path.stat().st_mode)}, expected a file; remove it")


def too_large(store: object, name: str, size: int, most_bytes: int) -> NoFileError:
    """Return the error of a file that has more bytes than its place in the store can have."""
    return NoFileError(store, name, f"has {size} bytes, expected at most {most_bytes}")


def _inside(root: Path, name: str) -> Path:
    """Return the path of a name, whose folders are the root's own.

    Raises:
        CorruptStoreError: it is absolute, has "..", or a folder in it is a link.
    """
    parts = name.split("/")
    if not all(parts) or not {"..", "."}.isdisjoint(parts) or "\0" in name or "\\" in name:
        raise NoFileError(root, name, "is no name of a file in a store")
    for parent in list(PurePosixPath(name).parents)[:-1]:
        if (root / parent).is_symlink():
            raise NoFileError(root, str(parent), f"is a link to a folder; {_OWN}")
    return root.joinpath(*parts)


def _kind(mode: int) -> str:
    return next((text for matches, text in _KINDS if matches(mode)), "a device")
