"""Labels as tables, text files and JSON have them, turned into the arrays of a split.

    values of all rows                              labels
    3, 0, None; "3", "0", ""                        index; classes by number, as in an .npz
    "cat", "dog", None                              index; classes by name
    ["cat", "dog"], [], None                        tags; classes by name
    [1, 0], [0, -1]; {"cat": 1, "dog": 0}           tags; -1 is unknown
    0.81; [0.81, 12.5]; {"sharpness": 0.81}         numbers

One value decides for all, so that a single 0.5 makes numbers of a column of 0 and 1. None, an empty text,
-1 and NaN mean unlabelled.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError, counted, first_of, quoted
from pipeline.samples.labels import numbered_classes, require_class_names, require_known_labels
from pipeline.samples.samples import UNLABELLED
from pipeline.samples.splits import TRAIN

_WHOLE = re.compile(r"-?\d{1,9}")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")

Values = Mapping[str, Sequence[Any]]  # split -> the value of each of its rows
Arrays = dict[str, NDArray[Any]]  # split -> (N,) or (N, C), see `label_forms.py`


@dataclass(frozen=True, slots=True)
class Labelled:
    """The labels of a dataset.

    Args:
        classes: C names of classes, tags or numbers.
        labels: split -> (N,) int64, (N, C) int8 or (N, C) float32.
    """

    classes: tuple[str, ...]
    labels: Arrays


def read_labels(
    where: object, values: Values, place: Callable[[str, int], str], *, names: Sequence[str] | None = None
) -> Labelled:
    """Return the labels of all splits; `train` is one of them.

    Args:
        where: the source, for errors.
        values: as in the table of this module's first lines.
        place: returns the place of a split's row, for errors.
        names: of classes, or of tags or numbers in lists, if the source tells them.

    Raises:
        DataError: values of several kinds, or a label without a class; the message names the first row.
    """
    plain = {split: [_plain(value) for value in some] for split, some in values.items()}
    read = _Reader(where, plain, place, names)
    known = [value for some in plain.values() for value in some if value is not None]
    if all(value == UNLABELLED for value in known):
        return without_labels({split: len(some) for split, some in values.items()}, names)
    if any(isinstance(value, dict) for value in known):
        return read.by_name()
    if any(isinstance(value, list) for value in known):
        texts = any(isinstance(entry, str) for value in known if isinstance(value, list) for entry in value)
        return read.lists_of_names() if texts else read.vectors()
    if _are_numbers(known):
        return read.numbers()
    return read.indices() if names is not None or _are_whole(known) else read.named()


def without_labels(counts: Mapping[str, int], names: Sequence[str] | None = None) -> Labelled:
    """Return the labels of a dataset in which no sample has one: unknown numbers, e.g. for embeddings.

    Args:
        counts: split -> number of its rows.
        names: of classes, if the source tells them; then rows are unlabelled ones of these classes.
    """
    if names is not None:
        return Labelled(tuple(names), {s: np.full(n, UNLABELLED, np.int64) for s, n in counts.items()})
    unknown = {split: np.full((count, 1), np.nan, np.float32) for split, count in counts.items()}
    return Labelled(("unlabelled",), unknown)


def _plain(value: Any) -> Any:
    """Return None, int, float, str, list or dict; None for unlabelled."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, str):
        value = value.strip()
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, tuple):
        return list(value)
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    return value


def _are_whole(known: Iterable[Any]) -> bool:
    return all(
        isinstance(value, int)
        or (isinstance(value, float) and value.is_integer())
        or (isinstance(value, str) and _WHOLE.fullmatch(value))
        for value in known
    )


def _are_numbers(known: Sequence[Any]) -> bool:
    """Whether scalars are numbers and not all of them whole."""
    numbers = all(
        isinstance(value, int | float) or (isinstance(value, str) and _NUMBER.fullmatch(value))
        for value in known
    )
    return numbers and not _are_whole(known)


@dataclass(frozen=True, slots=True)
class _Reader:
    """The rows of all splits, as plain values; each method reads them as one kind of label."""

    where: object
    values: Values
    place: Callable[[str, int], str]
    names: Sequence[str] | None

    def indices(self) -> Labelled:
        """Read class numbers."""
        labels: Arrays = {split: self._whole(split) for split in self.values}
        if self.names is None:
            classes, shifted = numbered_classes(self.where, labels)
            labels = dict(shifted)
        else:
            classes = tuple(self.names)
            require_class_names(self.where, classes)
        require_known_labels(self.where, classes, labels)
        return Labelled(classes, labels)

    def _whole(self, split: str) -> NDArray[np.int64]:
        found = np.full(len(self.values[split]), UNLABELLED, np.int64)
        for row, value in enumerate(self.values[split]):
            if value is None:
                continue
            if not _are_whole([value]) or int(value) < UNLABELLED:
                raise self._wrong(split, row, value, "a class number from 0, or -1 for unlabelled")
            found[row] = int(value)
        return found

    def named(self) -> Labelled:
        """Read class names; those of the training rows are the classes, numbers by value."""
        every = (value for some in self.values.values() for value in some)
        known = self._known(self.values[TRAIN]) or self._known(every)
        classes = tuple(sorted(known))
        require_class_names(self.where, classes)
        places = {name: label for label, name in enumerate(classes)}
        labels: Arrays = {}
        for split, some in self.values.items():
            unknown = [row for row, value in enumerate(some) if self._is_unknown(value, places)]
            if unknown:
                raise DataError(
                    f"{self.place(split, unknown[0])}: label {quoted(some[unknown[0]])} is no class of "
                    f"the training rows ({counted(len(unknown), 'such row')}); expected one of their "
                    f"{counted(len(classes), 'class')}; correct it"
                )
            labels[split] = np.array([places.get(str(value), UNLABELLED) for value in some], np.int64)
        return Labelled(classes, labels)

    def _known(self, values: Iterable[Any]) -> set[str]:
        return {str(value) for value in values if value not in (None, UNLABELLED)}

    def _is_unknown(self, value: Any, places: Mapping[str, int]) -> bool:
        return value not in (None, UNLABELLED) and (
            isinstance(value, list | dict) or str(value) not in places
        )

    def numbers(self) -> Labelled:
        """Read one number per row."""
        names = self.names or ("0",)
        return self._rows(names, lambda value: [float(value)], "a number", np.float32)

    def vectors(self) -> Labelled:
        """Read lists of truth values or numbers, all of one length."""
        some = next(value for rows in self.values.values() for value in rows if isinstance(value, list))
        names = self.names if self.names is not None else tuple(map(str, range(len(some))))
        if self.names is not None and not self._are_truths(len(names)):
            return self.lists_of_names()
        dtype = np.int8 if self._are_truths(len(names)) else np.float32
        expected = f"a list of {len(names)} numbers, as in other rows, or names of tags"
        return self._rows(names, list, expected, dtype)

    def _are_truths(self, count: int) -> bool:
        """Whether all lists have one truth value for each of C names; lists of class numbers have not."""
        lists = [value for some in self.values.values() for value in some if isinstance(value, list)]
        return all(len(value) == count and set(value) <= {-1, 0, 1} for value in lists)

    def lists_of_names(self) -> Labelled:
        """Read lists of the tags that apply: names, or numbers of declared names."""
        if self.names is None:
            lists = (value for some in self.values.values() for value in some if isinstance(value, list))
            names = tuple(sorted({str(entry) for value in lists for entry in value}))
        else:
            names = tuple(self.names)
        places: dict[Any, int] = {name: place for place, name in enumerate(names)}
        if self.names is not None:
            places |= {place: place for place in range(len(names))}

        def truths(value: Any) -> list[int]:
            if not isinstance(value, list):
                raise TypeError
            row = [0] * len(names)
            for entry in value:
                row[places[entry]] = 1
            return row

        return self._rows(names, truths, "a list of tags", np.int8)

    def by_name(self) -> Labelled:
        """Read a value per name; None is unknown."""
        dicts = [value for some in self.values.values() for value in some if isinstance(value, dict)]
        entries = {_plain(entry) for value in dicts for entry in value.values()}
        names = tuple(dicts[0])
        truths = all(entry is None or str(entry) in ("-1", "0", "1") for entry in entries)
        missing = UNLABELLED if truths else math.nan

        def row(value: Any) -> list[float]:
            if tuple(value) != names and set(value) != set(names):
                raise KeyError
            plain = [_plain(value[name]) for name in names]
            return [missing if entry is None else float(entry) for entry in plain]

        expected = f"a number for each of {first_of(names)}"
        return self._rows(names, row, expected, np.int8 if truths else np.float32)

    def _rows(
        self, names: Sequence[str], read: Callable[[Any], Sequence[Any]], expected: str, dtype: Any
    ) -> Labelled:
        """Return labels (N, C): `read` maps a known value to C numbers."""
        require_class_names(self.where, names)
        unknown = np.full(len(names), np.nan if dtype is np.float32 else UNLABELLED, dtype)
        labels: Arrays = {}
        for split, some in self.values.items():
            labels[split] = np.tile(unknown, (len(some), 1))
            for row, value in enumerate(some):
                if value is None:
                    continue
                try:
                    (labels[split][row],) = np.array([read(value)], np.float64).reshape(1, len(names))
                except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError):
                    raise self._wrong(split, row, value, expected) from None
        return Labelled(tuple(names), labels)

    def _wrong(self, split: str, row: int, value: Any, expected: str) -> DataError:
        return DataError(
            f"{self.place(split, row)}: label {quoted(value, 80)}; expected {expected}, or nothing for "
            "unlabelled; correct it, or set data.label"
        )
