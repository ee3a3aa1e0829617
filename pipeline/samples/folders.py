"""Files in class folders, of any modality; one folder may hold unlabelled files.

Two layouts. ImageNet's: PATH/train/CLASS/*, with PATH/test/CLASS/* or PATH/val/CLASS/*. Or class folders
alone, PATH/CLASS/*: a fixed fifth of each class is the test split (`samples/splits.draw_test`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.core.errors import DataError, counted, did_you_mean, printable
from pipeline.samples.files import Files, Listed, entries, find_files, is_hidden, suffix_of
from pipeline.samples.label_forms import is_known
from pipeline.samples.label_tables import TABLE, has_table, read_tables
from pipeline.samples.labels import normal, require_class_names
from pipeline.samples.samples import UNLABELLED, LeftOut, Names
from pipeline.samples.splits import (
    TEST,
    TRAIN,
    VALIDATION,
    SplitNames,
    draw_test,
    find_splits,
    tell_drawn_test,
)

# Both spellings of the folder for unlabelled files.
_UNLABELLED_FOLDERS = ("unlabelled", "unlabeled")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassFolders:
    """The files of a dataset of class folders.

    Args:
        classes: C class names, in order.
        train, test: the files of both splits.
        validation: the files that choose the epoch; None to draw them from `train`.
        left_out: counts of all other files.
    """

    classes: tuple[str, ...]
    train: Listed
    test: Listed
    validation: Listed | None
    left_out: LeftOut


@dataclass(frozen=True, slots=True)
class _Split:
    """The sample files of a split by class folder, relative to the root, and counts of other files."""

    files: Mapping[str, Names]
    left_out: Mapping[str, LeftOut]
    loose: LeftOut

    @property
    def total(self) -> LeftOut:
        return sum(self.left_out.values(), self.loose)


@dataclass(frozen=True, slots=True)
class _Folder:
    """The direct content of a folder: its folders, and files outside any class."""

    folders: list[str]
    left_out: LeftOut

    @classmethod
    def of(cls, path: Path, name: str, kind: Files) -> _Folder:
        """List a folder; `name` stands for it in the counts of loose sample files."""
        folders, loose, suffixes, hidden = [], Counter[str](), Counter[str](), 0
        for entry in entries(path):
            if is_hidden(entry.name):
                hidden += 1
            elif entry.is_dir():
                folders.append(entry.name)
            elif kind.include(entry.name):
                loose[name] += 1
            else:
                suffixes[suffix_of(entry.name)] += 1
        return cls(folders, LeftOut(loose=loose, suffixes=suffixes, hidden=hidden))


def find_classes(root: Path, kind: Files) -> ClassFolders:
    """Find the files of PATH/train/CLASS/* and PATH/test/CLASS/*, and PATH/val/CLASS/* for validation.

    Without a test folder, val is the test split. Files in PATH/train/unlabelled, at any depth, have no
    label, and the folder is not a class. If all training files are unlabelled, class folders are empty.

    Without any of these folders, the folders of PATH are the classes: PATH/CLASS/*, and PATH/unlabelled.
    Then a fifth of each class is the test split, see `draw_test`.

    If PATH, or the folders of its splits, have a table labels.csv, folders are no classes: files lie at any
    depth, and the table has their tags or numbers.

    Args:
        root: PATH.
        kind: the files that are samples.

    Raises:
        DataError: no such folder, a layout that is neither of the two, a class without a file, or classes
            that differ between splits.
    """
    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder; expected PATH/train/CLASS/* and PATH/test/CLASS/*, or PATH/CLASS/*; "
            "correct data.source"
        )
    if has_table(root, (TRAIN, TEST, *VALIDATION)):
        return _find_labelled(root, kind)
    names, left_out = _splits(root, kind)
    if names is None:
        return _find_classes_alone(root, kind)
    held = [name for name in (names.validation, names.test) if name is not None]
    splits = {name: _read_split(root, name, kind) for name in (TRAIN, *held)}
    classes = _classes(root / TRAIN, splits[TRAIN], kind)
    for name in held:
        _require_classes(root, name, splits[name].files, classes, kind)
    listed = {name: _listed(root, name, classes, split, kind) for name, split in splits.items()}
    return ClassFolders(
        classes=classes,
        train=listed[TRAIN],
        validation=None if names.validation is None else listed[names.validation],
        test=listed[names.test],
        left_out=sum((split.total for split in splits.values()), left_out),
    )


def _find_classes_alone(root: Path, kind: Files) -> ClassFolders:
    """Find PATH/CLASS/* and draw its test split; sample names are file names relative to PATH."""
    found = _read_split(root, "", kind)
    classes = _classes(root, found, kind)
    everything = _listed(root, "", classes, found, kind)
    tested = draw_test(everything.names, everything.labels)
    tell_drawn_test(root, tested, kind.noun)
    train, test = (everything.subset(np.flatnonzero(part)) for part in (~tested, tested))
    return ClassFolders(classes=classes, train=train, validation=None, test=test, left_out=found.total)


def _find_labelled(root: Path, kind: Files) -> ClassFolders:
    """Find files at any depth, with labels in a table; without a test folder, a fifth of them are drawn."""
    folders = [entry.name for entry in entries(root) if entry.is_dir()]
    found = find_splits(root, folders)
    held = [] if found is None else [name for name in (found.validation, found.test) if name is not None]
    parts = [TRAIN, *held] if found is not None else ["."]
    table = read_tables(root, parts if found is not None else ())
    trees = {part: find_files(root, part, kind) for part in parts}
    names = {part: [name.removeprefix("./") for name in tree.names] for part, tree in trees.items()}
    table.require_files([name for some in names.values() for name in some])
    listed = {}
    for part, some in names.items():
        if not some:
            raise DataError(f"{root / part}: no {kind.noun} files; expected {kind.pattern}")
        listed[part] = Listed(root, Names.of(some), table.of(Names.of(some), root / part, kind.noun))
    left_out = sum((tree.left_out for tree in trees.values()), LeftOut())
    # The tables themselves were read.
    left_out = replace(left_out, suffixes=left_out.suffixes - Counter({suffix_of(TABLE): len(parts)}))
    if found is not None:
        validation = None if found.validation is None else listed[found.validation]
        train, test = listed[TRAIN], listed[found.test]
    else:
        everything, validation = listed["."], None
        tested = draw_test(everything.names, is_known(everything.labels).astype(np.int64) - 1)
        tell_drawn_test(root, tested, kind.noun)
        train, test = (everything.subset(np.flatnonzero(part)) for part in (~tested, tested))
    return ClassFolders(
        classes=table.classes, train=train, validation=validation, test=test, left_out=left_out
    )


def _splits(root: Path, kind: Files) -> tuple[SplitNames | None, LeftOut]:
    """Return the folder of each split, or None if all folders are classes, and counts of other entries."""
    found = _Folder.of(root, _name_of(root), kind)
    folders = found.folders
    names = find_splits(root, folders)
    if names is None:
        if folders and {TRAIN, TEST, *VALIDATION}.isdisjoint(folders):
            return None, LeftOut()
        raise _neither_layout(root, found, kind)
    unused = sorted(f"{name}/" for name in folders if name not in (TRAIN, names.test, names.validation))
    # Other files beside the splits, e.g. a README, are not missed samples.
    beside = replace(found.left_out, suffixes=Counter())
    return names, beside + LeftOut(unused=tuple(map(printable, unused)))


def _neither_layout(root: Path, found: _Folder, kind: Files) -> DataError:
    folders, loose = found.folders, found.left_out.loose.total()
    advice = f"move the classes into train/ and some {kind.noun}s of each into test/"
    if TRAIN in folders:
        advice += f", or use {root / TRAIN} as the source, to draw a test split from it"
    files = f" and {counted(loose, kind.noun)} outside of them" if loose else ""
    if folders:
        holds = f"has the folders {sorted(folders)[:5]}{files}"
    else:
        holds = f"has {counted(loose, kind.noun)} and no class folders"
        advice = f"move the {kind.noun}s of each class into a folder of its name"
    return DataError(
        f"{root}: {holds}; expected train/CLASS/* and test/CLASS/* (or val/CLASS/*), or class folders "
        f"alone; {advice}"
    )


def _read_split(root: Path, split: str, kind: Files) -> _Split:
    """Find each class's files, sorted by class and name. The split "" is the root itself."""
    found = _Folder.of(root / split, f"{split}/" if split else _name_of(root), kind)
    trees = {
        folder: find_files(root, f"{split}/{folder}" if split else folder, kind)
        for folder in sorted(found.folders)
    }
    return _Split(
        {folder: Names.of(tree.names) for folder, tree in trees.items()},
        {folder: tree.left_out for folder, tree in trees.items()},
        found.left_out,
    )


def _name_of(root: Path) -> str:
    return f"{root.name or root}/"


def _classes(where: Path, train: _Split, kind: Files) -> tuple[str, ...]:
    """Return the class names in a folder.

    Raises:
        DataError: two class names collide, or only some classes have files.
    """
    classes = tuple(name for name in train.files if name not in _UNLABELLED_FOLDERS)
    require_class_names(where, classes)
    empty = next((name for name in classes if not len(train.files[name])), None)
    if empty is not None and any(len(train.files[name]) for name in classes):
        there = str(train.left_out[empty])
        raise DataError(
            f"{where / empty}: a class folder without {kind.noun}s{there and f', left out: {there}'}; add "
            f"{kind.noun}s, or remove the folder"
        )
    return classes


def _require_classes(
    root: Path, split: str, names: Mapping[str, Names], classes: Sequence[str], kind: Files
) -> None:
    """Refuse held-out files of a class that the training files lack."""
    alike = {normal(name): name for name in classes}
    for name in names:
        if name in _UNLABELLED_FOLDERS:
            raise DataError(
                f"{root / split / name}: unlabelled {kind.noun}s cannot be used for testing; expected "
                f"class folders; move it to {root / TRAIN}, or remove it"
            )
        if name in classes:
            continue
        if normal(name) in alike:
            raise DataError(
                f"{root / split}: folder {name!a} and {alike[normal(name)]!a} of {root / TRAIN} differ "
                "only in Unicode normalisation or outer spaces; expected the same name; rename one"
            )
        raise DataError(
            f"{root / split / printable(name)}: this class is not in {root / TRAIN} ({len(classes)} "
            f"classes); expected the same class folders; rename or remove it{did_you_mean(name, classes)}"
        )


def _listed(root: Path, split: str, classes: Sequence[str], found: _Split, kind: Files) -> Listed:
    """Return a split's files, folder by folder.

    Raises:
        DataError: it has none.
    """
    places = {name: label for label, name in enumerate(classes)}
    labels = [places.get(name, UNLABELLED) for name in found.files]
    counts = [len(files) for files in found.files.values()]
    names = Names.parse(b"".join(files.to_bytes() for files in found.files.values()))
    if not names:
        there, expected = str(found.total), f"{split}/CLASS" if split else "CLASS"
        raise DataError(
            f"{root / split}: no {kind.noun} files in class folders{there and f', left out: {there}'}; "
            f"expected {expected}/{kind.pattern}"
        )
    return Listed(root, names, np.repeat(np.array(labels, np.int64), counts))
