"""Logs in files: RecBole's atomic .inter files and CSV, a row per interaction.

`log.py` makes histories of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError, counted, did_you_mean, first_of, quoted
from pipeline.modalities.items.form import ItemsSource
from pipeline.modalities.items.options import ItemsOptions
from pipeline.modalities.items.sources.log import Interactions, histories_of
from pipeline.samples.samples import LeftOut
from pipeline.samples.tables import LINES, Columns, read_delimited

SUFFIX = ".inter"
# Usual names of columns, best first.
USUAL: Mapping[str, tuple[str, ...]] = {
    "user": ("user_id", "user", "userId", "userid", "uid", "session_id", "session"),
    "item": ("item_id", "item", "itemId", "itemid", "iid", "movieId", "movie_id", "product_id"),
    "timestamp": ("timestamp", "time", "ts", "unix_time"),
}
_TYPES = ("token", "float", "token_seq", "float_seq")


def open_inter(detail: str, options: ItemsOptions) -> ItemsSource:
    """Open an atomic file of RecBole: tab-separated, with a typed header, e.g. user_id:token.

    Raises:
        DataError: no such file, several of them, a broken header, or an unusable row.
    """
    path, unused = _inter_file(Path(detail))
    columns = _untyped(path, read_delimited(path, "\t"))
    return histories_of(path, _interactions(path, columns, options), options, LeftOut(unused=unused))


def open_csv(detail: str, options: ItemsOptions) -> ItemsSource:
    """Open a table of comma-separated values with a header line, quoted as in RFC 4180.

    Raises:
        DataError: no such file, a missing column, or an unusable row.
    """
    path = Path(detail)
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected a table of users and items; correct data.source")
    return histories_of(path, _interactions(path, read_delimited(path, ","), options), options)


def _inter_file(root: Path) -> tuple[Path, tuple[str, ...]]:
    """Return the file with the interactions, and the names of other files of its folder."""
    if root.is_file():
        return root, ()
    if not root.is_dir():
        raise DataError(f"{root}: no such file or folder; expected NAME{SUFFIX}; correct data.source")
    names = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
    found = [name for name in names if name.endswith(SUFFIX)]
    if len(found) != 1:
        raise DataError(
            f"{root}: has {counted(len(found), f'{SUFFIX} file')} ({first_of(found or names) or 'none'}); "
            f"expected one; name it, e.g. data.source: inter:{root}/NAME{SUFFIX}"
        )
    return root / found[0], tuple(name for name in names if name != found[0])


def _untyped(path: Path, columns: Columns) -> Columns:
    """Return the columns by their names without types.

    Raises:
        DataError: a column without a type, or interactions that are sequences already.
    """
    found: Columns = {LINES: columns[LINES]}
    for header, values in columns.items():
        name, _, kind = header.rpartition(":")
        if header == LINES:
            continue
        if kind not in _TYPES or not name:
            raise DataError(
                f"{path}: the header has {quoted(header)}; expected NAME:TYPE of type {', '.join(_TYPES)}, "
                "separated by tabs, as in RecBole's atomic files; correct it, or use data.source: csv:PATH"
            )
        if kind == "token_seq" and name in tuple(f"{item}_list" for item in USUAL["item"]):
            raise DataError(
                f"{path}: has sequences of items ({header}); expected one interaction per row; use the "
                "file before it was divided"
            )
        found[name] = values
    return found


def columns_of(names: Sequence[str], options: ItemsOptions) -> dict[str, str | None]:
    """Return the column of each key of `data`: the given one, or the first usual one that is there.

    >>> columns_of(["uid", "movie_id", "stars"], ItemsOptions(item="movie_id"))
    {'user': 'uid', 'item': 'movie_id', 'timestamp': None}
    """
    found: dict[str, str | None] = {}
    for key, usual in USUAL.items():
        given = getattr(options, key)
        found[key] = given or next((name for name in usual if name in names), None)
    return found


def _interactions(path: Path, columns: Columns, options: ItemsOptions) -> Interactions:
    """Return the interactions of a table.

    Raises:
        DataError: a missing column, no rows, or rows without user, item or time.
    """
    lines = columns.pop(LINES)
    found = columns_of(list(columns), options)
    for key, name in found.items():
        if name not in columns and (name is not None or key != "timestamp"):
            raise DataError(
                f"{path}: no column {quoted(name or USUAL[key][0])} of {key}s; found "
                f"{first_of([repr(one) for one in columns], 8) or 'none'}; set data.{key} to the right one"
                f"{did_you_mean(name or key, columns)}"
            )
    if not lines:
        raise DataError(f"{path}: no rows; expected one per interaction; use another file")
    users, items = columns[str(found["user"])], columns[str(found["item"])]
    for key, values in (("user", users), ("item", items)):
        empty = [line for line, value in zip(lines, values, strict=True) if not value.strip()]
        if empty:
            more = f" ({len(empty):,} such rows)" if len(empty) > 1 else ""
            raise DataError(
                f"{path}:{empty[0]}: no {key} in it{more}; expected a name in every row; fill, or remove it"
            )
    times = None if found["timestamp"] is None else _times(path, columns[found["timestamp"]], lines)
    return Interactions(users=users, items=items, times=times)


def _times(
    path: Path, values: Sequence[str], lines: Sequence[int]
) -> NDArray[np.int64] | NDArray[np.float64]:
    """Return times as integers if all are, e.g. nanoseconds, which float64 would round."""
    try:
        return np.array([int(value) for value in values], np.int64)
    except (ValueError, OverflowError):
        return np.array([_number(path, *row) for row in zip(values, lines, strict=True)], np.float64)


def _number(path: Path, value: str, line: int) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(
            f"{path}:{line}: time {quoted(value)} is no finite number; expected e.g. seconds since 1970; "
            "convert it, or set data.timestamp to another column"
        )
    return number
