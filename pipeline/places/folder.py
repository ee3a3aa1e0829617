"""A local folder as a place, also on file systems without working locks, e.g. NFS with `nolock`.

A file is written under a name of its own, `.NAME.` and eight random characters, synced, and then linked or
renamed to its place: both are atomic on every POSIX file system, so no lock is needed. A killed writer
leaves the random name, which the store's clean-up knows.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.core.errors import LockedError
from pipeline.core.files import naming, sync_folder, write_new
from pipeline.places.local import names_in, path_inside, read_inside, remove_inside
from pipeline.places.place import Place, Tag

# No hard links: exFAT, and some file systems in user space.
_LINKLESS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)
# A claim is held while one small file is compared and replaced; a longer one was left by a killed process.
_STALE_SECONDS = 30.0
_POLL_SECONDS = 0.002
# A folder that is removed while a file is written into it is made again so often.
_ATTEMPTS = 5


class LocalPlace(Place):
    """The files of a folder, which may not exist yet.

    Args:
        folder: its path.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    def below(self, folder: str) -> LocalPlace:
        """Return the place of a folder in this one."""
        return LocalPlace(self.folder / folder)

    def parents(self) -> Iterator[Place]:
        """Yield the folders around this one, the nearest first."""
        return (LocalPlace(folder) for folder in self.folder.absolute().parents)

    def sizes(self, under: str = "") -> dict[str, int]:
        """Return the size of every file, by name; links to files count by their target."""
        found = {}
        for name in names_in(self.folder / under):
            whole = f"{under}/{name}" if under else name
            size = _size(f"{self.folder}/{whole}")
            if size is not None:
                found[whole] = size
        return found

    def names(self, folder: str) -> list[str]:
        """Return the names in one folder."""
        try:
            return os.listdir(self.folder / folder)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def size(self, name: str) -> int | None:
        """Return the size of a file, or None if it is missing."""
        try:
            return os.stat(f"{self.folder}/{name}").st_size
        except OSError:
            return None

    def get(self, name: str, first: int = 0, count: int | None = None) -> bytes | None:
        """Return a file's bytes, or None if it is missing."""
        return read_inside(self.folder, name, first=first, count=count)

    def tag(self, name: str) -> Tag | None:
        """Return number, time and size of the file behind a name, or None."""
        try:
            found = os.stat(self.folder / name)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return f"{found.st_ino}-{found.st_mtime_ns}-{found.st_size}"

    def put(self, name: str, content: bytes) -> Tag:
        """Create or replace a file, durably."""
        return self._written(name, content, os.replace)

    def put_if_absent(self, name: str, content: bytes) -> Tag | None:
        """Create a file, durably, unless the name is taken.

        A link to nothing, e.g. into a cache of DVC that was emptied, counts as absent and is replaced.
        """
        try:
            return self._written(name, content, _link)
        except FileExistsError:
            path = self.folder / name
            if path.exists() or not path.is_symlink():
                return None
        _remove_link(path)
        return self.put_if_absent(name, content)

    def put_if_match(self, name: str, content: bytes, tag: Tag) -> Tag | None:
        """Replace a file if it still has this tag."""
        with self._claimed(name):
            return self.put(name, content) if self.tag(name) == tag else None

    def delete(self, names: Iterable[str]) -> None:
        """Remove files, or links themselves; missing ones are ignored."""
        for name in names:
            remove_inside(self.folder, name)

    def move(self, names: Iterable[str], target: Place) -> None:
        """Rename files into another folder, durably."""
        if not isinstance(target, LocalPlace):
            raise TypeError(f"{target} is no folder")
        folders = set()
        for name in names:
            (target.folder / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.replace(self.folder / name, target.folder / name)
            except FileNotFoundError:
                if not target.exists(name):  # another process has moved it
                    raise
            # (a/b/file) -> a/b, a, the folder itself: a rename lasts once every folder above it is synced.
            folders |= {target.folder / parent for parent in Path(name).parents}
        # Reverse order: children before parents.
        for folder in sorted(folders, reverse=True):
            sync_folder(folder)

    def prune(self, folder: str) -> None:
        """Remove a folder if it is empty."""
        with suppress(OSError):  # it is missing, or holds something
            (self.folder / folder).rmdir()

    def _written(self, name: str, content: bytes, publish: Callable[[Path, Path], None]) -> Tag:
        """Write a file under a name of its own and publish it; return its tag."""
        path, made = path_inside(self.folder, name), list[Path]()
        for left in reversed(range(_ATTEMPTS)):
            try:
                made += _make_folders(path.parent)
                with naming(path):
                    state = write_new(path, content, publish)
                for folder in (path.parent, *made):
                    sync_folder(folder)
            except FileNotFoundError:
                # Another process has removed the folder, which was empty before, e.g. of a complete store.
                if not left:
                    raise
            else:
                break
        return f"{state.st_ino}-{state.st_mtime_ns}-{state.st_size}"

    @contextmanager
    def _claimed(self, name: str) -> Iterator[None]:
        """Hold a name for a moment: of several processes, one creates the claim, and the others wait."""
        path = path_inside(self.folder, name)
        claim = path.with_name(f".{path.name}.claiming")
        deadline = time.monotonic() + 2 * _STALE_SECONDS
        claim.parent.mkdir(parents=True, exist_ok=True)
        ours, since = secrets.token_hex(8), 0.0
        seen: str | None = None
        while not _claims(claim, ours):
            now, theirs = time.monotonic(), _claimed_by(claim)
            if now > deadline:
                raise LockedError(
                    f"{claim}: another process is replacing {path.name} and does not end; stop it, or "
                    f"remove the file with: rm {claim}"
                )
            if theirs != seen:
                seen, since = theirs, now
            elif now - since > _STALE_SECONDS:
                _remove_claim(claim, theirs)
            time.sleep(_POLL_SECONDS)
        try:
            yield
        finally:
            _remove_claim(claim, ours)


Root = Path | Place


def at(root: Root) -> Place:
    """Return the place of a folder; a place is itself."""
    return LocalPlace(root) if isinstance(root, Path) else root


def _link(source: Path, target: Path) -> None:
    """Give a written file its name, unless the name is taken.

    Raises:
        FileExistsError: the name is taken.
    """
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _LINKLESS:
            raise
        # Without links two writers in the same instant may both succeed; of store files, by the same bytes.
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        os.replace(source, target)
    else:
        os.unlink(source)


def _make_folders(folder: Path) -> list[Path]:
    """Create a folder and those around it; return the folders that got a new entry, innermost first."""
    made = []
    for around in (folder, *folder.parents):
        if around.is_dir():
            break
        made.append(around.parent)
    folder.mkdir(parents=True, exist_ok=True)
    return made


def _claims(claim: Path, token: str) -> bool:
    """Create a claim, which holds a token; False if there is one."""
    try:
        handle = os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w") as file:
        file.write(token)
    return True


def _claimed_by(claim: Path) -> str:
    """Return the token of a claim; none if it is gone, or not written yet."""
    try:
        return claim.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def _remove_link(path: Path) -> None:
    """Remove a link, renamed first: what came in its place meanwhile is put back."""
    taken = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with suppress(FileNotFoundError):
        os.rename(path, taken)
        if not taken.is_symlink():
            with suppress(FileExistsError):
                os.link(taken, path)
        taken.unlink()


def _remove_claim(claim: Path, token: str) -> None:
    """Remove the claim with this token, renamed first: what came in its place meanwhile is put back."""
    # Named like a half-written file: a kill in between leaves nothing that is not known as a leftover.
    taken = claim.with_name(f"{claim.stem}.{secrets.token_hex(4)}")
    with suppress(FileNotFoundError):
        os.rename(claim, taken)
        if taken.read_text(errors="replace") != token:
            with suppress(FileExistsError):
                os.link(taken, claim)
        taken.unlink()


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size if os.path.isfile(path) else None
    except FileNotFoundError:
        return None
