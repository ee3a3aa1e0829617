"""dataset.json: the description of a prepared dataset, checked before any other file is opened.

Owns the file's format, its digest and the comparison with params.yaml. The splits themselves are opened in
`modalities/prepared.py`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Protocol

import pydantic

from pipeline.core.errors import DataError, MismatchError, bounded
from pipeline.core.files import parse_object, write_json
from pipeline.core.hashing import file_digest, spec_digest
from pipeline.samples.index import Form
from pipeline.samples.label_forms import is_known
from pipeline.samples.packed import Split
from pipeline.samples.samples import UNLABELLED

DESCRIPTION = "dataset.json"
SCHEMA = 3
SPLITS = ("train", "validation", "test")
# Defaults that dataset.json and other files omit: they are older than the alternatives.
IMAGES, CLASSES = "images", "classes"
# Keys of params.yaml's `data` that decide the content of prepared data in every modality.
DECISIVE = ("source", "validation", "seed")
_LONGEST_VALUE = 200
_OWN_DIGEST = "description_digest"
AGAIN = "run: pipeline prepare, or with DVC: dvc repro -f -s prepare"

_Count = Annotated[int, pydantic.Field(ge=0)]
_Name = Annotated[str, pydantic.Field(max_length=200)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """The parts of dataset.json that readers need.

    Args:
        source: `data.source` of the preparation.
        classes: C names.
        samples: split -> number of samples.
        digest: SHA-256 of the keys, contents and labels of all splits.
        modality: of the samples.
        task: name of the task, e.g. classes.
        files: SHA-256 of each index file; empty in data of older versions.
        made_with: the parameters, by keys of params.yaml's `data`; empty in data of older versions.
        remarks: remark, e.g. damaged -> number of samples with it.
        own: the whole content, from which the modality reads storage format and statistics.
    """

    source: str
    classes: Annotated[tuple[str, ...], pydantic.Field(min_length=1)]
    samples: dict[str, _Count]
    digest: str
    modality: _Name = IMAGES
    task: _Name = CLASSES
    files: dict[str, str] = field(default_factory=dict)
    made_with: dict[str, str | int | float | None] = field(default_factory=dict)
    remarks: dict[str, _Count] = field(default_factory=dict)
    own: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if set(self.samples) != set(SPLITS):
            raise ValueError(f"expected sample counts for {', '.join(SPLITS)}")


class Comparison(Protocol):
    """A modality's comparison of past and present parameters."""

    @property
    def refusing(self) -> Collection[str]:
        """Names of the modality's values that only refuse samples."""

    def known(self, description: Description) -> dict[str, Any]:
        """Return the modality's keys of `data` in params.yaml with which the data was made."""

    def differs(self, name: str, was: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
        """Whether one of the modality's keys now requests different data; see `require_as_asked`."""


@dataclass(frozen=True, slots=True)
class _Version:
    schema: int


_VERSION, _DESCRIPTION = pydantic.TypeAdapter(_Version), pydantic.TypeAdapter(Description)


def read_description(folder: Path) -> Description:
    """Read and check the dataset.json of a prepared dataset.

    Raises:
        DataError: the file is missing, has a different schema, is damaged, or was changed by hand.
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
            f"{folder}: prepared data has schema {schema}, but this program reads {SCHEMA}; {AGAIN}"
        )
    description: Description = _parsed(_DESCRIPTION, content, path)
    return replace(description, own=_unchanged(content, path))


def write_described(folder: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Write dataset.json with its schema and digest, and return its content."""
    described = {"schema": SCHEMA, **content}
    described[_OWN_DIGEST] = spec_digest(described)
    write_json(folder / DESCRIPTION, described)
    return described


def index_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 (hex) of each index file of a prepared dataset."""
    names = [f"{split}.{suffix}" for split in SPLITS for suffix in ("npz", "names")]
    return {name: file_digest(folder / name) for name in names}


def require_as_asked(
    folder: Path, description: Description, asked: Mapping[str, Any], comparison: Comparison
) -> None:
    """Refuse prepared data that was made with different parameters.

    Args:
        folder: of the prepared dataset.
        description: its dataset.json.
        asked: values of params.yaml's `data` that decide the content of prepared data, or refuse some of
            it. Values that older versions did not record are not compared.
        comparison: of the keys outside `DECISIVE`.

    Raises:
        MismatchError: naming both values of each key that differs.
    """
    was = {"source": description.source, **description.made_with, **comparison.known(description)}
    was |= {"modality": description.modality, "task": description.task}
    differing = [
        name
        for name in asked
        if name in was and (_differs if name in _GENERAL else comparison.differs)(name, was, asked)
    ]
    if differing:
        there, here = (_named(values, differing) for values in (was, asked))
        # DVC does not watch these keys, since an older params.yaml lacks them.
        unwatched = {"modality", "task", *comparison.refusing}
        again = AGAIN if unwatched & set(differing) else "run: pipeline prepare"
        raise MismatchError(f"{folder} was prepared from {there}, but params.yaml asks for {here}; {again}")


_GENERAL = (*DECISIVE, "modality", "task")


def _differs(name: str, was: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    there, here = was[name], asked[name]
    if name == "source":
        return not _same_source(str(there), str(here))
    if name == "seed" and was.get("validation") == 0:
        return False
    return bool(there != here)


def _same_source(there: str, here: str) -> bool:
    """Whether two texts of `data.source` name one dataset: `npz:./a.npz` is `npz:a.npz`."""
    (kind, _, path), (other_kind, _, other_path) = there.partition(":"), here.partition(":")
    if there == here or kind != other_kind or not path or not other_path:
        return there == here
    return same_place(path, other_path)


def same_place(there: str, here: str) -> bool:
    """Whether two paths, which need not exist, name one file or folder."""
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
        raise DataError(f"{path}: {first_broken(error)}; {AGAIN}") from None


def first_broken(error: pydantic.ValidationError) -> str:
    """Describe the first invalid value of dataset.json, by its key."""
    problem = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(bounded(part) for part in problem["loc"])
    reason = problem["msg"] if problem["type"] != "json_invalid" else f"not JSON ({problem['msg']})"
    return f"{where}: {reason}" if where else str(reason)


def _unchanged(content: bytes, path: Path) -> dict[str, Any]:
    """Return the content of a description without its digest, after checking that digest."""
    try:
        described = parse_object(content)
        digest = described.pop(_OWN_DIGEST, None)
        changed = digest is not None and digest != spec_digest(described)
    except ValueError as error:
        raise DataError(f"{path}: {error}; {AGAIN}") from None
    if changed:
        raise DataError(f"{path}: changed since it was written (digest differs); {AGAIN}")
    return described


def splits_digest(splits: Mapping[str, Split]) -> str:
    """Return the SHA-256 (hex) of the keys, contents and labels of all splits."""
    return spec_digest({name: split.digest() for name, split in splits.items()})


def write_description(
    folder: Path,
    *,
    source: str,
    kinds: Mapping[str, str],
    classes: tuple[str, ...],
    form: Form,
    statistics: Mapping[str, Any],
    splits: Mapping[str, Split],
    found: Mapping[str, Any],
    made_with: Mapping[str, Any],
) -> dict[str, Any]:
    """Write dataset.json, the last file of a prepared dataset, and return its content.

    Args:
        folder: of the prepared dataset.
        source: `data.source`.
        kinds: modality and task, without the defaults.
        classes: C names.
        form: storage format of the samples.
        statistics: the modality's statistics of the training samples.
        splits: the written splits.
        found: further findings: left_out, leaks and remarks.
        made_with: the parameters of params.yaml.
    """
    description = {
        **kinds,
        "source": source,
        "made_with": dict(made_with),
        "classes": list(classes),
        **form.to_dict(),
        **statistics,
        "samples": {name: len(split) for name, split in splits.items()},
        "labelled": {name: int(is_known(split.labels).sum()) for name, split in splits.items()},
        "digest": splits_digest(splits),
        **found,
        "files": index_files(folder),
    }
    return write_described(folder, description)


def require_described(folder: Path, description: Description, splits: Mapping[str, Split]) -> None:
    """Refuse splits that do not match a description.

    Raises:
        DataError: content, number or labels differ.
    """
    digest, n_classes = splits_digest(splits), len(description.classes)
    if digest != description.digest:
        raise DataError(
            f"{folder}: index files do not match dataset.json (digest {digest[:12]}, expected "
            f"{description.digest[:12]}); run: pipeline prepare"
        )
    for name, split in splits.items():
        labels, count = split.labels, description.samples[name]
        if labels.ndim == 2:
            if labels.shape != (count, n_classes):
                raise DataError(
                    f"{folder / name}.npz: labels of shape {labels.shape}; expected "
                    f"{(count, n_classes)}, as dataset.json says; run: pipeline prepare"
                )
            continue
        highest = int(labels.max(initial=UNLABELLED))
        if len(split) != description.samples[name] or highest >= n_classes:
            raise DataError(
                f"{folder / name}.npz: {len(split):,} samples with labels up to {highest}; dataset.json "
                f"says {description.samples[name]:,} samples of {n_classes} classes; run: pipeline prepare"
            )
