"""Text files in class folders: PATH/train/CLASS/*.txt and PATH/test/CLASS/*.txt, or PATH/CLASS/*.txt.

PATH/val/CLASS/*.txt chooses epochs; files in PATH/train/unlabelled have no label. Without a test folder,
val
is the test split; without both, a fixed fifth of each class is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError, did_you_mean, first_of, printable
from pipeline.modalities.text.form import TextSource
from pipeline.modalities.text.options import TextOptions
from pipeline.modalities.text.sources.tables import drawn
from pipeline.samples.labels import require_class_names
from pipeline.samples.samples import UNLABELLED, LeftOut, Sample, Samples
from pipeline.samples.splits import TRAIN, find_splits

_SUFFIX = ".txt"
_BOM = b"\xef\xbb\xbf"
_UNLABELLED = ("unlabelled", "unlabeled")
Files = Mapping[str, list[str]]  # class folder -> names of its files, relative to the root


def open_folder(detail: str, options: TextOptions) -> TextSource:
    """Open a folder of text files in UTF-8, one text each; files at any depth of a class folder count."""
    root = Path(detail)
    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder; expected PATH/train/CLASS/*.txt and PATH/test/CLASS/*.txt, or "
            "PATH/CLASS/*.txt; correct data.source"
        )
    if options.text_pair is not None:
        raise DataError(f"{root}: a file is one text, and data.text_pair is set; remove it")
    names = find_splits(root, [path.name for path in root.iterdir() if path.is_dir()])
    if names is None:
        files, left_out = _listed(root, "")
        classes = _classes(root, files)
        train, test = drawn(root, _samples(root, files, classes))
        return TextSource(classes=classes, train=train, test=test, left_out=left_out, forks=True)
    found = {
        split: _listed(root, split) for split in (TRAIN, names.test, names.validation) if split is not None
    }
    classes = _classes(root / TRAIN, found[TRAIN][0])
    samples = {split: _samples(root, files, classes) for split, (files, _) in found.items()}
    return TextSource(
        classes=classes,
        train=samples[TRAIN],
        test=samples[names.test],
        validation=None if names.validation is None else samples[names.validation],
        left_out=sum((left_out for _, left_out in found.values()), LeftOut()),
        forks=True,
    )


def _listed(root: Path, split: str) -> tuple[Files, LeftOut]:
    """Return the text files of a split by class folder, sorted, and counts of others."""
    files: dict[str, list[str]] = {}
    suffixes, loose, hidden = Counter[str](), Counter[str](), 0
    for entry in sorted((root / split).iterdir()):
        if entry.name.startswith("."):
            hidden += 1
        elif not entry.is_dir():
            loose[f"{split or root.name}/"] += entry.suffix == _SUFFIX
            suffixes[entry.suffix or "no suffix"] += entry.suffix != _SUFFIX
        else:
            inside = sorted(path for path in entry.rglob("*") if path.is_file())
            files[entry.name] = [
                path.relative_to(root).as_posix() for path in inside if path.suffix == _SUFFIX
            ]
            suffixes.update(path.suffix or "no suffix" for path in inside if path.suffix != _SUFFIX)
    return files, LeftOut(suffixes=+suffixes, loose=+loose, hidden=hidden)


def _classes(where: Path, files: Files) -> tuple[str, ...]:
    classes = tuple(sorted(name for name in files if name not in _UNLABELLED))
    require_class_names(where, classes)
    empty = next((name for name in classes if not files[name]), None)
    if not classes or empty is not None:
        raise DataError(
            f"{where / printable(empty or '')}: no {_SUFFIX} files in "
            f"{'this class' if empty else 'class folders'}; expected CLASS/*{_SUFFIX}; add some, or remove "
            f"the folder"
        )
    return classes


def _samples(root: Path, files: Files, classes: Sequence[str]) -> Samples:
    places = {name: label for label, name in enumerate(classes)}
    for name in files:
        if name not in places and name not in _UNLABELLED:
            raise DataError(
                f"{root}: folder {printable(name)!r} is no class of the training texts "
                f"({first_of(classes)}); expected "
                f"the same class folders; rename or remove it{did_you_mean(name, classes)}"
            )
    named = [(name, places.get(folder, UNLABELLED)) for folder, some in files.items() for name in some]

    def make(row: int) -> Sample:
        name, label = named[row]
        return Sample(name, label, partial(_read, root / name), str(root / name))

    return Samples(make, np.arange(len(named)))


def _read(path: Path) -> NDArray[np.uint8]:
    """Return a file's bytes, without a byte order mark.

    Raises:
        DataError: it cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}; expected a readable file; mend it, or remove it"
        ) from None
    return np.frombuffer(content.removeprefix(_BOM), np.uint8)
