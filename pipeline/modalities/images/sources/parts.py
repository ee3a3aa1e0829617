"""Datasets of images in parts, tars or tables: rows of all splits, joined to one source.

`tars.py` and `tables.py` find the rows. Here their labels are read, names are checked, and a test split is
drawn if the source has none. No image is decoded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError, counted, first_of, quoted
from pipeline.core.progress import note
from pipeline.modalities.images.decoding import DECODER, ImageFile
from pipeline.modalities.images.form import ImageSource
from pipeline.modalities.images.options import ImageOptions
from pipeline.samples.containers import Container, Content
from pipeline.samples.label_forms import is_known
from pipeline.samples.label_values import Labelled, read_labels, without_labels
from pipeline.samples.parts import UNLABELLED_PART, VALIDATION, Parts, find_parts
from pipeline.samples.samples import UNLABELLED, LeftOut, Names, Sample, Samples
from pipeline.samples.splits import TEST, TEST_SHARE, TRAIN, draw_test

# Value of `data.label` for samples without labels.
NONE = "none"


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Rows:
    """The images of a split.

    Args:
        names: N unique names.
        values: N labels as the source has them; None for unlabelled.
        files: N paths of image files, or names of images inside larger files, for messages; texts, since
            a path takes several times the memory.
        contents: N places inside larger files; empty if images are files of their own.
    """

    names: list[str]
    values: list[Any]
    files: list[str]
    contents: list[Content] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def __add__(self, other: Rows) -> Rows:
        return Rows(
            names=self.names + other.names,
            values=self.values + other.values,
            files=self.files + other.files,
            contents=self.contents + other.contents,
        )

    def subset(self, rows: Sequence[int]) -> Rows:
        """Return some rows, in the given order."""
        return Rows(
            names=[self.names[row] for row in rows],
            values=[self.values[row] for row in rows],
            files=[self.files[row] for row in rows],
            contents=[self.contents[row] for row in rows] if self.contents else [],
        )

    def unlabelled(self) -> Rows:
        """Return the rows without their labels."""
        return Rows(names=self.names, values=[None] * len(self), files=self.files, contents=self.contents)

    def place(self, row: int) -> str:
        """Return the name of a row for messages."""
        return self.files[row]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The rows of a dataset.

    Args:
        where: the source, for messages.
        rows: split -> its rows; `train` is one of them.
        class_names: of class numbers, if the source tells them.
        container: of images inside larger files.
        root: folder that names are relative to, if images are files of their own.
        left_out: what is not read.
    """

    where: str
    rows: Mapping[str, Rows]
    class_names: Sequence[str] | None = None
    container: Container | None = None
    root: Path | None = None
    left_out: LeftOut


def parts_of(detail: str, suffix: str, options: ImageOptions) -> Parts:
    """Find the tars or tables of each split."""
    return find_parts(detail, suffix, further_files(options))


def further_files(options: ImageOptions) -> dict[str, str | None]:
    """Return the patterns of the files of each split besides training."""
    return {
        TEST: options.test_files,
        VALIDATION: options.validation_files,
        UNLABELLED_PART: options.unlabelled_files,
    }


def joined(found: Found, options: ImageOptions) -> ImageSource:
    """Return the source of a dataset's rows.

    Raises:
        DataError: a split without images, a name twice, or a wrong label.
    """
    rows = dict(found.rows)
    if UNLABELLED_PART in rows:
        rows[TRAIN] += rows.pop(UNLABELLED_PART).unlabelled()
    for split, some in rows.items():
        _require_rows(found.where, split, some)
    labelled = _labelled(found, rows, options)
    samples = {split: _samples(some, labelled.labels[split], options) for split, some in rows.items()}
    if TEST not in samples and VALIDATION in samples:
        samples[TEST] = samples.pop(VALIDATION)
    if TEST not in samples:
        chosen = _drawn(found.where, rows[TRAIN].names, labelled.labels[TRAIN])
        every = samples[TRAIN]
        samples[TRAIN], samples[TEST] = (
            Samples(every.__getitem__, np.flatnonzero(part)) for part in (~chosen, chosen)
        )
    return ImageSource(
        classes=labelled.classes,
        channels=options.channels,
        train=samples[TRAIN],
        validation=samples.get(VALIDATION),
        test=samples[TEST],
        decoder=DECODER,
        root=found.root,
        container=found.container,
        left_out=found.left_out,
    )


def _require_rows(where: str, split: str, rows: Rows) -> None:
    if not rows:
        raise DataError(f"{where}: no {split} images; expected at least one; correct data.source")
    Names.of(rows.names)  # refuses names that an index cannot have
    first: dict[str, int] = {}
    twice = []
    for row, name in enumerate(rows.names):
        before = first.setdefault(name, row)
        if before != row:
            twice.append(f"{quoted(name)} in {rows.place(before)} and {rows.place(row)}")
    if twice:
        more = f" ({len(twice):,} such names)" if len(twice) > 1 else ""
        raise DataError(
            f"{where}: {split} has two images of one name, {twice[0]}{more}; expected unique names; rename "
            "or remove one"
        )


def _labelled(found: Found, rows: Mapping[str, Rows], options: ImageOptions) -> Labelled:
    if options.label == NONE:
        return without_labels({split: len(some) for split, some in rows.items()})
    values = {split: some.values for split, some in rows.items()}
    return read_labels(
        found.where, values, lambda split, row: rows[split].place(row), names=found.class_names
    )


def _drawn(where: str, names: Sequence[str], labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which samples (N,) test, for a source without a test split."""
    classes = labels if labels.ndim == 1 else is_known(labels).astype(np.int64) - 1
    if (classes == UNLABELLED).all():
        classes = np.zeros(len(names), np.int64)
    tested = draw_test(names, classes)
    note(
        f"{where}: no test split; {counted(int(tested.sum()), 'image')}, about {TEST_SHARE:.0%} of each "
        "class, are taken for it: by the hashes of their names, so the same ones each time"
    )
    return tested


def _samples(rows: Rows, labels: NDArray[Any], options: ImageOptions) -> Samples:
    def make(row: int) -> Sample:
        label = labels[row] if labels.ndim > 1 else int(labels[row])
        content = rows.contents[row] if rows.contents else None
        file = Path(rows.files[row]) if content is None else rows.files[row]
        load = ImageFile(file, options.channels, options.max_pixels, content)
        stamp = None if content is None else content.stamp
        return Sample(rows.names[row], label, load, rows.files[row], stamp)

    return Samples(make, np.arange(len(rows)))


def refuse_all(lines: Sequence[str], expected: str, *, fault: str) -> None:
    """Refuse a dataset with faulty rows, of which the message has the first ones.

    Args:
        lines: names of the rows, e.g. "a.tar/0001 has .jpg alone".
        expected: what they should have, and what to do.
        fault: what they are, after their number, e.g. "samples without an image".

    Raises:
        DataError: there are any.
    """
    if lines:
        raise DataError(f"{len(lines):,} {fault}: {first_of(lines)}; expected {expected}")
