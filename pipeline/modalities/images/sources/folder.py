"""Datasets of image files in class folders; one folder may hold unlabelled images.

Two layouts. ImageNet's: PATH/train/CLASS/*, with PATH/test/CLASS/* or PATH/val/CLASS/*. Or class folders
alone, PATH/CLASS/*: a fixed fifth of each class is the test split (`samples/splits.draw_test`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError, counted, did_you_mean, printable
from pipeline.core.progress import note
from pipeline.modalities.images.decoding import DECODER, SUFFIXES, ImageFile
from pipeline.modalities.images.form import ImageSource
from pipeline.modalities.images.options import ImageOptions
from pipeline.samples.labels import normal, require_class_names
from pipeline.samples.samples import UNLABELLED, LeftOut, Names, Sample, Samples
from pipeline.samples.splits import (
    TEST,
    TEST_SHARE,
    TRAIN,
    VALIDATION,
    SplitNames,
    draw_test,
    find_splits,
)

# The files below a folder: image files, recognised by suffix, at any depth, and counts of all others.
#
# Linked folders are followed, as in torchvision's ImageFolder, unless the link leads back to a parent
# folder.


_SYSTEMS_OWN = ("thumbs.db", "desktop.ini", "__macosx")
_LONGEST_SUFFIX = 12

Identity = tuple[int, int]  # device and inode of a folder
# Both spellings of the folder for unlabelled images.
_UNLABELLED_FOLDERS = ("unlabelled", "unlabeled")


@dataclass(frozen=True, slots=True)
class Tree:
    """The files below a folder.

    Args:
        images: names of image files, relative to the root, sorted folder by folder.
        left_out: counts of all other files.
    """

    images: list[str]
    left_out: LeftOut


@dataclass(frozen=True, slots=True)
class _Visited:
    """A folder to visit: its name relative to the root, and the identities of it and its parents."""

    name: str
    above: frozenset[Identity]


def image_tree(root: Path, folder: str) -> Tree:
    """Find the image files below a folder.

    Args:
        root: root of the returned names.
        folder: the folder, relative to the root.

    Raises:
        DataError: a folder cannot be listed.
    """
    images, suffixes, hidden = [], Counter[str](), 0
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
                if is_image(entry.name):
                    images.append(name)
                else:
                    suffixes[suffix_of(entry.name)] += 1
            elif (identity := _identity(entry)) in here.above:
                linked_back += 1
            else:
                waiting.append(_Visited(name, here.above | {identity}))
    images.sort(key=lambda name: name.split("/"))
    return Tree(images, LeftOut(suffixes=suffixes, hidden=hidden, linked_back=linked_back))


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


def is_image(name: str) -> bool:
    """Whether a file counts as an image; only the suffix decides."""
    return suffix_of(name) in SUFFIXES


def suffix_of(name: str) -> str:
    """Return a file's suffix in lower case, or "no suffix" if there is none or it is too long."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix if 1 < len(suffix) <= _LONGEST_SUFFIX and suffix.isprintable() else "no suffix"


def _above(root: Path, folder: str) -> frozenset[Identity]:
    """Return the identities of a folder's parents, from the root on."""
    parts = Path(folder).parts
    return frozenset(_identity(root.joinpath(*parts[:count])) for count in range(len(parts)))


def _identity(place: Path | os.DirEntry[str]) -> Identity:
    status = place.stat()
    return status.st_dev, status.st_ino


@dataclass(frozen=True, slots=True)
class _Split:
    """The image files of a split by class folder, relative to the root, and counts of other files."""

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
    def of(cls, path: Path, name: str) -> _Folder:
        """List a folder; `name` stands for it in the counts of loose images."""
        folders, loose, suffixes, hidden = [], Counter[str](), Counter[str](), 0
        for entry in entries(path):
            if is_hidden(entry.name):
                hidden += 1
            elif entry.is_dir():
                folders.append(entry.name)
            elif is_image(entry.name):
                loose[name] += 1
            else:
                suffixes[suffix_of(entry.name)] += 1
        return cls(folders, LeftOut(loose=loose, suffixes=suffixes, hidden=hidden))


def open_folder(detail: str, options: ImageOptions) -> ImageSource:
    """Open PATH/train/CLASS/* and PATH/test/CLASS/*, and PATH/val/CLASS/* for validation.

    Without a test folder, val is the test split. Images in PATH/train/unlabelled, at any depth, have no
    label, and the folder is not a class. If all training images are unlabelled, class folders are empty.

    Without any of these folders, the folders of PATH are the classes: PATH/CLASS/*, and PATH/unlabelled.
    Then a fifth of each class is the test split, see `draw_test`.
    """
    root = Path(detail)
    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder; expected PATH/train/CLASS/* and PATH/test/CLASS/*, or PATH/CLASS/*; "
            "correct data.source"
        )
    names, left_out = _splits(root)
    if names is None:
        return _open_classes(root, options)
    held = [name for name in (names.validation, names.test) if name is not None]
    train, others = _read_split(root, TRAIN), {name: _read_split(root, name) for name in held}
    classes = _classes(root / TRAIN, train)
    for name, split in others.items():
        _require_classes(root, name, split.files, classes)
    samples = {
        name: _file_samples(root, name, classes, split, options)
        for name, split in {TRAIN: train, **others}.items()
    }
    return ImageSource(
        classes=classes,
        channels=options.channels,
        train=samples[TRAIN],
        validation=None if names.validation is None else samples[names.validation],
        test=samples[names.test],
        decoder=DECODER,
        root=root,
        left_out=sum((split.total for split in (train, *others.values())), left_out),
    )


def _open_classes(root: Path, options: ImageOptions) -> ImageSource:
    """Open PATH/CLASS/* and draw its test split; sample names are file names relative to PATH."""
    found = _read_split(root, "")
    classes = _classes(root, found)
    everything = _file_samples(root, "", classes, found, options)
    names, labels = _listed(found, classes)
    tested = draw_test(names, labels)
    note(
        f"{root}: no test folder, so {counted(int(tested.sum()), 'image')}, about {TEST_SHARE:.0%} of "
        "each class, form the test split; the choice depends only on file names, so it is always the same"
    )
    train, test = (Samples(everything.__getitem__, np.flatnonzero(part)) for part in (~tested, tested))
    return ImageSource(
        classes=classes,
        channels=options.channels,
        train=train,
        test=test,
        decoder=DECODER,
        root=root,
        left_out=found.total,
    )


def _splits(root: Path) -> tuple[SplitNames | None, LeftOut]:
    """Return the folder of each split, or None if all folders are classes, and counts of other entries."""
    found = _Folder.of(root, _name_of(root))
    folders = found.folders
    names = find_splits(root, folders)
    if names is None:
        if folders and {TRAIN, TEST, *VALIDATION}.isdisjoint(folders):
            return None, LeftOut()
        advice = (
            f", or use {root / TRAIN} as the source, to draw a test split from it"
            if TRAIN in folders
            else ""
        )
        loose = found.left_out.loose.total()
        images = f" and {counted(loose, 'image')} outside of them" if loose else ""
        if folders:
            holds = f"has the folders {sorted(folders)[:5]}{images}"
        else:
            holds = f"has {counted(loose, 'image')} and no class folders"
        raise DataError(
            f"{root}: {holds}; expected train/CLASS/* and "
            "test/CLASS/* (or val/CLASS/*), or class folders alone; move the classes into train/ and some "
            f"images of each into test/{advice}"
        )
    unused = sorted(f"{name}/" for name in folders if name not in (TRAIN, names.test, names.validation))
    # Other files beside the splits, e.g. a README, are not missed images.
    beside = replace(found.left_out, suffixes=Counter())
    return names, beside + LeftOut(unused=tuple(map(printable, unused)))


def _read_split(root: Path, split: str) -> _Split:
    """Find each class's image files, sorted by class and name. The split "" is the root itself."""
    found = _Folder.of(root / split, f"{split}/" if split else _name_of(root))
    trees = {
        folder: image_tree(root, f"{split}/{folder}" if split else folder)
        for folder in sorted(found.folders)
    }
    return _Split(
        {folder: Names.of(tree.images) for folder, tree in trees.items()},
        {folder: tree.left_out for folder, tree in trees.items()},
        found.left_out,
    )


def _name_of(root: Path) -> str:
    return f"{root.name or root}/"


def _classes(where: Path, train: _Split) -> tuple[str, ...]:
    """Return the class names in a folder.

    Raises:
        DataError: two class names collide, or only some classes have images.
    """
    classes = tuple(name for name in train.files if name not in _UNLABELLED_FOLDERS)
    require_class_names(where, classes)
    _require_images(where, train, classes)
    return classes


def _require_images(where: Path, train: _Split, classes: Sequence[str]) -> None:
    """Refuse a class without images, unless all training images are unlabelled."""
    empty = next((name for name in classes if not len(train.files[name])), None)
    if empty is not None and any(len(train.files[name]) for name in classes):
        there = str(train.left_out[empty])
        raise DataError(
            f"{where / empty}: a class folder without images{there and f', left out: {there}'}; add "
            "images, or remove the folder"
        )


def _require_classes(root: Path, split: str, names: Mapping[str, Names], classes: Sequence[str]) -> None:
    """Refuse held-out images of a class that the training images lack."""
    alike = {normal(name): name for name in classes}
    for name in names:
        if name in _UNLABELLED_FOLDERS:
            raise DataError(
                f"{root / split / name}: unlabelled images cannot be used for testing; expected class "
                f"folders; move it to {root / TRAIN}, or remove it"
            )
        if name in classes:
            continue
        if normal(name) in alike:
            raise DataError(
                f"{root / split}: folder {name!a} and {alike[normal(name)]!a} of {root / TRAIN} differ "
                "only in Unicode normalisation; expected the same name; rename one"
            )
        raise DataError(
            f"{root / split / printable(name)}: this class is not in {root / TRAIN} ({len(classes)} "
            f"classes); expected the same class folders; rename or remove it{did_you_mean(name, classes)}"
        )


def _file_samples(
    root: Path, split: str, classes: Sequence[str], found: _Split, options: ImageOptions
) -> Samples:
    names, labels = _listed(found, classes)
    if not names:
        there, expected = str(found.total), f"{split}/CLASS" if split else "CLASS"
        raise DataError(
            f"{root / split}: no image files in class folders{there and f', left out: {there}'}; expected "
            f"{expected}/*{{{','.join(SUFFIXES)}}}"
        )

    def make(row: int) -> Sample:
        path = root / names[row]
        load = ImageFile(path, options.channels, options.max_pixels)
        return Sample(names[row], int(labels[row]), load, str(path))

    return Samples(make, np.arange(len(names)))


def _listed(found: _Split, classes: Sequence[str]) -> tuple[Names, NDArray[np.int64]]:
    """Return the names and labels (N,) of a split's files, folder by folder."""
    places = {name: label for label, name in enumerate(classes)}
    labels = [places.get(name, UNLABELLED) for name in found.files]
    counts = [len(files) for files in found.files.values()]
    names = Names.parse(b"".join(files.to_bytes() for files in found.files.values()))
    return names, np.repeat(np.array(labels, np.int64), counts)
