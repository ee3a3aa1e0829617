"""Datasets that torchvision knows, by its own download rules."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torchvision import datasets

from pipeline.data.sample import Sample, Samples, Source
from pipeline.data.sources.options import SourceOptions
from pipeline.errors import ConfigError, DataError, did_you_mean


def open_torchvision(detail: str, options: SourceOptions) -> Source:
    """Open a class of torchvision.datasets by its name, downloading it if need be."""
    factory = getattr(datasets, detail, None)
    if detail not in datasets.__all__ or factory is None:
        hint = did_you_mean(detail, datasets.__all__)
        raise ConfigError(
            f"data.source names torchvision dataset {detail!r}; expected a class of "
            f"torchvision.datasets{hint}"
        )
    try:
        parts = {name: _torchvision_split(factory, options.root, name) for name in ("train", "test")}
        labels = {name: _labels(part) for name, part in parts.items()}
    except (RuntimeError, OSError, TypeError, ValueError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"torchvision dataset {detail} in {options.root}: {reason}; expected images with one "
            "class each, found or downloaded there; put its files into data.root or use npz: or folder:"
        ) from None
    channels = 1 if np.asarray(parts["train"][0][0]).ndim == 2 else 3
    samples = {name: _samples(part, name, labels[name], channels) for name, part in parts.items()}
    names = getattr(parts["train"], "classes", None)
    classes = tuple(map(str, names if names is not None else range(1 + max(labels["train"]))))
    highest = max(map(max, labels.values()))
    if highest >= len(classes):
        raise DataError(
            f"torchvision dataset {detail}: label {highest} is out of range; expected 0 to "
            f"{len(classes) - 1}, as it has {len(classes)} classes; choose another dataset"
        )
    return Source(
        classes=classes,
        channels=channels,
        train=samples["train"],
        test=samples["test"],
        decoder=f"pillow {version('pillow')}",
    )


def _torchvision_split(factory: Any, root: Path, name: str) -> Any:
    """Open one split of a torchvision dataset: some say train=True, others split="train", test or val."""
    accepted = inspect.signature(factory).parameters
    download = {"download": True} if "download" in accepted else {}
    which: Mapping[str, Any] = {"train": name == "train"} if "train" in accepted else {"split": name}
    try:
        return factory(root=str(root), **which, **download)
    except ValueError:
        if which != {"split": "test"}:
            raise
        return factory(root=str(root), split="val", **download)


def _labels(dataset: Any) -> list[int]:
    """Return every sample's label; where the dataset lists them, without decoding an image."""
    listed = getattr(dataset, "targets", None)
    if listed is None or len(listed) != len(dataset):
        listed = (dataset[row][1] for row in range(len(dataset)))
    return [int(label) for label in listed]


def _samples(dataset: Any, split: str, labels: Sequence[int], channels: int) -> Samples:
    # A dataset that is a folder lists its files; of others there is no telling.
    files = dataset.samples if isinstance(dataset, datasets.DatasetFolder) else None

    def make(row: int) -> Sample:
        name = f"{split}/{row}"
        file = None if files is None else str(files[row][0])
        return Sample(name, labels[row], partial(_load, dataset, row, channels, name), file)

    return Samples(make, np.arange(len(labels)))


def _load(dataset: Any, row: int, channels: int, name: str) -> NDArray[np.uint8]:
    try:
        image = dataset[row][0].convert("RGB" if channels == 3 else "L")
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(
            f"torchvision dataset {type(dataset).__name__}: image {name} is not readable ({error}); "
            "expected an image; remove its file and let it be downloaded again"
        ) from None
    pixels = np.asarray(image, np.uint8)
    return pixels if pixels.ndim == 3 else pixels[..., None]
