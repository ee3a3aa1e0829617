"""Whether prepared data is still what was prepared: a sample before training, everything on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError, counted
from pipeline.core.hashing import sample_key
from pipeline.samples.dataset import PreparedData, open_described, require_described
from pipeline.samples.description import SPLITS, Description, read_description
from pipeline.samples.packed import Images

# Of each split at a start: all of it up to so many bytes; of a larger one as many bytes, at random.
SAMPLED_BYTES, SAMPLED_IMAGES = 64 << 20, 256
_AT_ONCE = 256
_TOLD = 20

Rows = NDArray[np.int64]
Progress = Callable[[Sequence[Rows], str], Iterator[Rows]]


@dataclass(frozen=True, slots=True)
class DataAudit:
    """What was found in a prepared dataset.

    Args:
        checked: files read; images that stay encoded are files, too.
        images: compared with their digests.
        bad: a line for each thing that is wrong.
    """

    checked: int
    images: int
    bad: list[str] = field(default_factory=list)


def require_sample(data: PreparedData, *, seed: int, workers: int) -> None:
    """Compare some images of each split with their digests, which takes a fraction of a second.

    Args:
        data: whose images; those that are kept encoded are compared whenever they are read.
        seed: of the choice.
        workers: threads.

    Raises:
        DataError: one is not what was prepared.
    """
    for name in SPLITS:
        images: Images = getattr(data, name)
        rows = sampled_rows(images, seed)
        parts = np.array_split(rows, 1 + len(rows) // _AT_ONCE)
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(images.require_unchanged, parts))


def sampled_rows(images: Images, seed: int) -> Rows:
    """Return which images of a split (n,) a start looks at: all, or a random sample of a large split."""
    total, count = images.size_bytes, len(images)
    fitting = count if total <= SAMPLED_BYTES else max(SAMPLED_IMAGES, SAMPLED_BYTES * count // total)
    if fitting >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, fitting, replace=False))


def audit_data(folder: Path, *, workers: int, progress: Progress) -> DataAudit:
    """Read every file of a prepared dataset, and compare every image and name with its digest.

    Args:
        folder: of the prepared dataset.
        workers: threads.
        progress: wraps batches of images (n,), and is told what is done with them.
    """
    try:
        description = read_description(folder)
    except DataError as error:
        return DataAudit(checked=0, images=0, bad=[str(error)])
    audits, opened = [], {}
    for name in SPLITS:
        try:
            opened[name] = open_described(folder, name, description)
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


def _audit_split(images: Images, folder: Path, name: str, *, workers: int, progress: Progress) -> DataAudit:
    every = np.arange(len(images))
    batches = np.array_split(every, 1 + len(every) // _AT_ONCE)
    with ThreadPoolExecutor(workers) as pool:
        found = pool.map(images.faults, batches)
        shown = progress(batches, f"check {name}")
        bad = [line for lines, _ in zip(found, shown, strict=False) for line in lines]
    bad += _wrong_names(images, folder / f"{name}.names")
    files = 2 + (len(images) if images.decodes_at_use else 1)
    rest = len(bad) - _TOLD
    more = [f"{folder / name}: {counted(rest, 'more image')} with faults"] if rest > 0 else []
    return DataAudit(checked=files, images=len(images), bad=[*bad[:_TOLD], *more])


def _wrong_names(images: Images, path: Path) -> list[str]:
    keys = np.fromiter(map(sample_key, images.names), np.uint64, len(images))
    wrong = np.flatnonzero(keys != images.keys)
    if not len(wrong):
        return []
    name = images.names[int(wrong[0])]
    return [
        f"{path}: {counted(len(wrong), 'name')} of other keys than the index has, first {name!r}; run: "
        "pipeline prepare"
    ]


def _undescribed(folder: Path, description: Description, splits: Mapping[str, Images]) -> list[str]:
    try:
        require_described(folder, description, splits)
    except DataError as error:
        return [str(error)]
    return []
