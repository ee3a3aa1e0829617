"""Datasets from torchvision, downloaded by torchvision.

If a dataset lists image files, they are read like the files of a folder: oriented, bounded, and reported
when damaged. Other datasets return pixels themselves.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torchvision import datasets

from pipeline.core.errors import ConfigError, DataError, brief, did_you_mean
from pipeline.modalities.images.decoding import DECODER, ImageFile
from pipeline.modalities.images.form import ImageSource
from pipeline.modalities.images.formats import image_pixels, orientation_of, upright
from pipeline.modalities.images.options import ImageOptions
from pipeline.samples.labels import require_class_names, require_known_labels
from pipeline.samples.samples import LeftOut, Sample, Samples

# The datasets' names of each split, best first.
_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "trainval"),
    "validation": ("val", "valid"),
    "test": ("test", "val"),
}
# Splits used neither for training nor for tests.
_FURTHER: Mapping[str, str] = {
    "STL10": "the split unlabeled",
    "SVHN": "the split extra",
    "QMNIST": "the splits test10k, test50k and nist",
}
# The datasets' attributes that list files, alone or with a label each, and labels.
_FILES = "samples", "_samples", "_image_files", "_images"
_LABELS = "targets", "labels", "_labels"


@dataclass(frozen=True, slots=True)
class _Part:
    """A split, opened by torchvision.

    Args:
        name: prefix of the names of its samples.
        opened: torchvision's name of the split.
        dataset: torchvision's dataset.
        labels: (N,).
        files: paths of image files (N); None if samples are not files or the dataset does not list them.
    """

    name: str
    opened: str
    dataset: Any
    labels: NDArray[np.int64]
    files: tuple[str, ...] | None

    @classmethod
    def of(cls, name: str, opened: str, dataset: Any) -> _Part:
        """Return a split with the labels and files listed by its dataset."""
        if not len(dataset):
            raise RuntimeError("no images")
        return cls(name, opened, dataset, _labels(dataset), _files(dataset))


def open_torchvision(detail: str, options: ImageOptions) -> ImageSource:
    """Open a class of torchvision.datasets by its name, downloading it if needed.

    The dataset's validation split, if it has one, becomes the validation split.
    """
    factory = _factory(detail)
    root = Path(options.root)
    train, test = (_part(factory, root, role) for role in ("train", "test"))
    validation, unused = _validation(factory, root, taken=test.opened)
    parts = {part.name: part for part in (train, validation, test) if part is not None}
    further = (_FURTHER[detail],) if detail in _FURTHER else ()
    where = f"torchvision dataset {detail}"
    try:
        channels = 3 if train.files or np.asarray(train.dataset[0][0]).ndim == 3 else 1
    # A dataset's code may raise anything on unexpected files.
    except Exception as error:
        raise _unusable(factory, root, error) from None
    names = getattr(train.dataset, "classes", None)
    classes = tuple(map(str, names if names is not None else range(1 + int(train.labels.max()))))
    require_class_names(where, classes)
    require_known_labels(where, classes, {name: part.labels for name, part in parts.items()})
    samples = {name: _samples(part, channels, options) for name, part in parts.items()}
    return ImageSource(
        classes=classes,
        channels=channels,
        train=samples[train.name],
        validation=None if validation is None else samples[validation.name],
        test=samples[test.name],
        decoder=DECODER if all(part.files for part in parts.values()) else f"pillow {version('pillow')}",
        left_out=LeftOut(unused=unused + further),
    )


def _factory(name: str) -> Any:
    factory = getattr(datasets, name, None)
    if name in datasets.__all__ and factory is not None:
        return factory
    raise ConfigError(
        f"data.source names torchvision dataset {name[:80]!r}; expected a class of "
        f"torchvision.datasets{did_you_mean(name, datasets.__all__)}"
    )


def _part(factory: Any, root: Path, role: str) -> _Part:
    """Open a split and its labels by the first matching name.

    Raises:
        DataError: the dataset has no such split, its files are missing or unusable, or a sample has
            several labels.
    """
    accepted = inspect.signature(factory).parameters
    if not {"train", "split"} & set(accepted):
        raise _without_splits(factory, f"its constructor takes {', '.join(accepted) or 'nothing'}")
    reason: Exception | None = None
    for name in _NAMES[role]:
        try:
            dataset = _opened(factory, root, role, name)
            return _Part.of(role, name, dataset)
        except ValueError as error:
            reason = reason or error
        except Exception as error:
            raise _unusable(factory, root, error) from None
        if "train" in accepted:
            break
    raise _without_splits(factory, _first_line(reason))


def _opened(factory: Any, root: Path, role: str, name: str) -> Any:
    """Open one split; some datasets take train=True, others split="train"."""
    accepted = inspect.signature(factory).parameters
    download = {"download": True} if "download" in accepted else {}
    which: Mapping[str, Any] = {"train": role == "train"} if "train" in accepted else {"split": name}
    return factory(root=str(root), **which, **download)


def _validation(factory: Any, root: Path, *, taken: str) -> tuple[_Part | None, tuple[str, ...]]:
    """Open the validation split unless it serves as the test split; return notes if it is unused."""
    if "split" not in inspect.signature(factory).parameters:
        return None, ()
    for name in _NAMES["validation"]:
        if name == taken:
            break
        try:
            dataset = _opened(factory, root, "validation", name)
            return _Part.of(name, name, dataset), ()
        except ValueError:
            continue
        except Exception as error:
            return None, (f"the split {name} ({_first_line(error)})",)
    return None, ()


def _without_splits(factory: Any, reason: str) -> DataError:
    return DataError(
        f"torchvision dataset {factory.__name__}: no train and test split with one class per image "
        f"({reason}); choose a different dataset, or export its images and use npz: or folder:"
    )


def _unusable(factory: Any, root: Path, error: Exception) -> DataError:
    return DataError(
        f"torchvision dataset {factory.__name__} in {root}: {_first_line(error)}; expected images with "
        "one class each, found or downloaded there; put the files into data.root, or use npz: or folder:"
    )


def _first_line(error: Exception | None) -> str:
    text = brief(error)
    return text if text and not isinstance(error, KeyError) else f"{type(error).__name__} {text}".strip()


def _labels(dataset: Any) -> NDArray[np.int64]:
    """Return every sample's label; images are decoded only if the dataset has no list of labels."""
    for name in (*_LABELS, *_FILES):
        listed = _list(dataset, name)
        if name in _FILES:
            listed = [entry[1] if isinstance(entry, tuple) else None for entry in listed]
        labels = np.asarray(listed)
        if labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer):
            return labels.astype(np.int64)
    return np.array([int(dataset[row][1]) for row in range(len(dataset))], np.int64)


def _files(dataset: Any) -> tuple[str, ...] | None:
    """Return the image file of every sample, or None if the dataset lists no files."""
    for name in _FILES:
        files = [entry[0] if isinstance(entry, tuple) else entry for entry in _list(dataset, name)]
        if files and all(isinstance(file, str | PathLike) for file in files):
            return tuple(map(str, files))
    return None


def _list(dataset: Any, name: str) -> Sequence[Any]:
    """Return a dataset's attribute if it has one entry per sample, else an empty sequence."""
    listed = getattr(dataset, name, ())
    return listed if hasattr(listed, "__len__") and len(listed) == len(dataset) else ()


def _samples(part: _Part, channels: int, options: ImageOptions) -> Samples:
    labels, files = part.labels, part.files

    def make(row: int) -> Sample:
        name, label = f"{part.name}/{row}", int(labels[row])
        if files is None:
            load = partial(_load, part.dataset, row, channels, name, options.max_pixels)
            return Sample(name, label, load)
        return Sample(name, label, ImageFile(Path(files[row]), channels, options.max_pixels), files[row])

    return Samples(make, np.arange(len(labels)))


def _load(dataset: Any, row: int, channels: int, name: str, max_pixels: int) -> NDArray[np.uint8]:
    """Return the pixels of an image decoded by the dataset, oriented according to EXIF."""
    where = f"torchvision dataset {type(dataset).__name__}: image {name}"
    try:
        image = dataset[row][0]
        pixels = upright(image_pixels(image, channels), orientation_of(image.info.get("exif", b"")))
    # Pillow and the dataset's code raise errors of any type on damaged files.
    except Exception as error:
        raise DataError(
            f"{where} cannot be read ({_first_line(error)}); expected an image; remove its file, so that "
            "it is downloaded again"
        ) from None
    height, width, _ = pixels.shape
    if height * width > max_pixels:
        raise DataError(
            f"{where} has {width:,}x{height:,} pixels; expected at most {max_pixels:,} in total; raise "
            "data.max_pixels"
        )
    return pixels
