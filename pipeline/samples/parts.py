"""The files of a dataset that consists of parts: tars, tables. Patterns, and the split that a name tells.

PATH is a folder, whose files tell their splits by name, or a pattern for training samples. All listing of
local files for such sources is done here.
"""

from __future__ import annotations

import glob
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import ConfigError, DataError, counted, first_of, quoted
from pipeline.samples.files import is_hidden, suffix_of
from pipeline.samples.samples import LeftOut
from pipeline.samples.splits import TEST, TRAIN

VALIDATION, UNLABELLED_PART = "validation", "unlabelled"
# Words in names of files -> split.
SPLIT_WORDS: Mapping[str, str] = {
    TRAIN: TRAIN,
    TEST: TEST,
    **dict.fromkeys(("validation", "val", "valid", "dev"), VALIDATION),
    **dict.fromkeys(("unlabelled", "unlabeled", "unsupervised"), UNLABELLED_PART),
}
# Any of these in a name makes it a pattern.
MAGIC = re.compile(r"[*?\[{]")
_WORD = re.compile(r"[a-z]+")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The files of a dataset.

    Args:
        files: split -> its files, in order; `train` always has some.
        left_out: files that tell no split.
    """

    files: Mapping[str, Sequence[Path]]
    left_out: LeftOut

    @property
    def paths(self) -> list[Path]:
        """The files of all splits, each once."""
        return list(dict.fromkeys(path for some in self.files.values() for path in some))

    @property
    def root(self) -> Path:
        """The lowest folder that contains all files: relative, if all of them are."""
        folders = [path.parent for paths in self.files.values() for path in paths]
        if len({folder.is_absolute() for folder in folders}) > 1:
            folders = [folder.absolute() for folder in folders]
        return Path(os.path.commonpath(folders) or ".")


def split_of(name: str) -> str | None:
    """Return the split that a file's name tells by one of its words, or None.

    >>> split_of("train/000.tar"), split_of("cifar10-val-00001-of-00004.parquet"), split_of("a.csv")
    ('train', 'validation', None)
    >>> split_of("train-test.tar") is None
    True
    """
    found = {SPLIT_WORDS[word] for word in _WORD.findall(name.lower()) if word in SPLIT_WORDS}
    return found.pop() if len(found) == 1 else None


def find_parts(detail: str, suffix: str, further: Mapping[str, str | None]) -> Parts:
    """Find the files of a dataset.

    Args:
        detail: a folder, a file, or a pattern with `*`, `?`, `[…]`, `{a,b}` or `{000..099}`.
        suffix: of its files, e.g. .tar.
        further: split -> pattern of its files, or None.

    Raises:
        DataError: no such file; all missing ones of a range are counted.
        ConfigError: a malformed range, or an address that is no local path.
    """
    found = {split: list(_matching(pattern, suffix)) for split, pattern in further.items() if pattern}
    if not Path(detail).is_dir():
        return Parts(files={TRAIN: list(_matching(detail, suffix)), **found}, left_out=LeftOut())
    return _in_folder(Path(detail), suffix, found)


def _in_folder(root: Path, suffix: str, further: Mapping[str, list[Path]]) -> Parts:
    names, left_out = divided(root, sorted(_below(root, suffix)), suffix)
    files = {split: [root / name for name in some] for split, some in names.items()}
    return Parts(files={**files, **further}, left_out=left_out)


def divided(root: object, names: Sequence[str], suffix: str) -> tuple[Mapping[str, list[str]], LeftOut]:
    """Divide the files of a folder by the words of their names; without any such word, all are training.

    Args:
        root: the folder, for the error.
        names: of its files, in order.
        suffix: of them, for the error.

    Returns:
        Split -> names, and the files that tell no split.

    Raises:
        DataError: no file tells that it is of the training split, but some tell another one.
    """
    found: dict[str, list[str]] = defaultdict(list)
    unused = []
    for name in names:
        split = split_of(name)
        found[split].append(name) if split else unused.append(name)
    if not found:
        found, unused = defaultdict(list, {TRAIN: list(names)}), []
    if not found[TRAIN]:
        there = first_of(names) or "none"
        raise DataError(
            f"{root}: its *{suffix} files are {there}; expected some with train in their names, e.g. "
            f"train-000{suffix}, or one split alone; rename them, or use a pattern as data.source"
        )
    return found, LeftOut(unused=tuple(unused))


def _below(root: Path, suffix: str) -> Iterator[str]:
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not is_hidden(name)]
        for name in names:
            if suffix_of(name) == suffix and not is_hidden(name):
                yield (Path(folder) / name).relative_to(root).as_posix()


def _matching(pattern: str, suffix: str) -> Iterator[Path]:
    """Yield the files of a pattern, each once, in the order of its ranges."""
    if "://" in pattern or pattern.startswith("pipe:"):
        raise ConfigError(
            f"{quoted(pattern)}: is no local path; expected files on this machine; copy or mount them"
        )
    missing, empty = [], []
    found: dict[Path, None] = {}
    for name in [pattern] if os.path.lexists(pattern) else expand(pattern):
        if os.path.lexists(name):
            found[Path(name)] = None
        elif glob.has_magic(name):
            matches = sorted(glob.glob(name, recursive=True))
            found |= dict.fromkeys(map(Path, matches))
            empty += [] if matches else [name]
        else:
            missing.append(name)
    if missing or empty:
        raise DataError(
            f"{first_of([*missing, *empty])}: no such file ({counted(len(missing) + len(empty), 'name')} "
            f"of {quoted(pattern)}); expected *{suffix} files; correct data.source, or restore them"
        )
    yield from found


def relative_name(path: Path, root: Path) -> str:
    """Return a file's name relative to `Parts.root`."""
    return (path.absolute() if root.is_absolute() else path).relative_to(root).as_posix()


def path_below(folder: Path, name: str, where: str) -> Path:
    """Return the path of a file that a table names; links below the folder may lead elsewhere.

    Args:
        folder: of the table.
        name: as the table has it.
        where: table and line, for the error.

    Raises:
        DataError: the name is absolute, or leads out of the folder: it is a sample's key, too, which a move
            of the folder must not change.
    """
    if os.path.isabs(name) or ".." in name.split("/") or "\0" in name:
        raise DataError(
            f"{where}: {quoted(name)} leads out of {folder}; expected a path below it; correct the table, "
            "or put a link to the files there"
        )
    return folder / name


def expand(pattern: str) -> list[str]:
    """Return the names that braces stand for; numbers keep the width of the first one.

    >>> expand("a-{08..11}.tar")
    ['a-08.tar', 'a-09.tar', 'a-10.tar', 'a-11.tar']
    >>> expand("{train,extra}-{0..1}.tar")
    ['train-0.tar', 'train-1.tar', 'extra-0.tar', 'extra-1.tar']

    Raises:
        ConfigError: a range that ends before it begins, or more than a million names.
    """
    names, rest = [""], pattern
    while match := _BRACES.search(rest):
        choices = _choices(match[1], pattern)
        if len(names) * len(choices) > _MOST:
            raise ConfigError(
                f"{quoted(pattern)}: names more than {_MOST:,} files; expected fewer; correct it"
            )
        names = [name + rest[: match.start()] + choice for name in names for choice in choices]
        rest = rest[match.end() :]
    return [name + rest for name in names]


def _choices(inside: str, pattern: str) -> list[str]:
    numbers = _RANGE.fullmatch(inside)
    if numbers is None:
        return inside.split(",")
    first, last = int(numbers[1]), int(numbers[2])
    if not first <= last < first + _MOST:
        raise ConfigError(
            f"{quoted(pattern)}: has the range {inside}; expected FIRST..LAST, of at most {_MOST:,} "
            "numbers; correct it"
        )
    return [f"{number:0{len(numbers[1])}}" for number in range(first, last + 1)]
