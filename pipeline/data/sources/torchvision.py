"""Datasets that torchvision knows, by its own download rules."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torchvision import datasets

from pipeline.data.class_names import require_class_names
from pipeline.data.left_out import LeftOut
from pipeline.data.orientation import orientation_of, upright
from pipeline.data.pillow_formats import image_pixels
from pipeline.data.sample import Sample, Samples, Source
from pipeline.data.sources.labels import require_known_labels
from pipeline.data.sources.options import SourceOptions
from pipeline.errors import ConfigError, DataError, did_you_mean

# What datasets call a split that is trained on, validated on and tested on, best first.
_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "trainval"),
    "validation": ("val", "valid"),
    "test": ("test", "val"),
}


@dataclass(frozen=True, slots=True)
class _Part:
    """A split as torchvision opened it.

    Args:
        name: begins the names of its samples.
        opened: what torchvision calls it.
        dataset: torchvision's.
        labels: (N,).
    """

    name: str
    opened: str
    dataset: Any
    labels: NDArray[np.int64]


def open_torchvision(detail: str, options: SourceOptions) -> Source:
    """Open a class of torchvision.datasets by its name, downloading it if need be.

    A validation split of its own is used as one.
    """
    factory = _factory(detail)
    train, test = (_part(factory, options.root, role) for role in ("train", "test"))
    validation, unused = _validation(factory, options.root, taken=test.opened)
    parts = {part.name: part for part in (train, validation, test) if part is not None}
    where = f"torchvision dataset {detail}"
    try:
        channels = 1 if np.asarray(train.dataset[0][0]).ndim == 2 else 3
    # Code of a dataset may raise anything on files that are not as it expects.
    except Exception as error:
        raise _unusable(factory, options.root, error) from None
    names = getattr(train.dataset, "classes", None)
    classes = tuple(map(str, names if names is not None else range(1 + int(train.labels.max()))))
    require_class_names(where, classes)
    require_known_labels(where, classes, {name: part.labels for name, part in parts.items()})
    samples = {name: _samples(part, channels) for name, part in parts.items()}
    return Source(
        classes=classes,
        channels=channels,
        train=samples[train.name],
        validation=None if validation is None else samples[validation.name],
        test=samples[test.name],
        decoder=f"pillow {version('pillow')}",
        left_out=LeftOut(unused=unused),
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
    """Open a split and its labels by the first of its names that the dataset knows.

    Raises:
        DataError: the dataset has no such split, its files are missing or unusable, or a sample has several
            labels.
    """
    accepted = inspect.signature(factory).parameters
    if not {"train", "split"} & set(accepted):
        raise _without_splits(factory, f"its constructor takes {', '.join(accepted) or 'nothing'}")
    reason: Exception | None = None
    for name in _NAMES[role]:
        try:
            dataset = _opened(factory, root, role, name)
            return _Part(role, name, dataset, _labels(dataset))
        except ValueError as error:
            reason = reason or error
        except Exception as error:
            raise _unusable(factory, root, error) from None
        if "train" in accepted:
            break
    raise _without_splits(factory, _first_line(reason))


def _opened(factory: Any, root: Path, role: str, name: str) -> Any:
    """Open one split of a torchvision dataset: some say train=True, others split="train"."""
    accepted = inspect.signature(factory).parameters
    download = {"download": True} if "download" in accepted else {}
    which: Mapping[str, Any] = {"train": role == "train"} if "train" in accepted else {"split": name}
    return factory(root=str(root), **which, **download)


def _validation(factory: Any, root: Path, *, taken: str) -> tuple[_Part | None, tuple[str, ...]]:
    """Open the validation split, if there is one that is not tested on; else say why it is not used."""
    if "split" not in inspect.signature(factory).parameters:
        return None, ()
    for name in _NAMES["validation"]:
        if name == taken:
            break
        try:
            dataset = _opened(factory, root, "validation", name)
            return _Part(name, name, dataset, _labels(dataset)), ()
        except ValueError:
            continue
        except Exception as error:
            return None, (f"the split {name} ({_first_line(error)})",)
    return None, ()


def _without_splits(factory: Any, reason: str) -> DataError:
    return DataError(
        f"torchvision dataset {factory.__name__}: no train and test split with one class an image "
        f"({reason}); choose another dataset, or export its images and use npz: or folder:"
    )


def _unusable(factory: Any, root: Path, error: Exception) -> DataError:
    return DataError(
        f"torchvision dataset {factory.__name__} in {root}: {_first_line(error)}; expected images with one "
        "class each, found or downloaded there; put its files into data.root or use npz: or folder:"
    )


def _first_line(error: Exception | None) -> str:
    text = next(iter(str(error).splitlines()), "")[:200]
    return text if text and not isinstance(error, KeyError) else f"{type(error).__name__} {text}".strip()


def _labels(dataset: Any) -> NDArray[np.int64]:
    """Return every sample's label; where the dataset lists them, without decoding an image."""
    listed = getattr(dataset, "targets", None)
    if listed is None or len(listed) != len(dataset):
        listed = [dataset[row][1] for row in range(len(dataset))]
    labels = np.array([int(label) for label in listed], np.int64)
    if not len(labels):
        raise RuntimeError("no images")
    return labels


def _samples(part: _Part, channels: int) -> Samples:
    dataset, labels = part.dataset, part.labels
    # A dataset that is a folder lists its files; of others there is no telling.
    files: Sequence[Any] | None = dataset.samples if isinstance(dataset, datasets.DatasetFolder) else None

    def make(row: int) -> Sample:
        name = f"{part.name}/{row}"
        file = None if files is None else str(files[row][0])
        return Sample(name, int(labels[row]), partial(_load, dataset, row, channels, name), file)

    return Samples(make, np.arange(len(labels)))


def _load(dataset: Any, row: int, channels: int, name: str) -> NDArray[np.uint8]:
    """Return the pixels of an image, turned as its EXIF says."""
    try:
        image = dataset[row][0]
        pixels = image_pixels(image, channels)
        return upright(pixels, orientation_of(image.info.get("exif", b"")))
    # Pillow and the dataset's code raise errors of any kind on damaged files.
    except Exception as error:
        raise DataError(
            f"torchvision dataset {type(dataset).__name__}: image {name} is not readable "
            f"({_first_line(error)}); expected an image; remove its file and let it be downloaded again"
        ) from None
