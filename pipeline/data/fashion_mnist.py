"""The built-in dataset: a fixed subset of Fashion-MNIST that travels in the package.

The training part is the first 1,000 images of each of the ten classes in the original order, the test
part is the whole original test set. Sample names carry the original positions, so a sample has the
same key here and in the complete dataset. `python -m pipeline.data.fashion_mnist RAW OUT` rebuilds the
file from the four original idx files; `builtin/fashion_mnist_10k.md` records licence and digests.
"""

from __future__ import annotations

import gzip
import sys
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError
from pipeline.core.hashing import named_arrays_digest

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


def packaged() -> Traversable:
    """Return the file that the subset is in."""
    return files("pipeline.data") / "builtin" / "fashion_mnist_10k.npz"


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


if __name__ == "__main__":
    subset = select_subset(Path(sys.argv[1]))
    np.savez_compressed(sys.argv[2], **subset)  # type: ignore[arg-type]
    print(named_arrays_digest(subset))
