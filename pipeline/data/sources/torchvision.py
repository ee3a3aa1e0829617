"""Datasets that torchvision knows, by its own download rules."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torchvision import datasets

from pipeline.data.sample import Sample, Source
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
        parts = [_torchvision_split(factory, options.root, name) for name in ("train", "test")]
    except (RuntimeError, OSError, TypeError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"torchvision dataset {detail} in {options.root}: {reason}; expected to find or download "
            "it there; put its files into data.root or use npz: or folder:"
        ) from None
    first = np.asarray(parts[0][0][0])
    channels = 1 if first.ndim == 2 else 3
    train, test = (
        [
            Sample(f"{name}/{row}", int(part[row][1]), _indexed(part, row, channels))
            for row in range(len(part))
        ]
        for name, part in zip(("train", "test"), parts, strict=True)
    )
    names = getattr(parts[0], "classes", None)
    count = 1 + max(sample.label for sample in train)
    classes = tuple(map(str, names if names is not None else range(count)))
    return Source(classes=classes, channels=channels, train=train, test=test)


def _torchvision_split(factory: Any, root: Path, name: str) -> Any:
    """Open one split of a torchvision dataset: some say train=True, others split="train"."""
    accepted = inspect.signature(factory).parameters
    which: Mapping[str, Any] = {"train": name == "train"} if "train" in accepted else {"split": name}
    download = {"download": True} if "download" in accepted else {}
    return factory(root=str(root), **which, **download)


def _indexed(dataset: Any, row: int, channels: int) -> Callable[[], NDArray[np.uint8]]:
    def load() -> NDArray[np.uint8]:
        image = dataset[row][0].convert("RGB" if channels == 3 else "L")
        pixels = np.asarray(image, np.uint8)
        return pixels if pixels.ndim == 3 else pixels[..., None]

    return load
