"""Datasets that are class folders of image files, ImageNet's layout; one folder may be of no class."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.data.decoding import DECODER, SUFFIXES, load_image
from pipeline.data.names import Names
from pipeline.data.sample import UNLABELLED, Sample, Samples, Source
from pipeline.data.sources.options import SourceOptions
from pipeline.errors import DataError

# What is in it has no label; both ways to spell it.
_UNLABELLED_FOLDERS = ("unlabelled", "unlabeled")


def open_folder(detail: str, options: SourceOptions) -> Source:
    """Open PATH/train/CLASS/* and PATH/test/CLASS/* (or val); hidden entries are passed over.

    Images in PATH/train/unlabelled, at any depth, have no label, and the folder is no class. Where all
    training images are there, class folders are empty.
    """
    root = Path(detail)
    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder; expected PATH/train/CLASS/* and PATH/test/CLASS/*; correct "
            "data.source"
        )
    held_out = next((name for name in ("test", "val") if (root / name).is_dir()), None)
    if not (root / "train").is_dir() or held_out is None:
        found = sorted(entry.name for entry in root.iterdir() if entry.is_dir())[:5]
        raise DataError(
            f"{root}: has the folders {found}; expected train/CLASS/* and test/CLASS/* (or "
            "val/CLASS/*); move the classes into train/ and some images of each into test/"
        )
    train = _names_by_class(root, "train")
    classes, test = tuple(n for n in train if n not in _UNLABELLED_FOLDERS), _names_by_class(root, held_out)
    empty = next((name for name in classes if not len(train[name])), None)
    if empty is not None and any(len(train[name]) for name in classes):
        raise DataError(
            f"{root / 'train' / empty}: a class without images; expected at least one; add some, or remove "
            "the folder"
        )
    _require_classes(root, held_out, test, classes)
    return Source(
        classes=classes,
        channels=options.channels,
        train=_file_samples(root, "train", classes, train, options.channels),
        test=_file_samples(root, held_out, classes, test, options.channels),
        decoder=DECODER,
        root=root,
    )


def _names_by_class(root: Path, split: str) -> dict[str, Names]:
    """Return the names of each class's image files, relative to the root; classes and files are sorted."""
    folders = sorted(entry.name for entry in (root / split).iterdir() if entry.is_dir())
    return {
        folder: Names.of(sorted(image_files(root, f"{split}/{folder}"), key=lambda name: name.split("/")))
        for folder in folders
        if not folder.startswith(".")
    }


def image_files(root: Path, folder: str) -> list[str]:
    """Return the image files at any depth below a folder, as names relative to the root."""
    found = []
    for parent, folders, files in os.walk(root / folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = os.path.relpath(parent, root)
        found += [f"{below}/{name}" for name in files if _is_image(name)]
    return found


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def _require_classes(root: Path, split: str, names: Iterable[str], classes: Sequence[str]) -> None:
    """Refuse test images that no class of the training images is for."""
    for name in names:
        if name in _UNLABELLED_FOLDERS:
            raise DataError(
                f"{root / split / name}: unlabelled images cannot be tested on; expected class folders; "
                f"move it to {root / 'train'}, or remove it"
            )
        if name not in classes:
            raise DataError(
                f"{root / split / name}: a class that {root / 'train'} does not have ({len(classes)} "
                "classes); expected the same class folders; rename or remove it"
            )


def _file_samples(
    root: Path, split: str, classes: Sequence[str], found: Mapping[str, Names], channels: int
) -> Samples:
    names = Names.parse(b"".join(files.to_bytes() for files in found.values()))
    if not names:
        raise DataError(
            f"{root / split}: no image files in class folders; expected "
            f"{split}/CLASS/*{{{','.join(SUFFIXES)}}}"
        )
    places = {name: label for label, name in enumerate(classes)}
    labels = np.repeat(
        [places.get(name, UNLABELLED) for name in found], [len(files) for files in found.values()]
    )

    def make(row: int) -> Sample:
        path = root / names[row]
        return Sample(names[row], int(labels[row]), partial(load_image, path, channels), str(path))

    return Samples(make, np.arange(len(names)))
