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

from pipeline.data.encoded import open_encoded
from pipeline.data.form import Form, Keep
from pipeline.data.images import Images
from pipeline.data.packed import open_packed
from pipeline.data.sample import UNLABELLED
from pipeline.digests import spec_digest
from pipeline.errors import DataError, quoted
from pipeline.files import read_json, write_json

SPLITS = ("train", "validation", "test")
DESCRIPTION = "dataset.json"
SCHEMA = 3
_FIELDS = {"classes": list, "mean": list, "std": list, "digest": str}

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
        description = _read_description(folder)
        form = _form(description, folder / DESCRIPTION)
        splits = {name: open_split(folder, name, form) for name in SPLITS}
        digest = splits_digest(splits)
        if digest != description["digest"]:
            raise DataError(
                f"{folder}: index files do not belong to dataset.json (digest {digest[:12]}, "
                f"expected {description['digest'][:12]}); run: pipeline prepare"
            )
        return cls(
            classes=tuple(description["classes"]),
            channels=form.channels,
            mean=tuple(description["mean"]),
            std=tuple(description["std"]),
            **splits,
        )


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
) -> dict[str, Any]:
    """Write dataset.json, the last file of a prepared dataset, and return its content.

    `found` is what is told of the source beside: left_out, leaks and remarks.
    """
    mean, std = mean_and_std
    description = {
        "schema": SCHEMA,
        "source": source,
        "classes": list(classes),
        **form.to_dict(),
        "mean": mean,
        "std": std,
        "samples": {name: len(split) for name, split in splits.items()},
        "labelled": {name: int((split.labels != UNLABELLED).sum()) for name, split in splits.items()},
        "digest": splits_digest(splits),
        **found,
    }
    write_json(folder / DESCRIPTION, description)
    return description


def _form(description: dict[str, Any], path: Path) -> Form:
    try:
        form = Form.from_dict(description)
    except KeyError as error:
        raise DataError(f"{path}: has no {error}; run: pipeline prepare") from None
    if form.keep not in _KINDS or form.channels not in (1, 3):
        raise DataError(
            f"{path}: keep is {quoted(form.keep)}, channels {quoted(form.channels)}; expected "
            f"{' or '.join(_KINDS)}, 1 or 3; run: pipeline prepare"
        )
    return form


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    try:
        description: dict[str, Any] = read_json(path)
    except FileNotFoundError:
        raise DataError(
            f"{folder}: no prepared dataset ({DESCRIPTION} is missing); run: pipeline prepare"
        ) from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); run: pipeline prepare") from None
    schema = description.get("schema") if isinstance(description, dict) else None
    if schema != SCHEMA:
        raise DataError(
            f"{folder}: prepared data of schema {quoted(schema)}, this program reads "
            f"{SCHEMA}; run: pipeline prepare, or with DVC: dvc repro -f -s prepare"
        )
    for name, kind in _FIELDS.items():
        if not isinstance(description.get(name), kind):
            raise DataError(
                f"{path}: {name} is {quoted(description.get(name))}; expected a {kind.__name__}; run: "
                "pipeline prepare"
            )
    return description
