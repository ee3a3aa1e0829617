"""Datasets stored as arrays: the built-in one, and the user's .npz files."""

from __future__ import annotations

import gzip
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from pipeline.core.errors import ConfigError, DataError, bounded, brief
from pipeline.core.hashing import named_arrays_digest
from pipeline.modalities.images.form import ImageSource
from pipeline.modalities.images.options import ImageOptions
from pipeline.samples.labels import numbered_classes, require_class_names, require_known_labels
from pipeline.samples.samples import UNLABELLED, LeftOut, Sample, Samples
from pipeline.samples.splits import VALIDATION

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
_PARTS = ("images", "labels")
_REQUIRED = tuple(f"{split}_{part}" for split in ("train", "test") for part in _PARTS)
_CLASSES = "classes"
# Errors of numpy, zipfile and zlib for damaged, encrypted and absurd files.
_DAMAGE = (
    *(OSError, EOFError, TypeError, ValueError, KeyError, IndexError, RuntimeError, MemoryError),
    *(OverflowError, SyntaxError, struct.error, zipfile.BadZipFile, zlib.error),
)
Arrays = Mapping[str, NDArray[Any]]


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
    return ImageSource(classes=CLASSES, channels=1, train=train, test=test)


def open_npz(detail: str, options: ImageOptions) -> ImageSource:
    """Open an .npz file with {train,test}_{images,labels}; val_... and classes are optional."""
    path = Path(detail)
    arrays, unused = _read_npz(path)
    splits = list(dict.fromkeys(name.rpartition("_")[0] for name in arrays if name != _CLASSES))
    images = {split: arrays[f"{split}_images"] for split in splits}
    labels: Arrays = {split: _labels(arrays[f"{split}_labels"]) for split in splits}
    for split in splits:
        _check_arrays(path, split, images[split], labels[split])
        if _channels(images[split]) != _channels(images["train"]):
            raise DataError(
                f"{path}: train_images {images['train'].shape} and {split}_images {images[split].shape} "
                "differ in channels; expected the same"
            )
    validation = next((name for name in VALIDATION if name in splits), None)
    _require_labelled(path, validation, labels)
    if _CLASSES in arrays:
        classes = _class_names(path, arrays[_CLASSES])
    else:
        classes, labels = numbered_classes(path, labels)
    require_known_labels(path, classes, labels)
    samples = {s: _array_samples(images[s], labels[s], s, str(path)) for s in splits}
    return ImageSource(
        classes=classes,
        channels=_channels(images["train"]),
        train=samples["train"],
        validation=None if validation is None else samples[validation],
        test=samples["test"],
        left_out=LeftOut(unused=tuple(bounded(name, 80) for name in unused)),
    )


def _read_npz(path: Path) -> tuple[Arrays, list[str]]:
    """Return the arrays that are used, and the names of the others."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected an .npz file; correct data.source")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if not isinstance(archive, NpzFile):
                raise ValueError("it contains no named arrays")
            wanted = _wanted(path, archive.files)
            arrays = {name: _array(path, archive, name) for name in wanted}
            return arrays, sorted(set(archive.files) - set(wanted))
    except DataError:
        raise
    except _DAMAGE as error:
        raise DataError(f"{path}: not a readable .npz file ({_reason(error)}); write it again") from None


def _array(path: Path, archive: NpzFile, name: str) -> NDArray[Any]:
    try:
        array: NDArray[Any] = archive[name]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise DataError(
            f"{path}: {name} contains Python objects; expected numbers, or strings for classes; convert "
            "it, e.g. with .astype(np.int64) or .astype(str)"
        ) from None
    return array


def _reason(error: BaseException) -> str:
    text = brief(error) or type(error).__name__
    if "context manager" in text:  # np.load returned an array instead of an archive
        return "a single array, as in an .npy file; expected several named arrays"
    return text


def _wanted(path: Path, names: Iterable[str]) -> list[str]:
    """Return the names of an archive's arrays that are used."""
    names = list(names)
    missing = [key for key in _REQUIRED if key not in names]
    if missing:
        raise DataError(
            f"{path}: contains arrays {sorted(names)[:12]}; expected {', '.join(_REQUIRED)}; add "
            f"{', '.join(missing)}"
        )
    held = [split for split in VALIDATION if any(f"{split}_{part}" in names for part in _PARTS)]
    if len(held) > 1:
        raise DataError(
            f"{path}: contains {held[0]}_ and {held[1]}_ arrays; expected one validation split; remove one"
        )
    validation = [f"{split}_{part}" for split in held for part in _PARTS]
    absent = [name for name in validation if name not in names]
    if absent:
        raise DataError(
            f"{path}: has no {absent[0]}; expected {' and '.join(validation)}, or neither; add it"
        )
    return [*_REQUIRED, *validation, *(name for name in (_CLASSES,) if name in names)]


def _labels(labels: NDArray[Any]) -> NDArray[Any]:
    """Return labels (N,) from (N,) or from a column (N, 1), e.g. MedMNIST's."""
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def _check_arrays(path: Path, split: str, images: NDArray[Any], labels: NDArray[Any]) -> None:
    ahead = images.ndim == 4 and images.shape[1] in (1, 3)
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or _channels(images) not in (1, 3):
        raise DataError(
            f"{path}: {split}_images is {images.dtype} {images.shape}; expected uint8 (N, H, W, C) "
            f"with C 1 or 3; convert it{', e.g. with np.moveaxis(images, 1, 3)' if ahead else ''}"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
        raise DataError(
            f"{path}: {split}_labels is {labels.dtype} {labels.shape}; expected integers "
            f"({len(images)},), one per image; convert it"
        )
    if not images.size:
        raise DataError(f"{path}: {split}_images is empty {images.shape}; expected images")
    lowest = int(labels.min())
    if lowest < UNLABELLED:
        row = int(np.argmin(labels))
        raise DataError(
            f"{path}: {split}_labels[{row}] is {lowest}; expected 0 or more, or -1 for unlabelled"
        )


def _require_labelled(path: Path, validation: str | None, labels: Arrays) -> None:
    """Refuse a validation split with unlabelled images: it could not select an epoch."""
    if validation is not None and (labels[validation] == UNLABELLED).any():
        row = int((labels[validation] == UNLABELLED).argmax())
        raise DataError(
            f"{path}: {validation}_labels[{row}] is -1; every validation image needs a label; label it, "
            "or remove it"
        )


def _class_names(path: Path, names: NDArray[Any]) -> tuple[str, ...]:
    """Return the class names from an array.

    Raises:
        DataError: the values are not texts, or two classes have the same name.
    """
    if names.ndim != 1 or names.dtype.kind not in "USiu":
        raise DataError(
            f"{path}: classes is {names.dtype} {names.shape}; expected strings (C,), one per class; "
            "convert it"
        )
    try:
        texts = tuple(n.decode() if isinstance(n, bytes) else str(n) for n in names.tolist())
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: classes contains {error.object!r}, which is not valid UTF-8; convert it"
        ) from None
    require_class_names(path, texts)
    return texts


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
