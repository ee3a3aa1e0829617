"""Tables of sound files: a row has a path and a label, perhaps a split and a group, e.g. a speaker.

One table for all splits, or Hugging Face's AudioFolder: a metadata.csv in the folder, or one per split.
Classes are the labels in the order of their names. An empty label means unlabelled. Where `data.label`
lists columns, labels are tags or numbers, by the rules of `samples/label_tables.py`.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError, counted, did_you_mean, first_of, quoted
from pipeline.core.hashing import sample_key
from pipeline.core.progress import note
from pipeline.modalities.audio.decoding import AUDIO_FILES, SoundFile, decoder
from pipeline.modalities.audio.form import AudioSource
from pipeline.modalities.audio.options import AudioOptions
from pipeline.samples.cells import (
    label_of_cell,
    require_fields,
    require_regular,
    require_unique_columns,
)
from pipeline.samples.files import find_files
from pipeline.samples.label_forms import is_known
from pipeline.samples.label_tables import label_rows
from pipeline.samples.labels import require_class_names
from pipeline.samples.samples import NO_CLASSES, UNLABELLED, LeftOut, Sample, Samples
from pipeline.samples.splits import (
    TEST,
    TEST_SHARE,
    TRAIN,
    VALIDATION,
    draw_test,
    find_splits,
    tell_drawn_test,
)

# The usual names of a column of paths; the first is AudioFolder's.
PATHS = ("file_name", "path", "file", "filename")
SPLIT = "split"
_VALIDATION = VALIDATION[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of a table.

    Args:
        name: path as the table has it; the sample's stable name.
        file: the sound file.
        place: file and line, for errors.
        label: name of its class, "" for unlabelled; or the cells of the columns that `data.label` lists.
        split: name of its split, "" if the table has none.
        group: text of the column `data.group`, "" if there is none.
    """

    name: str
    file: Path
    place: str
    label: str | tuple[str, ...]
    split: str
    group: str


def open_table(detail: str, options: AudioOptions) -> AudioSource:
    """Open a table of sound files; paths are relative to the table's folder.

    Without a column `split`, about a fifth of each class is the test split. With `data.group`, a fifth of
    the groups is, and another fifth validates.

    Raises:
        DataError: no such table, a missing column, or an unusable row.
    """
    path = Path(detail)
    return _source(path, _read(path, path.parent, options), options)


def open_metadata(root: Path, name: str, options: AudioOptions) -> AudioSource:
    """Open ROOT/metadata.csv, or one in each split's folder.

    Raises:
        DataError: a missing column, or an unusable row.
    """
    if (root / name).is_file():
        rows = _read(root / name, root, options)
        return replace(_source(root / name, rows, options), left_out=_unnamed(root, rows))
    names = find_splits(root, [folder.name for folder in root.iterdir() if (folder / name).is_file()])
    if names is None:
        raise DataError(
            f"{root}: {TRAIN}/{name} and no table of a test split; expected {TEST}/{name} or val/{name} "
            f"beside it; add it, or one {name} in {root}"
        )
    splits = [TRAIN, names.test, *([names.validation] if names.validation else [])]
    rows = [
        Row(
            name=f"{split}/{row.name}",
            file=row.file,
            place=row.place,
            label=row.label,
            split=TEST if split == names.test else split,
            group=row.group,
        )
        for split in splits
        for row in _read(root / split / name, root / split, options)
    ]
    return replace(_source(root, rows, options), left_out=_unnamed(root, rows))


def _unnamed(root: Path, rows: Sequence[Row]) -> LeftOut:
    """Count the sound files below a folder that no row names, by the folder in which they lie."""
    named = {os.path.realpath(row.file) for row in rows}
    found = find_files(root, ".", AUDIO_FILES).names
    missed = [name for name in found if os.path.realpath(root / name) not in named]
    return LeftOut(unlisted=Counter(f"{root / Path(name).parent}/" for name in missed))


def _read(path: Path, root: Path, options: AudioOptions) -> list[Row]:
    """Read the rows of one table."""
    if path.exists() and not path.is_dir():
        require_regular(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.reader(file, strict=True)
            columns = next(table, [])
            place = _require_columns(path, columns, options)
            return [
                _row(f"{path}: line {table.line_num}", columns, cells, root, place, options)
                for cells in table
                if cells
            ]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected a table; correct data.source") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path}: not a readable table ({error}); expected comma-separated values in UTF-8"
        ) from None


def _require_columns(path: Path, columns: Sequence[str], options: AudioOptions) -> str:
    """Return the name of the column of paths."""
    require_unique_columns(path, columns)
    place = next((name for name in PATHS if name in columns), None)
    if place is None:
        raise DataError(
            f"{path}: has the columns {columns[:12]}; expected one of {', '.join(PATHS)}; rename one"
        )
    labels = (options.label,) if isinstance(options.label, str) else options.label
    for key, name in (*(("label", label) for label in labels), ("group", options.group)):
        if name is not None and name not in columns:
            raise DataError(
                f"{path}: has no column {name!r}, which data.{key} names; expected one of "
                f"{', '.join(columns[:12])}{did_you_mean(name, columns)}"
            )
    return place


def _row(
    where: str, columns: Sequence[str], cells: list[str], root: Path, place: str, options: AudioOptions
) -> Row:
    require_fields(where, cells, columns)
    values = {name: text.strip() for name, text in zip(columns, cells, strict=True)}
    name = values[place]
    if not name:
        raise DataError(f"{where} has no {place}; expected a path; add it")
    return Row(
        name=name,
        file=root / name,
        place=where,
        label=values[options.label]
        if isinstance(options.label, str)
        else tuple(values[column] for column in options.label),
        split=values.get(SPLIT, ""),
        group="" if options.group is None else values[options.group],
    )


def _source(origin: Path, rows: list[Row], options: AudioOptions) -> AudioSource:
    if not rows:
        raise DataError(f"{origin}: no rows; expected one per sound file")
    classes, labels = _labels(origin, rows, options)
    splits = _splits(origin, rows, labels, options)

    def samples(split: str) -> Samples:
        def make(place: int) -> Sample:
            row = rows[place]
            label = labels[place] if labels.ndim > 1 else int(labels[place])
            return Sample(row.name, label, SoundFile(row.file), str(row.file))

        return Samples(make, splits[split])

    return AudioSource(
        classes=classes,
        train=samples(TRAIN),
        validation=samples(_VALIDATION) if len(splits[_VALIDATION]) else None,
        test=samples(TEST),
        decoder=decoder(),
        forks=True,
    )


def _labels(
    origin: Path, rows: Sequence[Row], options: AudioOptions
) -> tuple[tuple[str, ...], NDArray[Any]]:
    """Return the names of classes, tags or numbers, and the labels (N,) or (N, C)."""
    if not options.label:
        return NO_CLASSES, np.full(len(rows), UNLABELLED)
    if not isinstance(options.label, str):
        return label_rows(origin, options.label, ((row.place, row.label) for row in rows))
    named = [label_of_cell(row.place, options.label, row.label) for row in rows]
    classes = tuple(sorted({name for name in named if name is not None}))
    require_class_names(origin, classes)
    numbers = {name: number for number, name in enumerate(classes)}
    labels = np.array([UNLABELLED if name is None else numbers[name] for name in named])
    return classes or NO_CLASSES, labels


def _splits(
    origin: Path, rows: Sequence[Row], labels: NDArray[Any], options: AudioOptions
) -> dict[str, NDArray[np.int64]]:
    """Return the places of the rows of each split: train, val (may be empty) and test."""
    if any(row.split for row in rows):
        names = [_named_split(origin, row) for row in rows]
    elif options.group is not None:
        held = _held_out_groups(origin, {row.group for row in rows}, options.group)
        names = [held.get(row.group, TRAIN) for row in rows]
    else:
        known = is_known(labels)
        is_divided = labels.ndim == 1 and known.any()
        # Tags and numbers divide no classes, and without any label every clip counts alike.
        kinds = labels if is_divided else np.where(known | ~known.any(), 0, UNLABELLED)
        tested = draw_test([row.name for row in rows], kinds)
        tell_drawn_test(f"{origin} (no column {SPLIT!r})", tested, "clip")
        names = [TEST if test else TRAIN for test in tested.tolist()]
    return {split: np.flatnonzero(np.array(names) == split) for split in (TRAIN, _VALIDATION, TEST)}


def _named_split(origin: Path, row: Row) -> str:
    """Return the split that a row names: train, val or test."""
    if row.split in VALIDATION:
        return _VALIDATION
    if row.split not in (TRAIN, TEST):
        raise DataError(
            f"{origin}: {quoted(row.name)} is in the split {quoted(row.split)}; expected {TRAIN}, {TEST} "
            f"or {_VALIDATION}; correct it"
        )
    return row.split


def _held_out_groups(origin: Path, groups: Collection[str], column: str) -> dict[str, str]:
    """Return the split of each held-out group: a fifth to test on and as many to validate on, at least one.

    Groups are ordered by the hashes of their names, so the same ones are held out each time.

    Raises:
        DataError: fewer than three groups.
    """
    if len(groups) < 3:
        raise DataError(
            f"{origin}: {counted(len(groups), 'group')} in column {column!r}; expected at least three, to "
            "train, validate and test on different ones; add a column split, or set data.group to null"
        )
    ordered = sorted(groups, key=lambda name: (sample_key(name), name))
    count = max(1, round(TEST_SHARE * len(ordered)))
    tested, validated = ordered[:count], ordered[count : 2 * count]
    note(
        f"{origin}: held-out groups of column {column!r}: to test on {first_of(tested)}; to validate on "
        f"{first_of(validated)}"
    )
    return dict.fromkeys(tested, TEST) | dict.fromkeys(validated, _VALIDATION)
