"""Datasets that are arrays: the built-in one, and a user's .npz."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data import fashion_mnist
from pipeline.data.sample import UNLABELLED, Sample, Samples, Source
from pipeline.data.sources.options import SourceOptions
from pipeline.errors import ConfigError, DataError

_NPZ_KEYS = ("train_images", "train_labels", "test_images", "test_labels")


def open_builtin(detail: str, options: SourceOptions) -> Source:
    """Open the built-in subset of Fashion-MNIST."""
    if detail:
        raise ConfigError(f"data.source is 'fashion-mnist-10k:{detail}'; expected no text after it")
    arrays, file = fashion_mnist.load_subset(), str(fashion_mnist.packaged())
    train = _array_samples(
        arrays["train_images"], arrays["train_labels"], "train", file, arrays["train_positions"]
    )
    test = _array_samples(arrays["test_images"], arrays["test_labels"], "test", file)
    return Source(classes=fashion_mnist.CLASSES, channels=1, train=train, test=test)


def open_npz(detail: str, options: SourceOptions) -> Source:
    """Open the arrays of an .npz file: {train,test}_{images,labels} and, if there is one, classes."""
    path = Path(detail)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            missing = [key for key in _NPZ_KEYS if key not in archive]
            if missing:
                raise DataError(
                    f"{path}: has the arrays {sorted(archive)}; expected {', '.join(_NPZ_KEYS)}; "
                    f"add {', '.join(missing)}"
                )
            arrays = {key: archive[key] for key in _NPZ_KEYS}
            names = archive.get("classes", None)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected an .npz; correct data.source") from None
    except (OSError, EOFError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: not a readable .npz ({error}); write it again") from None
    for split in ("train", "test"):
        _check_arrays(path, split, arrays[f"{split}_images"], arrays[f"{split}_labels"])
    train_images, test_images = arrays["train_images"], arrays["test_images"]
    if _channels(train_images) != _channels(test_images):
        raise DataError(
            f"{path}: train_images {train_images.shape} and test_images {test_images.shape} differ in "
            "channels; expected the same"
        )
    top = 1 + max(int(arrays["train_labels"].max()), int(arrays["test_labels"].max()))
    occurring = len(np.unique(arrays["train_labels"]))
    if names is None and top > 2 * occurring:
        raise DataError(
            f"{path}: label {top - 1} is out of range; expected labels from 0 without large gaps, and only "
            f"{occurring} different ones occur in train_labels; correct them, or name the classes in "
            "'classes'"
        )
    classes = tuple(map(str, range(top))) if names is None else tuple(map(str, names))
    if top > len(classes):
        raise DataError(
            f"{path}: label {top - 1} is out of range; expected -1 to {len(classes) - 1}, since "
            f"'classes' has {len(classes)} names; correct the labels or the names"
        )
    return Source(
        classes=classes,
        channels=_channels(train_images),
        train=_array_samples(train_images, arrays["train_labels"], "train", str(path)),
        test=_array_samples(test_images, arrays["test_labels"], "test", str(path)),
    )


def _check_arrays(path: Path, split: str, images: NDArray[Any], labels: NDArray[Any]) -> None:
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or _channels(images) not in (1, 3):
        raise DataError(
            f"{path}: {split}_images is {images.dtype} {images.shape}; expected uint8 (N, H, W, C) "
            "with C 1 or 3; convert it"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
        raise DataError(
            f"{path}: {split}_labels is {labels.dtype} {labels.shape}; expected integers "
            f"({len(images)},), one an image; convert it"
        )
    if not images.size:
        raise DataError(f"{path}: {split}_images is empty {images.shape}; expected images")
    lowest = int(labels.min())
    if lowest < UNLABELLED:
        row = int(np.argmin(labels))
        raise DataError(
            f"{path}: {split}_labels[{row}] is {lowest}; expected 0 or more, or -1 for unlabelled"
        )


def _channels(images: NDArray[Any]) -> int:
    return int(images.shape[3]) if images.ndim == 4 else 1


def _array_samples(
    images: NDArray[np.uint8],
    labels: NDArray[Any],
    split: str,
    file: str,
    positions: NDArray[Any] | None = None,
) -> Samples:
    images = images if images.ndim == 4 else images[..., None]

    def make(row: int) -> Sample:
        name = row if positions is None else int(positions[row])
        return Sample(f"{split}/{name}", int(labels[row]), lambda: images[row], file)

    return Samples(make, np.arange(len(images)))
