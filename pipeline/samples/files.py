"""Sample files below a folder: which ones count, how they are found and listed, and what is left out.

Nothing is opened here: a modality says which suffixes count, and makes samples of the names.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError
from pipeline.samples.samples import LeftOut, Names, Sample, Samples

_SYSTEMS_OWN = ("thumbs.db", "desktop.ini", "__macosx")
NO_SUFFIX = "no suffix"
_LONGEST_SUFFIX = 12
_ENOUGH_FILES = 1_000

Identity = tuple[int, int]  # device and inode of a folder


@dataclass(frozen=True, slots=True)
class Files:
    """A kind of sample files.

    Args:
        noun: the word for one file in messages, e.g. image.
        suffixes: suffixes of such files, in lower case, e.g. .png.
    """

    noun: str
    suffixes: Collection[str]

    def include(self, name: str) -> bool:
        """Whether a file is of this kind; only the suffix decides."""
        return suffix_of(name) in self.suffixes

    @property
    def pattern(self) -> str:
        """The suffixes as a shell pattern, e.g. *{.png,.jpg}."""
        return f"*{{{','.join(self.suffixes)}}}"


@dataclass(frozen=True, slots=True)
class Listed:
    """The files of one split.

    Args:
        root: folder that the names are relative to.
        names: N names.
        labels: (N,) int64, -1 for unlabelled; or (N, C) of a table, see `label_tables.py`.
    """

    root: Path
    names: Names
    labels: NDArray[Any]

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, rows: NDArray[np.int64]) -> Listed:
        """Return the files of these rows (n,), in the given order."""
        return Listed(self.root, self.names.subset(rows), self.labels[rows])

    def samples(self, load: Callable[[Path], Callable[[], NDArray[Any]]]) -> Samples:
        """Return samples with these names and labels; `load` maps a path to a sample's loader."""

        def make(row: int) -> Sample:
            path, label = self.root / self.names[row], self.labels[row]
            return Sample(self.names[row], label if np.ndim(label) else int(label), load(path), str(path))

        return Samples(make, np.arange(len(self)))


@dataclass(frozen=True, slots=True)
class Tree:
    """The files below a folder.

    Args:
        names: names of the sample files, relative to the root, sorted folder by folder.
        left_out: counts of all other files.
    """

    names: list[str]
    left_out: LeftOut


@dataclass(frozen=True, slots=True)
class _Visited:
    """A folder to visit: its name relative to the root, and the identities of it and its parents."""

    name: str
    above: frozenset[Identity]


def find_files(root: Path, folder: str, kind: Files) -> Tree:
    """Find the sample files below a folder, at any depth.

    Linked folders are followed, as in torchvision's ImageFolder, unless the link leads back to a parent
    folder.

    Args:
        root: root of the returned names.
        folder: the folder, relative to the root.
        kind: the files to find; all others are counted.

    Raises:
        DataError: a folder cannot be listed.
    """
    names, suffixes, hidden = [], Counter[str](), 0
    above, own = _above(root, folder), _identity(root / folder)
    linked_back = int(own in above and folder != ".")
    waiting = [] if linked_back else [_Visited(folder, above | {own})]
    while waiting:
        here = waiting.pop()
        for entry in entries(root / here.name):
            name = f"{here.name}/{entry.name}"
            if is_hidden(entry.name):
                hidden += 1
            elif not entry.is_dir():
                if kind.include(entry.name):
                    names.append(name)
                else:
                    suffixes[suffix_of(entry.name)] += 1
            elif (identity := _identity(entry)) in here.above:
                linked_back += 1
            else:
                waiting.append(_Visited(name, here.above | {identity}))
    names.sort(key=lambda name: name.split("/"))
    return Tree(names, LeftOut(suffixes=suffixes, hidden=hidden, linked_back=linked_back))


def holds_mostly(kind: Files, root: Path) -> bool:
    """Whether more than half of the first files below a folder, hidden ones aside, are of a kind."""
    names = (name for _, _, found in os.walk(root) for name in found if not is_hidden(name))
    first = [kind.include(name) for name in itertools.islice(names, _ENOUGH_FILES)]
    return 2 * sum(first) > len(first)


def entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of a folder.

    Raises:
        DataError: the folder cannot be listed.
    """
    try:
        with os.scandir(folder) as found:
            yield from found
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be listed ({error.strerror}); make the folder readable, or move it away"
        ) from None


def is_hidden(name: str) -> bool:
    """Whether a file or folder belongs to the operating system, e.g. .DS_Store or Thumbs.db."""
    return name.startswith(".") or name.lower() in _SYSTEMS_OWN


def suffix_of(name: str) -> str:
    """Return a file's suffix in lower case, or `NO_SUFFIX` if there is none or it is too long."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix if 1 < len(suffix) <= _LONGEST_SUFFIX and suffix.isprintable() else NO_SUFFIX


def _above(root: Path, folder: str) -> frozenset[Identity]:
    """Return the identities of a folder's parents, from the root on."""
    parts = Path(folder).parts
    return frozenset(_identity(root.joinpath(*parts[:count])) for count in range(len(parts)))


def _identity(place: Path | os.DirEntry[str]) -> Identity:
    status = place.stat()
    return status.st_dev, status.st_ino
