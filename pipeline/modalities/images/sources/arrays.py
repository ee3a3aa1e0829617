"""Datasets stored as arrays: the built-in one, and the user's .npz files."""

from __future__ import annotations

import gzip
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import ConfigError, DataError
from pipeline.core.hashing import named_arrays_digest
from pipeline.modalities.images.form import ImageSource
from pipeline.modalities.images.options import ImageOptions
from pipeline.samples.npz import Parts, read_npz, require_labels
from pipeline.samples.samples import Sample, Samples

# The built-in dataset: a fixed subset of Fashion-MNIST, shipped in the package.
#
# The training part is the first 1,000 images of each of the ten classes in the original order. The test
# part is the whole original test set. Sample names carry the original positions, so a sample has the same
# key here and in the complete dataset. `python -m tests.benchmarks.built_in_data RAW OUT` rebuilds the
# file from the four original idx files; `fashion_mnist_10k.md` records licence and digests.


CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
DIGEST = "08a041590f711aba557d16d2b00c2a0e441a6ec7878ffa35757b1f47aa18e1ee"
_PER_CLASS = 1000
_NPZ = Parts("images")


def packaged() -> Traversable:
    """Return the file of the subset."""
    return files("pipeline.modalities.images") / "builtin" / "fashion_mnist_10k.npz"


def load_subset() -> dict[str, NDArray[Any]]:
    """Return the packaged arrays, checked against their digest.

    Returns:
        train_images (10000, 28, 28) uint8, train_labels (10000,) uint8, train_positions (10000,)
        uint16 in the original training set, test_images (10000, 28, 28), test_labels (10000,).

    """
    path = packaged()
    with path.open("rb") as file, np.load(file) as archive:
        arrays = dict(archive)
    found = named_arrays_digest(arrays)
    if found != DIGEST:
        raise DataError(f"{path}: digest {found[:12]}, expected {DIGEST[:12]}; reinstall the package")
    return arrays


def select_subset(raw: Path) -> dict[str, NDArray[Any]]:
    """Select the built-in subset from a folder with the four original idx files (.gz or not)."""
    images, labels = (
        _read_idx(raw, "train-images-idx3-ubyte"),
        _read_idx(raw, "train-labels-idx1-ubyte"),
    )
    first = [np.flatnonzero(labels == label)[:_PER_CLASS] for label in range(len(CLASSES))]
    positions = np.sort(np.concatenate(first))
    return {
        "train_images": images[positions],
        "train_labels": labels[positions],
        "train_positions": positions.astype(np.uint16),
        "test_images": _read_idx(raw, "t10k-images-idx3-ubyte"),
        "test_labels": _read_idx(raw, "t10k-labels-idx1-ubyte"),
    }


def _read_idx(raw: Path, name: str) -> NDArray[np.uint8]:
    """Read one idx file: two zero bytes, type 8, rank, big-endian sizes, then the bytes."""
    packed = raw / f"{name}.gz"
    content = gzip.decompress(packed.read_bytes()) if packed.exists() else (raw / name).read_bytes()
    rank = content[3]
    shape = np.frombuffer(content, ">u4", rank, 4).astype(int)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def open_builtin(detail: str, options: ImageOptions) -> ImageSource:
    """Open the built-in subset of Fashion-MNIST."""
    if detail:
        raise ConfigError(f"data.source is 'fashion-mnist-10k:{detail}'; expected nothing after the name")
    arrays, file = load_subset(), str(packaged())
    train = _array_samples(
        arrays["train_images"], arrays["train_labels"], "train", file, arrays["train_positions"]
    )
    test = _array_samples(arrays["test_images"], arrays["test_labels"], "test", file)
    return ImageSource(classes=CLASSES, channels=1, train=train, test=test, forks=True)


def open_npz(detail: str, options: ImageOptions) -> ImageSource:
    """Open an .npz file with {train,test}_{images,labels}; val_... and classes are optional."""
    path = Path(detail)
    found = read_npz(path, _NPZ)
    splits, images = found.splits, found.samples
    for split in splits:
        _check_arrays(path, split, images[split], found.labels[split])
        if _channels(images[split]) != _channels(images["train"]):
            raise DataError(
                f"{path}: train_images {images['train'].shape} and {split}_images {images[split].shape} "
                "differ in channels; expected the same"
            )
    classes, labels = found.named_classes("image")
    validation = found.validation
    samples = {s: _array_samples(images[s], labels[s], s, str(path)) for s in splits}
    return ImageSource(
        classes=classes,
        channels=_channels(images["train"]),
        train=samples["train"],
        validation=None if validation is None else samples[validation],
        test=samples["test"],
        left_out=found.left_out,
        forks=True,
    )


def _check_arrays(path: Path, split: str, images: NDArray[Any], labels: NDArray[Any]) -> None:
    ahead = images.ndim == 4 and images.shape[1] in (1, 3)
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or _channels(images) not in (1, 3):
        raise DataError(
            f"{path}: {split}_images is {images.dtype} {images.shape}; expected uint8 (N, H, W, C) "
            f"with C 1 or 3; convert it{', e.g. with np.moveaxis(images, 1, 3)' if ahead else ''}"
        )
    require_labels(path, split, labels, len(images), "image")
    if not images.size:
        raise DataError(f"{path}: {split}_images is empty {images.shape}; expected images")


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
        label = labels[row] if labels.ndim > 1 else int(labels[row])
        return Sample(f"{split}/{name}", label, lambda: images[row], file)

    return Samples(make, np.arange(len(images)))
