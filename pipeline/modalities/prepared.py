"""A prepared dataset on disk: open it, spot-check it before training, audit all of it on demand.

dataset.json   classes, sample form, statistics, counts, digest; written last
SPLIT.npz, SPLIT.names         the index of train, validation and test
SPLIT.pixels, SPLIT.values     their arrays, unless the split reads the original files
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydantic

from pipeline.core.arrays import Rows
from pipeline.core.errors import DataError, counted
from pipeline.core.hashing import file_digest, sample_key
from pipeline.modalities.modality import Modality
from pipeline.modalities.table import find_modality
from pipeline.samples.description import (
    AGAIN,
    CLASSES,
    DESCRIPTION,
    SPLITS,
    Description,
    first_broken,
    read_description,
    require_described,
    splits_digest,
)
from pipeline.samples.index import Form, missing
from pipeline.samples.packed import Split

# A start checks a whole split up to this size; of a larger split, a random sample of this size.
SAMPLED_BYTES, SAMPLED_IMAGES = 64 << 20, 256
_AT_ONCE = 256
_TOLD = 20
Progress = Callable[[Sequence[Rows], str], Iterator[Rows]]


@dataclass(frozen=True, eq=False, kw_only=True)
class PreparedData:
    """A prepared dataset: three splits that share classes and form.

    Args:
        classes: C class names; a label is an index into them.
        statistics: statistics of the training split, defined by the modality, e.g. mean and std of
            images, per channel, of pixels scaled to 0..1.
        train, validation, test: the splits; validation may be empty.
        modality: the kind of samples.
        task: name of the task, the meaning of a teacher's outputs, e.g. classes.

    Example:
        >>> from pathlib import Path
        >>> from pipeline import PreparedData
        >>> data = PreparedData.open(Path("data/prepared"))
        >>> data.classes
        ('bar-0', 'bar-1', 'bar-2')
        >>> len(data.train), len(data.validation), len(data.test)
        (68, 22, 30)
        >>> data.train.array(0).shape
        (8, 8, 1)
    """

    classes: tuple[str, ...]
    statistics: Mapping[str, Any]
    train: Split
    validation: Split
    test: Split
    modality: Modality = field(default_factory=find_modality)
    task: str = CLASSES

    @classmethod
    def open(cls, folder: Path) -> PreparedData:
        """Open the output of `pipeline prepare`.

        Raises:
            DataError: `folder` holds no complete prepared dataset.
            ConfigError: the modality is unknown, or is user code that was not named.

        """
        description = read_description(folder)
        modality, form, statistics = described_by(folder, description)
        splits = {name: open_described(folder, name, description, modality, form) for name in SPLITS}
        require_described(folder, description, splits)
        return cls(
            classes=description.classes,
            statistics=statistics,
            modality=modality,
            task=description.task,
            **splits,
        )

    def digest(self) -> str:
        """Return the SHA-256 (hex) of keys, contents and labels of all splits, as dataset.json has it."""
        return splits_digest({name: getattr(self, name) for name in SPLITS})


def described_by(folder: Path, description: Description) -> tuple[Modality, Form, Mapping[str, Any]]:
    """Return the modality, sample form and statistics of a prepared dataset.

    Raises:
        ConfigError: the modality is unknown, or is user code that was not named.
        DataError: the modality rejects the values in dataset.json.
    """
    modality = find_modality(description.modality)
    try:
        return modality, *modality.described(description.own)
    except (ValueError, KeyError, TypeError) as error:
        problem = first_broken(error) if isinstance(error, pydantic.ValidationError) else str(error)
        raise DataError(f"{folder / DESCRIPTION}: {problem}; {AGAIN}") from None


def open_described(
    folder: Path, name: str, description: Description, modality: Modality, form: Form
) -> Split:
    """Open one split after checking its index files against dataset.json.

    Raises:
        DataError: a file is missing, damaged, or differs from the prepared one.
    """
    for file in (f"{name}.npz", f"{name}.names"):
        _require_file(folder / file, description.files.get(file))
    return modality.open_split(folder, name, form)


def _require_file(path: Path, expected: str | None) -> None:
    if expected is None:
        return  # Data of an older version: its digest covers only keys and contents.
    try:
        found = file_digest(path)
    except FileNotFoundError:
        raise missing(path) from None
    if found != expected:
        raise DataError(
            f"{path}: content does not match dataset.json (SHA-256 {found[:12]}, expected "
            f"{expected[:12]}); run: pipeline prepare"
        )


# Checks that prepared data is unchanged: a sample before training, everything on demand.


@dataclass(frozen=True, slots=True)
class DataAudit:
    """The result of checking a prepared dataset.

    Args:
        checked: number of files read, encoded images included.
        images: number of samples compared with their digests.
        bad: one line per fault.
    """

    checked: int
    images: int
    bad: list[str] = field(default_factory=list)


def require_sample(data: PreparedData, *, seed: int, workers: int) -> None:
    """Compare some samples of each split with their digests; takes a fraction of a second.

    Args:
        data: the prepared dataset; encoded images are also checked at each read.
        seed: random seed of the choice.
        workers: number of threads.

    Raises:
        DataError: a sample has changed since `pipeline prepare`.
    """
    for name in SPLITS:
        images: Split = getattr(data, name)
        rows = sampled_rows(images, seed)
        parts = np.array_split(rows, 1 + len(rows) // _AT_ONCE)
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(images.require_unchanged, parts))


def sampled_rows(images: Split, seed: int) -> Rows:
    """Return the rows of a split (n,) to check at a start: all, or a random sample of a large split."""
    total, count = images.size_bytes, len(images)
    fitting = count if total <= SAMPLED_BYTES else max(SAMPLED_IMAGES, SAMPLED_BYTES * count // total)
    if fitting >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, fitting, replace=False))


def audit_data(folder: Path, *, workers: int, progress: Progress) -> DataAudit:
    """Read every file of a prepared dataset and compare every sample and name with its digest.

    Args:
        folder: the prepared dataset.
        workers: number of threads.
        progress: wraps the batches of rows (n,); called with the text of the progress bar.
    """
    try:
        description = read_description(folder)
        modality, form, _ = described_by(folder, description)
    except DataError as error:
        return DataAudit(checked=0, images=0, bad=[str(error)])
    audits, opened = [], {}
    for name in SPLITS:
        try:
            opened[name] = open_described(folder, name, description, modality, form)
        except DataError as error:
            audits.append(DataAudit(checked=0, images=0, bad=[str(error)]))
        else:
            audits.append(_audit_split(opened[name], folder, name, workers=workers, progress=progress))
    bad = [line for audit in audits for line in audit.bad]
    return DataAudit(
        checked=1 + sum(audit.checked for audit in audits),
        images=sum(audit.images for audit in audits),
        bad=bad or _undescribed(folder, description, opened),
    )


def _audit_split(images: Split, folder: Path, name: str, *, workers: int, progress: Progress) -> DataAudit:
    every = np.arange(len(images))
    batches = np.array_split(every, 1 + len(every) // _AT_ONCE)
    with ThreadPoolExecutor(workers) as pool:
        found = pool.map(images.faults, batches)
        shown = progress(batches, f"check {name}")
        bad = [line for lines, _ in zip(found, shown, strict=False) for line in lines]
    bad += _wrong_names(images, folder / f"{name}.names")
    files = 2 + (len(images) if images.decodes_at_use else 1)
    rest = len(bad) - _TOLD
    more = [f"{folder / name}: {counted(rest, 'more sample')} with faults"] if rest > 0 else []
    return DataAudit(checked=files, images=len(images), bad=[*bad[:_TOLD], *more])


def _wrong_names(images: Split, path: Path) -> list[str]:
    keys = np.fromiter(map(sample_key, images.names), np.uint64, len(images))
    wrong = np.flatnonzero(keys != images.keys)
    if not len(wrong):
        return []
    name = images.names[int(wrong[0])]
    return [
        f"{path}: {counted(len(wrong), 'name')} without a matching key in the index, first {name!r}; run: "
        "pipeline prepare"
    ]


def _undescribed(folder: Path, description: Description, splits: Mapping[str, Split]) -> list[str]:
    try:
        require_described(folder, description, splits)
    except DataError as error:
        return [str(error)]
    return []
