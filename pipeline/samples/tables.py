"""Tables of text on disk as columns: comma- and tab-separated values, in UTF-8, of any modality."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.core.errors import DataError
from pipeline.samples.cells import require_fields, require_regular, require_unique_columns

_MOST_FIELD = 1 << 28
# The column with the line of each row; no name of a column.
LINES = "\n"
# Name -> value of each row; values are text, numbers or None.
Columns = dict[str, list[Any]]


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let csv read long texts."""
    before = csv.field_size_limit(_MOST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def decoded_text(path: Path) -> str:
    """Return a file's text.

    Raises:
        DataError: no regular file, or not UTF-8; the message names the line.
    """
    require_regular(path)
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}:{line}: not UTF-8 (byte 0x{content[error.start]:02X}); expected text in UTF-8; "
            "convert it, e.g. iconv -t UTF-8"
        ) from None


def header_of(path: Path, delimiter: str = ",") -> list[str]:
    """Return the names of a table's columns; none if the first line is none of a table."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        try:
            return next(csv.reader(file, delimiter=delimiter), [])
        except csv.Error:  # e.g. a field of more than 128 kB
            return []


def read_delimited(path: Path, delimiter: str) -> Columns:
    """Read values divided by commas, which may be quoted, or by tabs, which may not.

    Raises:
        DataError: broken text, a column that occurs twice, or a line with another number of fields than
            the header.
    """
    quoted_fields = delimiter == ","
    text = io.StringIO(decoded_text(path), newline="")
    with _long_fields():
        reader = csv.reader(
            text,
            delimiter=delimiter,
            quoting=csv.QUOTE_MINIMAL if quoted_fields else csv.QUOTE_NONE,
            strict=quoted_fields,
        )
        try:
            header = next(reader, [])
            require_unique_columns(path, header)
            columns: Columns = {name: [] for name in header}
            columns[LINES] = []
            for row in reader:
                if not row:
                    continue
                require_fields(f"{path}:{reader.line_num}", row, header)
                for name, value in zip(header, row, strict=True):
                    columns[name].append(value)
                columns[LINES].append(reader.line_num)
        except csv.Error as error:
            raise DataError(
                f"{path}:{reader.line_num}: {error}; expected quoted values; correct the line"
            ) from None
    return columns
