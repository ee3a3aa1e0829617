"""Tables of texts: CSV, TSV, JSON lines, Parquet, and folders that the library `datasets` saved.

PATH is one file, whose test split is drawn, or a folder with a file for each split: train, test, and
optionally validation (val, valid, dev) and unlabelled (unlabeled). Files may be parts of a split, e.g.
train-00000-of-00002.parquet. Rows are named by a column, or by the digest of their content and its
occurrence: then rows may be added, removed and reordered, and no other row's views change.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError, counted, did_you_mean, first_of, quoted
from pipeline.core.progress import note
from pipeline.modalities.text.form import TextSource
from pipeline.modalities.text.options import TextOptions, label_columns
from pipeline.modalities.text.sources.readers import read_arrow, read_json_lines
from pipeline.modalities.text.words import packed, pieces_of
from pipeline.samples.cells import label_of_cell, text_of_cell
from pipeline.samples.label_forms import is_known
from pipeline.samples.label_tables import label_rows
from pipeline.samples.labels import require_class_names
from pipeline.samples.parts import SPLIT_WORDS, UNLABELLED_PART, VALIDATION
from pipeline.samples.samples import NO_CLASSES, UNLABELLED, LeftOut, Sample, Samples
from pipeline.samples.splits import TEST, TRAIN, draw_test, tell_drawn_test
from pipeline.samples.tables import LINES, Columns, read_delimited

_PART = re.compile(r"(?P<split>.+?)(?:-\d+-of-\d+)?")
_SHOWN = 3
Read = Callable[[Path, TextOptions], Columns]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The rows of a split.

    Args:
        texts: per row, its one or two texts.
        labels: names of classes, or the cells of `columns`; None for unlabelled.
        names: values of the id column, or None without one.
        places: per row, file and line for errors.
        columns: of tags or numbers; empty for one class per row.
    """

    texts: list[tuple[str, ...]]
    labels: list[Any]
    names: list[str] | None
    places: list[str]
    columns: tuple[str, ...] = ()

    def __add__(self, other: Rows) -> Rows:
        names = None if self.names is None or other.names is None else self.names + other.names
        return Rows(
            texts=self.texts + other.texts,
            labels=self.labels + other.labels,
            names=names,
            places=self.places + other.places,
            columns=self.columns or other.columns,
        )


def open_csv(detail: str, options: TextOptions) -> TextSource:
    """Open comma-separated values with a header line, quoted as in RFC 4180."""
    return _open(detail, options, "csv", lambda path, _: read_delimited(path, delimiter=","))


def open_tsv(detail: str, options: TextOptions) -> TextSource:
    """Open tab-separated values with a header line; quotes are ordinary characters, as in GLUE."""
    return _open(detail, options, "tsv", lambda path, _: read_delimited(path, delimiter="\t"))


def open_jsonl(detail: str, options: TextOptions) -> TextSource:
    """Open a file with one JSON object per line."""
    return _open(detail, options, "jsonl", read_json_lines)


def open_parquet(detail: str, options: TextOptions) -> TextSource:
    """Open Parquet files; needs pyarrow."""
    return _open(detail, options, "parquet", read_arrow)


def open_datasets(detail: str, options: TextOptions) -> TextSource:
    """Open a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote; needs pyarrow."""
    root = Path(detail)
    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder; expected one written by save_to_disk; correct data.source"
        )
    if (root / "state.json").is_file():
        return _source(root, {TRAIN: _rows(root, options, read_arrow(root, options))}, LeftOut())
    folders = {path.name: path for path in sorted(root.iterdir()) if (path / "state.json").is_file()}
    found = {SPLIT_WORDS[name]: path for name, path in folders.items() if name in SPLIT_WORDS}
    left_out = LeftOut(unused=tuple(name for name in folders if name not in SPLIT_WORDS))
    if TRAIN not in found:
        raise DataError(
            f"{root}: has the splits {sorted(folders) or 'none'}; expected train, written by save_to_disk; "
            f"correct "
            "data.source"
        )
    return _source(
        root,
        {split: _rows(path, options, read_arrow(path, options)) for split, path in found.items()},
        left_out,
    )


def _open(detail: str, options: TextOptions, suffix: str, read: Read) -> TextSource:
    root = Path(detail)
    if root.is_file():
        return _source(root, {TRAIN: _rows(root, options, read(root, options))}, LeftOut())
    if not root.is_dir():
        raise DataError(
            f"{root}: no such file or folder; expected PATH.{suffix}, or a folder with train.{suffix} and "
            f"test.{suffix}; correct data.source"
        )
    files: dict[str, list[Path]] = defaultdict(list)
    unused = []
    for path in sorted(root.iterdir()):
        is_one = path.suffix.lower() == f".{suffix}" and not path.is_dir()
        split = split_of(path) if is_one else None
        files[split].append(path) if split else unused.append(path.name)
    if TRAIN not in files or not {TEST, VALIDATION} & set(files):
        there = first_of([path.name for some in files.values() for path in some] + unused) or "nothing"
        raise DataError(
            f"{root}: has {there}; expected train.{suffix} and test.{suffix}, and optionally "
            f"validation.{suffix} and "
            f"unlabelled.{suffix}; name one file to have its test split drawn: "
            f"{suffix}:{root}/FILE.{suffix}"
        )
    rows = {
        split: sum((_rows(path, options, read(path, options)) for path in paths), _NONE)
        for split, paths in files.items()
    }
    return _source(root, rows, LeftOut(unused=tuple(unused)))


def split_of(path: Path) -> str | None:
    """Return the split that a file's name tells, or None.

    >>> split_of(Path("train-00000-of-00002.parquet")), split_of(Path("dev.csv")), split_of(Path("a.csv"))
    ('train', 'validation', None)
    """
    found = _PART.fullmatch(path.stem)
    return SPLIT_WORDS.get(found["split"]) if found else None


_NONE = Rows(texts=[], labels=[], names=[], places=[])


# Columns to rows.


def _rows(path: Path, options: TextOptions, columns: Columns) -> Rows:
    """Return the rows of a file.

    Raises:
        DataError: a column is missing, or rows without text.
    """
    lines = columns.pop(LINES, None)
    texts = [name for name in (options.text, options.text_pair) if name is not None]
    for key, name in (("text", options.text), ("text_pair", options.text_pair), ("id", options.id)):
        if name is not None and name not in columns:
            raise DataError(
                f"{path}: no column {name!r}; found {first_of([repr(one) for one in columns]) or 'none'}; "
                f"set "
                f"data.{key} to the right one{did_you_mean(name, columns)}"
            )
    count = len(columns[options.text])
    places = (
        [f"{path}:{line}" for line in lines] if lines else [f"{path}: row {row}" for row in range(count)]
    )
    many, labels = _labels(path, options, columns, places)
    found = Rows(
        texts=list(zip(*(_texts(places, name, columns[name]) for name in texts), strict=True)),
        labels=labels,
        names=None if options.id is None else _texts(places, options.id, columns[options.id]),
        places=places,
        columns=many,
    )
    _require_words(found)
    return found


def _labels(
    path: Path, options: TextOptions, columns: Columns, places: Sequence[str]
) -> tuple[tuple[str, ...], list[Any]]:
    """Return the columns of tags or numbers, if labels are such, and the labels of all rows.

    Raises:
        DataError: some of several columns are missing.
    """
    names = label_columns(options.label)
    there = [name for name in names if name in columns]
    if not there:
        _tell_unlabelled(path, names, columns)
        return (), [None] * len(places)
    if absent := [name for name in names if name not in columns]:
        raise DataError(
            f"{path}: no column {absent[0]!r}, which data.label lists; expected all of them, or none in a "
            f"table without labels; correct one{did_you_mean(absent[0], columns)}"
        )
    first = columns[names[0]]
    if isinstance(options.label, str) and not any(isinstance(value, list | tuple) for value in first):
        return (), [
            label_of_cell(place, names[0], value) for place, value in zip(places, first, strict=True)
        ]
    cells = list(zip(*(columns[name] for name in names), strict=True))
    return names, [None if all(value is None for value in row) else row for row in cells]


def _tell_unlabelled(path: Path, names: Sequence[str], columns: Columns) -> None:
    """Tell that a file has no column of labels, so that a misspelt name is seen."""
    if names and split_of(path) != UNLABELLED_PART:
        note(
            f"{path}: no column {names[0]!r}, so its rows are unlabelled; found "
            f"{first_of([repr(one) for one in columns])}{did_you_mean(names[0], columns)}"
        )


def _texts(places: Sequence[str], column: str, values: Sequence[Any]) -> list[str]:
    return [text_of_cell(place, column, value) for place, value in zip(places, values, strict=True)]


def _require_words(rows: Rows) -> None:
    """Refuse texts without words; all of them are counted."""
    empty = [
        place
        for place, texts in zip(rows.places, rows.texts, strict=True)
        if any(text.isspace() or not text or not pieces_of(text) for text in texts)
    ]
    if empty:
        raise DataError(
            f"{empty[0]}: no word in the text{_more(empty)}; expected at least one in every row; remove "
            f"them, or "
            "fill them"
        )


def _more(places: Sequence[str]) -> str:
    return f" ({len(places):,} such rows: {first_of(places, _SHOWN)})" if len(places) > 1 else ""


def _source(root: Path, rows: Mapping[str, Rows], left_out: LeftOut) -> TextSource:
    """Return the source of a table's splits; draw a test split if it has none."""
    splits = {split: some for split, some in rows.items() if split != UNLABELLED_PART}
    if UNLABELLED_PART in rows:
        more = rows[UNLABELLED_PART]
        splits[TRAIN] += Rows(
            texts=more.texts, labels=[None] * len(more.labels), names=more.names, places=more.places
        )
    columns = next((some.columns for some in splits.values() if some.columns), ())
    if columns:
        classes, labels = _many(root, columns, splits)
    else:
        classes = _classes(root, splits[TRAIN].labels)
        labels = {split: _indices(some, classes) for split, some in splits.items()}
    samples = {split: _samples(some, labels[split]) for split, some in splits.items()}
    if TEST not in samples and VALIDATION in samples:
        samples[TEST] = samples.pop(VALIDATION)
    if TEST not in samples:
        samples[TRAIN], samples[TEST] = drawn(root, samples[TRAIN])
    return TextSource(
        classes=classes,
        train=samples[TRAIN],
        test=samples[TEST],
        validation=samples.get(VALIDATION),
        left_out=left_out,
        forks=True,
    )


def drawn(root: Path, samples: Samples) -> tuple[Samples, Samples]:
    """Return training and test samples of a source without a test split."""
    names = [sample.name for sample in samples]
    labels = np.array([sample.label for sample in samples])
    kinds = labels
    if labels.ndim > 1 or not is_known(labels).any():
        # Tags and numbers divide no classes, and without any label every row counts alike.
        kinds = np.where(is_known(labels) | ~is_known(labels).any(), 0, UNLABELLED)
    tested = draw_test(names, kinds)
    tell_drawn_test(root, tested, "text")
    train, test = (samples.subset(np.flatnonzero(part)) for part in (~tested, tested))
    return train, test


def _classes(root: Path, labels: Sequence[str | None]) -> tuple[str, ...]:
    """Return the class names in order: numbers by value, other names by their characters."""
    names = {label for label in labels if label is not None}
    if not names:
        return NO_CLASSES
    numbers = all(re.fullmatch(r"\d{1,9}", name) for name in names)
    classes = tuple(sorted(names, key=int) if numbers else sorted(names))
    require_class_names(root, classes)
    return classes


def _many(
    root: Path, columns: tuple[str, ...], splits: Mapping[str, Rows]
) -> tuple[tuple[str, ...], dict[str, NDArray[Any]]]:
    """Return the names of tags or numbers, and the labels (N, C) of each split."""
    every = sum(splits.values(), _NONE)
    classes, labels = label_rows(root, columns, zip(every.places, every.labels, strict=True))
    ends = np.cumsum([len(some.labels) for some in splits.values()])[:-1]
    return classes, dict(zip(splits, np.split(labels, ends), strict=True))


def _indices(rows: Rows, classes: Sequence[str]) -> NDArray[np.int64]:
    """Return the classes (N,) of a split's rows.

    Raises:
        DataError: a label is unknown in training.
    """
    places = {name: label for label, name in enumerate(classes)}
    for place, label in zip(rows.places, rows.labels, strict=True):
        if label is not None and label not in places:
            raise DataError(
                f"{place}: label {quoted(label)} is no class of the training rows "
                f"({counted(len(places), 'class')}); "
                f"expected one of these; correct it{did_you_mean(label, classes)}"
            )
    return np.array([UNLABELLED if label is None else places[label] for label in rows.labels], np.int64)


def _samples(rows: Rows, labels: NDArray[Any]) -> Samples:
    """Return the samples of a split with its labels, (N,) or (N, C).

    Raises:
        DataError: an id occurs twice.
    """
    contents = [packed(*texts) for texts in rows.texts]
    names = _by_content(contents) if rows.names is None else _unique(rows)

    def make(row: int) -> Sample:
        label = labels[row] if labels.ndim > 1 else int(labels[row])
        return Sample(names[row], label, lambda: contents[row])

    return Samples(make, np.arange(len(contents)))


def _by_content(contents: Sequence[NDArray[np.uint8]]) -> list[str]:
    """Name rows by digest and occurrence: equal texts are told apart by their order alone."""
    seen: Counter[str] = Counter()
    names = []
    for content in contents:
        digest = hashlib.blake2b(content.tobytes(), digest_size=12).hexdigest()
        names.append(f"{digest}#{seen[digest]}")
        seen[digest] += 1
    return names


def _unique(rows: Rows) -> list[str]:
    names = rows.names or []
    first: dict[str, str] = {}
    twice = []
    for name, place in zip(names, rows.places, strict=True):
        if name in first:
            twice.append(f"{quoted(name)} at {first[name]} and {place}")
        first.setdefault(name, place)
    if twice:
        raise DataError(
            f"id {twice[0]}: occurs twice{_more(twice)}; expected a unique id for each row; correct them, "
            f"or leave "
            "data.id out, to name rows by their content"
        )
    empty = next((place for name, place in zip(names, rows.places, strict=True) if not name.strip()), None)
    if empty is not None:
        raise DataError(
            f"{empty}: an empty id; expected a unique id for each row; fill it, or leave data.id out"
        )
    return names
