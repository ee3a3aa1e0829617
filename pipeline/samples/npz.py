"""Datasets stored as arrays in one .npz file, of any modality.

{train,test}_NAME (N, ...) with {train,test}_labels (N,) integers; NAME is the modality's, e.g. images.
Labels may also be tags, (N, C) integers 1, 0 or -1 for unknown, or numbers, (N,) or (N, C) floats.
Optional: val_NAME with val_labels, and classes (C,) texts. The modality checks the arrays of samples.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from pipeline.core.errors import DataError, bounded, brief, first_of
from pipeline.samples.label_forms import kind_of
from pipeline.samples.labels import numbered_classes, require_class_names, require_known_labels
from pipeline.samples.samples import UNLABELLED, LeftOut
from pipeline.samples.splits import TEST, TRAIN, VALIDATION

_CLASSES, _LABELS = "classes", "labels"
_Labels = Mapping[str, NDArray[Any]]
# Errors of numpy, zipfile and zlib for damaged, encrypted and absurd files.
_DAMAGE = (
    *(OSError, EOFError, TypeError, ValueError, KeyError, IndexError, RuntimeError, MemoryError),
    *(OverflowError, SyntaxError, struct.error, zipfile.BadZipFile, zlib.error),
)


@dataclass(frozen=True, slots=True)
class Parts:
    """Names of a modality's arrays.

    Args:
        samples: of the samples of a split, e.g. images for train_images.
        optional: of arrays that a split may have, e.g. lengths.
        general: of required arrays that belong to no split, e.g. sample_rate.
    """

    samples: str
    optional: tuple[str, ...] = ()
    general: tuple[str, ...] = ()

    @property
    def of_split(self) -> tuple[str, str]:
        """The arrays that every split has."""
        return self.samples, _LABELS

    @property
    def required(self) -> tuple[str, ...]:
        """The arrays that every file has."""
        return (*(f"{s}_{part}" for s in (TRAIN, TEST) for part in self.of_split), *self.general)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrays:
    """The arrays of a file.

    Args:
        path: the file.
        parts: names of the arrays.
        arrays: the arrays that are used.
        left_out: names of the others.
    """

    path: Path
    parts: Parts
    arrays: Mapping[str, NDArray[Any]]
    left_out: LeftOut

    @property
    def splits(self) -> list[str]:
        """Names of the splits: train, test, and that of the validation split if there is one."""
        return [TRAIN, TEST, *([self.validation] if self.validation else [])]

    @property
    def validation(self) -> str | None:
        """Name of the validation split, e.g. val, or None."""
        return next((name for name in VALIDATION if f"{name}_{_LABELS}" in self.arrays), None)

    @property
    def samples(self) -> dict[str, NDArray[Any]]:
        """Split -> its samples (N, ...)."""
        return {split: self.arrays[f"{split}_{self.parts.samples}"] for split in self.splits}

    @property
    def labels(self) -> dict[str, NDArray[Any]]:
        """Split -> its labels (N,) or (N, C); a column (N, 1), e.g. MedMNIST's, counts as (N,)."""
        found = {split: self.arrays[f"{split}_{_LABELS}"] for split in self.splits}
        return {s: a[:, 0] if a.ndim == 2 and a.shape[1] == 1 else a for s, a in found.items()}

    def _named_values(self, labels: Mapping[str, NDArray[Any]]) -> tuple[tuple[str, ...], _Labels]:
        """Return the names of tags or numbers, and labels (N, C) of each split as a split keeps them."""
        dtype = np.float32 if labels[TRAIN].dtype.kind == "f" else np.int8
        values = {split: np.asarray(some, dtype).reshape(len(some), -1) for split, some in labels.items()}
        width = values[TRAIN].shape[1]
        if _CLASSES in self.arrays:
            classes = _class_names(self.path, self.arrays[_CLASSES])
        else:
            classes = tuple(map(str, range(width)))
        for split, some in values.items():
            if some.shape[1] != len(classes):
                raise DataError(
                    f"{self.path}: {split}_labels has {some.shape[1]} values per sample; expected "
                    f"{len(classes)}, one for each of {first_of(classes)}; correct it"
                )
        return classes, values

    def named_classes(self, noun: str) -> tuple[tuple[str, ...], Mapping[str, NDArray[Any]]]:
        """Return class names, and labels (N,) of each split as indices into them; or tags, or numbers.

        Args:
            noun: the word for one sample, for errors.

        Raises:
            DataError: a label without a class, or an unlabelled validation sample.
        """
        labels: _Labels = self.labels
        kinds = {split: kind_of(some) for split, some in labels.items()}
        other = next((split for split in kinds if kinds[split] != kinds[TRAIN]), None)
        if other is not None:
            raise DataError(
                f"{self.path}: train_labels is {kinds[TRAIN]} and {other}_labels is {kinds[other]}; "
                "expected labels of one kind; convert one"
            )
        if labels[TRAIN].dtype.kind == "f" or labels[TRAIN].ndim > 1:
            return self._named_values(labels)
        _require_labelled(self.path, self.validation, labels, noun)
        if _CLASSES in self.arrays:
            classes = _class_names(self.path, self.arrays[_CLASSES])
        else:
            classes, labels = numbered_classes(self.path, labels)
        require_known_labels(self.path, classes, labels)
        return classes, labels


def read_npz(path: Path, parts: Parts) -> Arrays:
    """Read the arrays of a dataset.

    Raises:
        DataError: no such file, a damaged one, or one without the required arrays.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected an .npz file; correct data.source")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if not isinstance(archive, NpzFile):
                raise ValueError("it contains no named arrays")
            wanted = _wanted(path, archive.files, parts)
            arrays = {name: _array(path, archive, name) for name in wanted}
            unused = tuple(bounded(name, 80) for name in sorted(set(archive.files) - set(wanted)))
            return Arrays(path=path, parts=parts, arrays=arrays, left_out=LeftOut(unused=unused))
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
            "it, e.g. with .astype(np.int64) or .astype(str); keep images of different sizes as files, in "
            "a folder: source"
        ) from None
    return array


def _reason(error: BaseException) -> str:
    text = brief(error) or type(error).__name__
    if "context manager" in text:  # np.load returned an array instead of an archive
        return "a single array, as in an .npy file; expected several named arrays"
    return text


def _wanted(path: Path, names: Sequence[str], parts: Parts) -> list[str]:
    """Return the names of an archive's arrays that are used."""
    missing = [key for key in parts.required if key not in names]
    if missing:
        raise DataError(
            f"{path}: contains arrays {sorted(names)[:12]}; expected {', '.join(parts.required)}; "
            f"add {', '.join(missing)}"
        )
    held = [split for split in VALIDATION if any(f"{split}_{part}" in names for part in parts.of_split)]
    if len(held) > 1:
        raise DataError(
            f"{path}: contains {held[0]}_ and {held[1]}_ arrays; expected one validation split; remove one"
        )
    validation = [f"{split}_{part}" for split in held for part in parts.of_split]
    absent = [name for name in validation if name not in names]
    if absent:
        raise DataError(
            f"{path}: has no {absent[0]}; expected {' and '.join(validation)}, or neither; add it"
        )
    splits = [TRAIN, TEST, *held]
    optional = [_CLASSES, *(f"{split}_{part}" for part in parts.optional for split in splits)]
    return [*parts.required, *validation, *(name for name in optional if name in names)]


def require_labels(path: Path, split: str, labels: NDArray[Any], count: int, noun: str) -> None:
    """Refuse labels that are not one integer per sample, tags or numbers, or out of range.

    Raises:
        DataError: naming the array.
    """
    whole = np.issubdtype(labels.dtype, np.integer) or (labels.dtype.kind == "b" and labels.ndim == 2)
    shaped = len(labels) == count and labels.ndim in (1, 2) and 0 not in labels.shape[1:]
    if not (whole or labels.dtype.kind == "f") or not shaped:
        raise DataError(
            f"{path}: {split}_labels is {labels.dtype} {labels.shape}; expected integers "
            f"({count},), one per {noun}; convert it"
        )
    if labels.dtype.kind == "f":
        wrong, expected = ~np.isfinite(labels), "a finite number"
    elif labels.ndim == 2:
        wrong, expected = (labels < UNLABELLED) | (labels > 1), "1, 0, or -1 for unknown"
    else:
        wrong, expected = labels < UNLABELLED, "0 or more, or -1 for unlabelled"
    if wrong.any():
        place = tuple(int(index) for index in np.argwhere(wrong)[0])
        where = ", ".join(map(str, place))
        raise DataError(f"{path}: {split}_labels[{where}] is {labels[place]}; expected {expected}")


def _require_labelled(
    path: Path, validation: str | None, labels: Mapping[str, NDArray[Any]], noun: str
) -> None:
    """Refuse a validation split with unlabelled samples: it could not select an epoch."""
    if validation is not None and (labels[validation] == UNLABELLED).any():
        row = int((labels[validation] == UNLABELLED).argmax())
        raise DataError(
            f"{path}: {validation}_labels[{row}] is -1; every validation {noun} needs a label; label it, "
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
