"""A prepared dataset on disk: its description, and three splits that are kept in one form.

dataset.json   classes, form of the images, mean and deviation, counts, digest; written last
SPLIT.npz, SPLIT.names         the index of train, validation and test
SPLIT.pixels                   where images are kept as pixels
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import DataError
from pipeline.core.hashing import file_digest, spec_digest
from pipeline.modalities.images.images import open_encoded
from pipeline.samples.description import (
    DESCRIPTION,
    SCHEMA,
    SPLITS,
    Description,
    index_files,
    read_description,
    write_described,
)
from pipeline.samples.index import Form, Keep, missing
from pipeline.samples.packed import Images, open_packed
from pipeline.samples.samples import UNLABELLED

__all__ = ["DESCRIPTION", "SCHEMA", "SPLITS", "PreparedData", "open_split", "write_description"]

_KINDS: Mapping[Keep, Callable[[Path, str, Form], Images]] = {
    "pixels": open_packed,
    "encoded": open_encoded,
}


@dataclass(frozen=True, eq=False, kw_only=True)
class PreparedData:
    """A prepared dataset: three splits that share classes and channels.

    Args:
        classes: C class names; a label is an index into them.
        mean, std: per channel, of the training split's pixels scaled to 0..1.
        train, validation, test: the splits; validation may be empty.

    """

    classes: tuple[str, ...]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Images
    validation: Images
    test: Images

    @classmethod
    def open(cls, folder: Path) -> PreparedData:
        """Open what `pipeline prepare` wrote.

        Raises:
            DataError: there is no complete prepared dataset in `folder`.

        """
        description = read_description(folder)
        splits = {name: open_described(folder, name, description) for name in SPLITS}
        require_described(folder, description, splits)
        return cls(
            classes=description.classes,
            channels=description.channels,
            mean=description.mean,
            std=description.std,
            **splits,
        )

    def digest(self) -> str:
        """Return the SHA-256 (hex) of the keys and contents of all splits, as dataset.json has it."""
        return splits_digest({name: getattr(self, name) for name in SPLITS})


def open_split(folder: Path, name: str, form: Form) -> Images:
    """Open one split of a dataset in `folder`."""
    return _KINDS[form.keep](folder, name, form)


def splits_digest(splits: Mapping[str, Images]) -> str:
    """Return the SHA-256 (hex) of the keys and contents of all splits."""
    return spec_digest({name: split.digest() for name, split in splits.items()})


def write_description(
    folder: Path,
    *,
    source: str,
    classes: tuple[str, ...],
    form: Form,
    mean_and_std: tuple[list[float], list[float]],
    splits: Mapping[str, Images],
    found: Mapping[str, Any],
    made_with: Mapping[str, Any],
) -> dict[str, Any]:
    """Write dataset.json, the last file of a prepared dataset, and return its content.

    `found` is what is told of the source beside: left_out, leaks and remarks.
    """
    mean, std = mean_and_std
    description = {
        "source": source,
        "made_with": dict(made_with),
        "classes": list(classes),
        **form.to_dict(),
        "mean": mean,
        "std": std,
        "samples": {name: len(split) for name, split in splits.items()},
        "labelled": {name: int((split.labels != UNLABELLED).sum()) for name, split in splits.items()},
        "digest": splits_digest(splits),
        **found,
        "files": index_files(folder),
    }
    return write_described(folder, description)


def open_described(folder: Path, name: str, description: Description) -> Images:
    """Open one split, whose index was written with a description.

    Raises:
        DataError: a file is missing, damaged, or differs from the one that was written.
    """
    for file in (f"{name}.npz", f"{name}.names"):
        _require_file(folder / file, description.files.get(file))
    return open_split(folder, name, description.form)


def require_described(folder: Path, description: Description, splits: Mapping[str, Images]) -> None:
    """Refuse splits that are not those of a description.

    Raises:
        DataError: their content, number or labels differ.
    """
    digest, n_classes = splits_digest(splits), len(description.classes)
    if digest != description.digest:
        raise DataError(
            f"{folder}: index files do not belong to dataset.json (digest {digest[:12]}, "
            f"expected {description.digest[:12]}); run: pipeline prepare"
        )
    for name, split in splits.items():
        highest = int(split.labels.max(initial=UNLABELLED))
        if len(split) != description.samples[name] or highest >= n_classes:
            raise DataError(
                f"{folder / name}.npz: {len(split):,} images with labels up to {highest}; expected "
                f"{description.samples[name]:,} images of {n_classes} classes, as dataset.json says; run: "
                "pipeline prepare"
            )


def _require_file(path: Path, expected: str | None) -> None:
    if expected is None:
        return  # Data of an older version: its digest covers keys and contents alone.
    try:
        found = file_digest(path)
    except FileNotFoundError:
        raise missing(path) from None
    if found != expected:
        raise DataError(
            f"{path}: its bytes do not belong to dataset.json (SHA-256 {found[:12]}, expected "
            f"{expected[:12]}); run: pipeline prepare"
        )
