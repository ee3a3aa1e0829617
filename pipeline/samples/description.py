"""dataset.json: what a prepared dataset says of itself, checked before anything else of it is opened.

Owns the file's form, its digest and the comparison with what is asked for now; the splits that it
describes are opened in `modalities/prepared.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from pipeline.core.errors import DataError, MismatchError, bounded
from pipeline.core.files import parse_object, write_json
from pipeline.core.hashing import file_digest, spec_digest
from pipeline.samples.index import Form, Keep
from pipeline.samples.packed import Split
from pipeline.samples.samples import UNLABELLED

DESCRIPTION = "dataset.json"
SCHEMA = 3
SPLITS = ("train", "validation", "test")
# Keys of params.yaml's `data` that decide the content of prepared data.
DECISIVE = ("source", "root", "channels", "short_side", "keep", "validation", "seed")
# Keys that refuse images: data that was made less strictly may hold some of them.
REFUSING = ("max_pixels", "damaged")
_LONGEST_VALUE = 200
_OWN_DIGEST = "description_digest"
_AGAIN = "run: pipeline prepare, or with DVC: dvc repro -f -s prepare"

_Count = Annotated[int, pydantic.Field(ge=0)]
_Moment = Annotated[float, pydantic.Field(ge=0, le=1, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What dataset.json says, as far as a reader needs it.

    Args:
        source: `data.source` of the preparation.
        classes: C names.
        channels, decoder, keep, short_side, root: form of the images; see `Form`.
        mean, std: per channel, of pixels scaled to 0..1.
        samples: images of each split.
        digest: SHA-256 of the keys and contents of all splits.
        files: SHA-256 of each file of the index; empty in data of older versions.
        made_with: what was asked for, by the keys of `DECISIVE` and `REFUSING`; empty in data of older
            versions.
        remarks: how many images each remark is made of, e.g. damaged.
    """

    source: str
    classes: Annotated[tuple[str, ...], pydantic.Field(min_length=1)]
    channels: Literal[1, 3]
    decoder: str
    keep: Keep
    short_side: Annotated[int, pydantic.Field(ge=1)] | None
    root: str | None
    mean: tuple[_Moment, ...]
    std: tuple[_Moment, ...]
    samples: dict[str, _Count]
    digest: str
    files: dict[str, str] = field(default_factory=dict)
    made_with: dict[str, str | int | float | None] = field(default_factory=dict)
    remarks: dict[str, _Count] = field(default_factory=dict)

    def __post_init__(self) -> None:
        relations = {
            f"{self.channels} of mean": len(self.mean) == self.channels,
            f"{self.channels} of std, above 0": len(self.std) == self.channels and min(self.std) > 0,
            f"samples of {', '.join(SPLITS)}": set(self.samples) == set(SPLITS),
            "a root where images are kept encoded": (self.root is not None) == (self.keep == "encoded"),
        }
        broken = next((what for what, holds in relations.items() if not holds), None)
        if broken is not None:
            raise ValueError(f"expected {broken}")

    @property
    def form(self) -> Form:
        """The form of the images."""
        return Form(
            channels=self.channels,
            decoder=self.decoder,
            keep=self.keep,
            short_side=self.short_side,
            root=self.root,
        )

    @property
    def statistics(self) -> dict[str, Any]:
        """What the modality says of the training samples."""
        return {"mean": self.mean, "std": self.std}

    def asked(self) -> dict[str, Any]:
        """Return what is known of what was asked for, by the keys of `DECISIVE` and `REFUSING`.

        Older versions wrote down the source and the form alone. The channels of arrays are their own.
        """
        known: dict[str, Any] = {"source": self.source, "keep": self.keep, "short_side": self.short_side}
        if self.source.startswith("folder:"):
            known["channels"] = self.channels
        if self.remarks.get("damaged"):
            known["damaged"] = "warn"
        return {**known, **self.made_with}

    def may_be_damaged(self) -> bool:
        """Whether an image is damaged, or it was not looked whether all are whole."""
        return bool(self.remarks.get("damaged")) or self.keep == "encoded"


@dataclass(frozen=True, slots=True)
class _Version:
    schema: int


_VERSION, _DESCRIPTION = pydantic.TypeAdapter(_Version), pydantic.TypeAdapter(Description)


def read_description(folder: Path) -> Description:
    """Read and check the dataset.json of a prepared dataset.

    Raises:
        DataError: it is missing, of another schema, damaged, or was changed since it was written.
    """
    path = folder / DESCRIPTION
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"{folder}: no prepared dataset ({DESCRIPTION} is missing); run: pipeline prepare"
        ) from None
    schema = _parsed(_VERSION, content, path).schema
    if schema != SCHEMA:
        raise DataError(
            f"{folder}: prepared data of schema {schema}, this program reads {SCHEMA}; {_AGAIN}"
        )
    description: Description = _parsed(_DESCRIPTION, content, path)
    _require_unchanged(content, path)
    return description


def write_described(folder: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Write dataset.json with its schema and its own digest, and return its content."""
    described = {"schema": SCHEMA, **content}
    described[_OWN_DIGEST] = spec_digest(described)
    write_json(folder / DESCRIPTION, described)
    return described


def index_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 (hex) of each file of the index of a prepared dataset."""
    names = [f"{split}.{suffix}" for split in SPLITS for suffix in ("npz", "names")]
    return {name: file_digest(folder / name) for name in names}


def require_as_asked(folder: Path, description: Description, asked: Mapping[str, Any]) -> None:
    """Refuse prepared data that is not what params.yaml asks for.

    Args:
        folder: of the prepared dataset.
        description: of it.
        asked: values by the keys of `DECISIVE` and `REFUSING`. Those that older versions did not write
            down are not compared.

    Raises:
        MismatchError: naming both values of each key that differs.
    """
    was = description.asked()
    differing = [name for name in asked if name in was and _differs(name, was, asked)]
    if "damaged" in differing and not description.may_be_damaged():
        differing.remove("damaged")
    if differing:
        there, here = (_named(values, differing) for values in (was, asked))
        # DVC does not watch these: an older params.yaml lacks them.
        again = _AGAIN if set(differing) & set(REFUSING) else "run: pipeline prepare"
        raise MismatchError(f"{folder} is of {there}, params.yaml asks for {here}; {again}")


def _differs(name: str, was: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    there, here = was[name], asked[name]
    if name == "source":
        return not _same_source(str(there), str(here))
    if name == "root":
        # Only torchvision's downloads are in it.
        return str(was["source"]).startswith("torchvision:") and not _same_place(str(there), str(here))
    # Images of files are bounded; those that were within the bound are within a larger one, too.
    if name == "max_pixels":
        return bool(here < there) and str(was["source"]).startswith(("folder:", "torchvision:"))
    if name == "damaged":
        return bool(here == "refuse" != there)
    if name == "seed" and was.get("validation") == 0:
        return False
    return bool(there != here)


def _same_source(there: str, here: str) -> bool:
    """Whether two texts of `data.source` name one dataset: `npz:./a.npz` is `npz:a.npz`."""
    (kind, _, path), (other_kind, _, other_path) = there.partition(":"), here.partition(":")
    if there == here or kind != other_kind or kind not in ("npz", "folder"):
        return there == here
    return _same_place(path, other_path)


def _same_place(there: str, here: str) -> bool:
    if os.path.realpath(there) == os.path.realpath(here):
        return True
    try:
        return os.path.samefile(there, here)
    except (OSError, ValueError):
        return False


def _named(values: Mapping[str, Any], names: list[str]) -> str:
    others = [f"{name} {bounded(values[name])}" for name in names if name != "source"]
    source = bounded(values["source"], _LONGEST_VALUE)
    return f"{source} with {', '.join(others)}" if others else source


def _parsed(adapter: pydantic.TypeAdapter[Any], content: bytes, path: Path) -> Any:
    try:
        return adapter.validate_json(content, strict=True)
    except pydantic.ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(bounded(part) for part in problem["loc"])
        reason = problem["msg"] if problem["type"] != "json_invalid" else f"not JSON ({problem['msg']})"
        raise DataError(f"{path}: {where and f'{where}: '}{reason}; {_AGAIN}") from None


def _require_unchanged(content: bytes, path: Path) -> None:
    try:
        described = parse_object(content)
        digest = described.pop(_OWN_DIGEST, None)
        changed = digest is not None and digest != spec_digest(described)
    except ValueError as error:
        raise DataError(f"{path}: {error}; {_AGAIN}") from None
    if changed:
        raise DataError(f"{path}: changed since it was written (digest differs); {_AGAIN}")


def splits_digest(splits: Mapping[str, Split]) -> str:
    """Return the SHA-256 (hex) of the keys and contents of all splits."""
    return spec_digest({name: split.digest() for name, split in splits.items()})


def write_description(
    folder: Path,
    *,
    source: str,
    classes: tuple[str, ...],
    form: Form,
    statistics: Mapping[str, Any],
    splits: Mapping[str, Split],
    found: Mapping[str, Any],
    made_with: Mapping[str, Any],
) -> dict[str, Any]:
    """Write dataset.json, the last file of a prepared dataset, and return its content.

    `statistics` is what the modality says of the training samples; `found`, what is told of the source
    beside: left_out, leaks and remarks.
    """
    description = {
        "source": source,
        "made_with": dict(made_with),
        "classes": list(classes),
        **form.to_dict(),
        **statistics,
        "samples": {name: len(split) for name, split in splits.items()},
        "labelled": {name: int((split.labels != UNLABELLED).sum()) for name, split in splits.items()},
        "digest": splits_digest(splits),
        **found,
        "files": index_files(folder),
    }
    return write_described(folder, description)


def require_described(folder: Path, description: Description, splits: Mapping[str, Split]) -> None:
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
