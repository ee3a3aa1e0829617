"""Labels of files in a table beside them: `labels.csv`, with a name and tags or numbers per row.

    name,cat,dog           name,tags             name,sharpness,noise
    a.jpg,1,0              a.jpg,cat             a.jpg,0.81,12.5
    b.jpg,1,               b.jpg,cat;dog         b.jpg,,
    c.jpg,0,1              c.jpg,                c.jpg,0.2,40

A column per tag has 1, 0, or nothing for unknown. A single column `tags` lists those that apply, separated
by semicolons. Any other number makes all columns numbers; a row without any is unlabelled. A file that the
table does not name is unlabelled. The table lies in PATH, or one lies in each split's folder; names are
relative to the table. `label_rows` has the same rules for the columns of any other table.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError, brief, counted, first_of, quoted
from pipeline.core.progress import note
from pipeline.samples.label_forms import DTYPES, LabelKind, is_known
from pipeline.samples.labels import require_class_names
from pipeline.samples.samples import UNLABELLED, Names

TABLE = "labels.csv"
_NAME, _TAGS, _SEPARATOR = "name", "tags", ";"
_TRUTHS = {"": UNLABELLED, "-1": UNLABELLED, "0": 0, "1": 1}
_MOST_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class _Row:
    """A line of a table: where it is, the file that it names, and its other cells."""

    where: str
    name: str
    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelTable:
    """The labels of a dataset's files.

    Args:
        classes: C names of tags or numbers.
        kind: of the labels.
        labels: name of a file, relative to the dataset's folder -> (C,) int8 or float32.
    """

    classes: tuple[str, ...]
    kind: LabelKind
    labels: Mapping[str, NDArray[Any]]

    def of(self, names: Names, where: object, noun: str) -> NDArray[Any]:
        """Return the labels (N, C) of files; those that the table does not name are unlabelled.

        Args:
            names: of the files.
            where: their folder, for messages.
            noun: the word for one file.
        """
        found = self.rows(names)
        missing = int((~is_known(found)).sum())
        if missing:
            note(f"{where}: {counted(missing, noun)} of {len(names):,} without a label in {TABLE}")
        return found

    def rows(self, names: Iterable[str]) -> NDArray[Any]:
        """Return the labels (N, C) of these names; those that the table does not have are unlabelled."""
        missing = np.nan if self.kind == "numbers" else UNLABELLED
        unknown = np.full(len(self.classes), missing, DTYPES[self.kind])
        return np.stack([self.labels.get(name, unknown) for name in names])

    def require_files(self, names: Sequence[str]) -> None:
        """Refuse a row of a file that is not there.

        Raises:
            DataError: names the first such file.
        """
        absent = sorted(set(self.labels).difference(names))
        if absent:
            raise DataError(
                f"{TABLE} names {first_of(absent)}, {counted(len(absent), 'file')} that the folder lacks; "
                "expected names of files, relative to the table; correct the table"
            )


def has_table(root: Path, splits: Sequence[str]) -> bool:
    """Whether a folder, or the folder of one of its splits, has a table of labels."""
    return any((root / split / TABLE).is_file() for split in ("", *splits))


def read_tables(root: Path, splits: Sequence[str]) -> LabelTable:
    """Read the table of a dataset, or of each of its splits.

    Args:
        root: folder of the dataset.
        splits: names of the splits' folders; empty if the folder is not divided.

    Raises:
        DataError: a table is missing, damaged, or has a wrong cell; or two tables have other columns.
    """
    if (root / TABLE).is_file():
        tables = {"": root / TABLE}
    else:
        tables = {f"{split}/": root / split / TABLE for split in splits}
    columns: tuple[str, ...] | None = None
    rows: list[_Row] = []
    for prefix, path in tables.items():
        found, some = _read(path, prefix)
        if columns is not None and found != columns:
            raise DataError(
                f"{path}: has the columns {first_of(found, 8)}; expected those of the first table, "
                f"{first_of(columns, 8)}; correct it"
            )
        columns = found
        rows += some
    _require_unique(rows)
    return _table(root / TABLE, columns or (), rows)


def label_rows(
    where: object, columns: tuple[str, ...], rows: Iterable[tuple[str, Sequence[Any] | None]]
) -> tuple[tuple[str, ...], NDArray[Any]]:
    """Return the names of tags or numbers (C), and the labels (N, C) int8 or float32, of a table's rows.

    Args:
        where: the table, for errors.
        columns: of the labels; a single one named `tags`, or with lists in it, lists those that apply.
        rows: the place of each row, for errors, and its cells: texts, numbers, truth values, lists of tags,
            or None; None for an unlabelled row.

    Raises:
        DataError: a cell is none of these, or a name of a tag is unusable.

    >>> classes, labels = label_rows("a.csv", ("tags",), [("line 2", ["b;a"]), ("line 3", None)])
    >>> classes, labels.tolist()
    (('a', 'b'), [[1, 1], [-1, -1]])
    """
    given = list(rows)
    lists = any(isinstance(cell, list | tuple) for _, cells in given for cell in cells or ())
    if lists and len(columns) > 1:
        raise DataError(
            f"{where}: a list in one of {counted(len(columns), 'label column')}; expected one column of "
            "lists, or 1, 0 or a number in each; correct data.label"
        )
    numbered = [
        _Row(place, str(number), tuple(_cell(cell, lists=lists) for cell in cells))
        for number, (place, cells) in enumerate(given)
        if cells is not None
    ]
    table = _table(where, (_TAGS,) if lists else columns, numbered)
    return table.classes, table.rows(map(str, range(len(given))))


def _cell(value: Any, *, lists: bool) -> str:
    """Return a cell as a table of text would have it."""
    if isinstance(value, list | tuple):
        if divided := [tag for tag in map(str, value) if _SEPARATOR in tag]:
            raise DataError(f"tag {quoted(divided[0])} has a {_SEPARATOR!r}; expected none; rename it")
        return _SEPARATOR.join(map(str, value))
    if value is None or value != value or (lists and value == ""):
        return ""
    if isinstance(value, bool | np.bool_):
        return str(int(value))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _table(where: object, columns: tuple[str, ...], rows: Sequence[_Row]) -> LabelTable:
    return _lists(where, rows) if columns == (_TAGS,) else _columns(columns, rows)


def _read(path: Path, prefix: str) -> tuple[tuple[str, ...], list[_Row]]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"larger than {_MOST_BYTES:,} bytes")
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, strict=True)
            header = [cell.strip() for cell in next(lines, [])]
            rows = list(_rows(path, prefix, header, lines))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: not a readable table ({brief(error)}); write it again") from None
    if len(header) < 2 or header[0] != _NAME:
        raise DataError(
            f"{path}: begins with the columns {quoted(header[:4])}; expected {_NAME}, then one column per "
            f"tag or number, or one named {_TAGS}; correct its first line"
        )
    require_class_names(path, header[1:])
    return tuple(header[1:]), rows


def _rows(path: Path, prefix: str, header: Sequence[str], lines: Iterator[list[str]]) -> Iterator[_Row]:
    for number, cells in enumerate(lines, 2):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise DataError(
                f"{path}, line {number}: {counted(len(cells), 'cell')}; expected {len(header)}, as in the "
                "first line; correct it"
            )
        name, *others = (cell.strip() for cell in cells)
        yield _Row(f"{path}, line {number}", prefix + name, tuple(others))


def _require_unique(rows: Sequence[_Row]) -> None:
    seen: set[str] = set()
    for row in rows:
        if row.name in seen:
            raise DataError(f"{row.where}: {quoted(row.name)} again; expected one row per file; remove one")
        seen.add(row.name)


def _lists(where: object, rows: Sequence[_Row]) -> LabelTable:
    """Return the tags that rows list in their only cell."""
    each = [[tag.strip() for tag in row.cells[0].split(_SEPARATOR) if tag.strip()] for row in rows]
    classes = tuple(sorted({tag for tags in each for tag in tags}))
    require_class_names(where, classes)
    places = {tag: place for place, tag in enumerate(classes)}
    labels = {}
    for row, tags in zip(rows, each, strict=True):
        labels[row.name] = np.zeros(len(classes), np.int8)
        labels[row.name][[places[tag] for tag in tags]] = 1
    return LabelTable(classes=classes, kind="tags", labels=labels)


def _columns(classes: tuple[str, ...], rows: Sequence[_Row]) -> LabelTable:
    """Return the truth values, or the numbers, of rows with a cell per column."""
    if all(cell in _TRUTHS for row in rows for cell in row.cells):
        truths = {row.name: np.array([_TRUTHS[cell] for cell in row.cells], np.int8) for row in rows}
        return LabelTable(classes=classes, kind="tags", labels=truths)
    numbers = {row.name: _numbers(row, classes) for row in rows}
    return LabelTable(classes=classes, kind="numbers", labels=numbers)


def _numbers(row: _Row, classes: Sequence[str]) -> NDArray[np.float32]:
    if not any(row.cells):
        return np.full(len(classes), np.nan, np.float32)
    for name, cell in zip(classes, row.cells, strict=True):
        try:
            finite = np.isfinite(np.float32(cell))
        except ValueError:
            finite = np.False_
        if not finite:
            raise DataError(
                f"{row.where}: {name} is {quoted(cell)}; expected a finite number (or, in a table of tags, "
                "1, 0 or nothing in every row); correct it"
            )
    return np.array(row.cells, np.float32)
