"""The files below a folder: image files by their suffix, at any depth, and the count of all others.

Linked folders are followed, as torchvision's ImageFolder does, but not back to a folder that they are in.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import DataError
from pipeline.data.decoding import SUFFIXES
from pipeline.samples.samples import LeftOut

_SYSTEMS_OWN = ("thumbs.db", "desktop.ini", "__macosx")
_LONGEST_SUFFIX = 12

Identity = tuple[int, int]  # device and inode of a folder


@dataclass(frozen=True, slots=True)
class Tree:
    """What is below a folder.

    Args:
        images: names of image files, relative to the root, sorted folder by folder.
        left_out: the others.
    """

    images: list[str]
    left_out: LeftOut


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder on the way: its name relative to the root, and the folders that it is in, and itself."""

    name: str
    above: frozenset[Identity]


def image_tree(root: Path, folder: str) -> Tree:
    """Find the image files below a folder.

    Args:
        root: that names are relative to.
        folder: relative to the root.

    Raises:
        DataError: a folder cannot be listed.
    """
    images, suffixes, hidden = [], Counter[str](), 0
    above, own = _above(root, folder), _identity(root / folder)
    linked_back = int(own in above and folder != ".")
    waiting = [] if linked_back else [_Folder(folder, above | {own})]
    while waiting:
        here = waiting.pop()
        for entry in entries(root / here.name):
            name = f"{here.name}/{entry.name}"
            if is_hidden(entry.name):
                hidden += 1
            elif not entry.is_dir():
                if is_image(entry.name):
                    images.append(name)
                else:
                    suffixes[suffix_of(entry.name)] += 1
            elif (identity := _identity(entry)) in here.above:
                linked_back += 1
            else:
                waiting.append(_Folder(name, here.above | {identity}))
    images.sort(key=lambda name: name.split("/"))
    return Tree(images, LeftOut(suffixes=suffixes, hidden=hidden, linked_back=linked_back))


def entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield what is in a folder.

    Raises:
        DataError: it cannot be listed.
    """
    try:
        with os.scandir(folder) as found:
            yield from found
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be listed ({error.strerror}); expected a readable folder; change its mode, "
            "or move it away"
        ) from None


def is_hidden(name: str) -> bool:
    """Whether a file or folder is a system's, not a user's."""
    return name.startswith(".") or name.lower() in _SYSTEMS_OWN


def is_image(name: str) -> bool:
    """Whether a file counts as an image, by its suffix alone."""
    return suffix_of(name) in SUFFIXES


def suffix_of(name: str) -> str:
    """Return a file's suffix in small letters, or "no suffix"; nothing that is longer than a suffix."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix if 1 < len(suffix) <= _LONGEST_SUFFIX and suffix.isprintable() else "no suffix"


def _above(root: Path, folder: str) -> frozenset[Identity]:
    """Return the identities of the folders that a folder is in, from the root on."""
    parts = Path(folder).parts
    return frozenset(_identity(root.joinpath(*parts[:count])) for count in range(len(parts)))


def _identity(place: Path | os.DirEntry[str]) -> Identity:
    status = place.stat()
    return status.st_dev, status.st_ino
