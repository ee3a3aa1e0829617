"""Rules of tables in any format: unique columns, complete rows, and cells that are text or numbers.

Readers of CSV, JSON lines and Parquet own their formats. They pass the place that an error names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.core.errors import DataError, counted, first_of, quoted
from pipeline.samples.samples import UNLABELLED


def require_regular(path: Path) -> None:
    """Refuse a path that is no regular file, e.g. a FIFO, which would block its reader.

    Raises:
        DataError: naming the path.
    """
    if not path.is_file():
        raise DataError(f"{path}: no regular file; expected a readable file; mend it, or remove it")


def require_unique_columns(where: object, names: Sequence[str]) -> None:
    """Refuse two columns of one name, of which a reader would use one; unnamed columns may be many.

    Raises:
        DataError: naming the column.

    >>> require_unique_columns("a.csv", ["text", "label", "", ""])
    """
    seen: set[str] = set()
    for name in names:
        if name and name in seen:
            raise DataError(
                f"{where}: has two columns {quoted(name)}; expected unique names; rename or remove one"
            )
        seen.add(name)


def require_fields(where: object, cells: Sequence[str], header: Sequence[str]) -> None:
    """Refuse a row with more or fewer fields than the header.

    Raises:
        DataError: naming the row.
    """
    if len(cells) != len(header):
        raise DataError(
            f"{where}: {counted(len(cells), 'field')}; expected {len(header)}, as the header has "
            f"({first_of(header)}); correct the line"
        )


def parse_record(where: object, line: str) -> dict[str, Any]:
    """Parse a line of JSON that holds an object with unique keys.

    Raises:
        DataError: not JSON, nested too deeply, not an object, or a key that occurs twice.

    >>> parse_record("a.jsonl:1", '{"text": "a", "label": 0}')
    {'text': 'a', 'label': 0}
    """
    try:
        values = json.loads(line, object_pairs_hook=_unique)
    except RecursionError:
        reason = "nested too deeply"
    except ValueError as error:
        reason = str(error)
    else:
        if isinstance(values, dict):
            return values
        raise DataError(f"{where}: {quoted(values)}; expected an object; correct it")
    raise DataError(f"{where}: not JSON ({reason}); expected one object per line; correct it")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"key {quoted(name)} occurs twice")
        found[name] = value
    return found


def text_of_cell(where: object, column: str, value: object) -> str:
    """Return the text of a cell; "" for a missing one.

    Raises:
        DataError: a list, an object or bytes, or text that UTF-8 cannot hold.

    >>> text_of_cell("row 1", "text", "sea"), text_of_cell("row 2", "text", None)
    ('sea', '')
    """
    if value is None or value != value:  # NaN, by which pandas marks a missing value
        return ""
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise DataError(
            f"{where}: {column} is {quoted(value)} ({type(value).__name__}); expected text; convert it"
        )
    return _require_utf8(where, column, str(value))


def label_of_cell(where: object, column: str, value: object) -> str | None:
    """Return the name of the class in a cell; None for unlabelled: a missing or empty label, or -1.

    Raises:
        DataError: a list, an object, bytes or an infinite number, or text that UTF-8 cannot hold.

    >>> [label_of_cell("row", "label", value) for value in ("sea", 2.0, True, -1, "-1", "", None)]
    ['sea', '2', 'True', None, None, None, None]
    """
    if value is None or value in ("", "-1", UNLABELLED) or value != value:
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # a column of integers with gaps
    if not isinstance(value, str | int | float) or value in (math.inf, -math.inf):
        raise DataError(
            f"{where}: {column} is {quoted(value)} ({type(value).__name__}); expected the name or number "
            "of a class; convert it"
        )
    return _require_utf8(where, column, str(value))


def _require_utf8(where: object, column: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: {column} has half of a character ({text[error.start]!a}); expected text that "
            "UTF-8 can hold; correct it"
        ) from None
    return text
