"""A place: files by name, in a local folder or in object storage, and three ways to write one.

    put              replace, or create
    put_if_absent    create; of several writers at once, one succeeds
    put_if_match     replace what was read before; of several writers at once, one succeeds

A file is whole or absent in each of them: no reader sees a part. Conditions take the place of locks, which
object storage and some network file systems do not have. `folder.py` and `objects.py` have the two kinds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator

from pipeline.core.errors import StoreError
from pipeline.core.threads import side_by_side

# What tells two contents of a name apart, e.g. an ETag.
Tag = str


def required(place: Place, name: str) -> bytes:
    """Return a file's bytes.

    Raises:
        StoreError: it is missing.
    """
    content = place.get(name)
    if content is None:
        raise StoreError(f"{place}/{name}: is missing, but was there a moment ago; run the command again")
    return content


class Place(ABC):
    """The files below one folder or prefix. Names are relative to it, with / between the parts.

    Every method raises a `StoreError` of one line if the place cannot be reached, read or written.

    Example:
        >>> from pipeline.places.objects import ObjectPlace
        >>> place = ObjectPlace.in_memory()
        >>> tag = place.put_if_absent("main.zarr/zarr.json", b"{}")
        >>> place.put_if_absent("main.zarr/zarr.json", b"[]") is None
        True
        >>> place.below("main.zarr").get("zarr.json")
        b'{}'
    """

    # Requests that pay off at the same time.
    at_once: int = 1
    # Whether a lock file beside the place keeps other writers away.
    has_locks: bool = True

    @abstractmethod
    def below(self, folder: str) -> Place:
        """Return the place of a folder in this one."""

    @abstractmethod
    def parents(self) -> Iterator[Place]:
        """Yield the places around this one, the nearest first."""

    @abstractmethod
    def sizes(self, under: str = "") -> dict[str, int]:
        """Return the size in bytes of every file, by name, also of those in folders.

        Args:
            under: a folder to restrict the listing to; names stay relative to this place.
        """

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """Return the names in one folder; none if it does not exist."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes, or None if it is missing."""

    @abstractmethod
    def get(self, name: str, first: int = 0, count: int | None = None) -> bytes | None:
        """Return a file's bytes, or None if it is missing.

        Args:
            name: of the file.
            first: the first byte to return.
            count: number of bytes at most; None for all. Fewer come back at the end of the file.
        """

    @abstractmethod
    def tag(self, name: str) -> Tag | None:
        """Return what tells this content of a name from others, or None if the file is missing."""

    @abstractmethod
    def put(self, name: str, content: bytes) -> Tag:
        """Create or replace a file, and return its tag."""

    @abstractmethod
    def put_if_absent(self, name: str, content: bytes) -> Tag | None:
        """Create a file and return its tag, or None if the name is taken."""

    @abstractmethod
    def put_if_match(self, name: str, content: bytes, tag: Tag) -> Tag | None:
        """Replace a file if it still has this tag; return the new one, or None if it has not."""

    @abstractmethod
    def delete(self, names: Iterable[str]) -> None:
        """Remove files; missing ones are ignored."""

    @abstractmethod
    def move(self, names: Iterable[str], target: Place) -> None:
        """Move files to the same names in another place of the same kind, replacing those there.

        Killed in between, it can be repeated with the files that are left.
        """

    @abstractmethod
    def prune(self, folder: str) -> None:
        """Remove a folder if it is empty."""

    def exists(self, name: str) -> bool:
        """Whether a file of this name exists."""
        return self.tag(name) is not None

    def sizes_of(self, names: Collection[str]) -> dict[str, int]:
        """Return the sizes in bytes of those files that exist, by name."""
        found = zip(names, side_by_side(self.size, names, self.at_once), strict=True)
        return {name: size for name, size in found if size is not None}

    def __truediv__(self, folder: str) -> Place:
        return self.below(folder)
