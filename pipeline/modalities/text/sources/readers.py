"""Read files of texts into columns: JSON lines, Parquet, and folders of the library `datasets`.

Errors name the file and the line. `tables.py` makes samples of the columns; `samples/tables.py` reads CSV.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.core.errors import DataError, quoted
from pipeline.modalities.text.options import TextOptions, wanted_columns
from pipeline.samples.arrow import class_names, read_schema, read_table
from pipeline.samples.cells import parse_record
from pipeline.samples.tables import LINES, Columns, decoded_text


def read_json_lines(path: Path, options: TextOptions) -> Columns:
    """Read one JSON object per line; other keys than the columns of `options` are left out.

    Raises:
        DataError: a line that is no object, or names a key twice.
    """
    wanted = set(wanted_columns(options))
    columns: Columns = {LINES: []}
    for number, line in enumerate(decoded_text(path).split("\n"), 1):
        if not line.strip():
            continue
        values = parse_record(f"{path}:{number}", line)
        for name in wanted & set(values):
            # A column that begins late is missing in the rows before.
            column = columns.setdefault(name, [])
            column += [None] * (len(columns[LINES]) - len(column)) + [values[name]]
        columns[LINES].append(number)
    for column in columns.values():
        column += [None] * (len(columns[LINES]) - len(column))
    return columns


def read_arrow(path: Path, options: TextOptions) -> Columns:
    """Read a Parquet file, or a folder of `save_to_disk`; numbers of named classes become their names.

    Raises:
        ConfigError: pyarrow is not installed.
        DataError: not such a file or folder.
    """
    table = read_table(path, wanted_columns(options))
    columns: Columns = table.to_pydict()
    names = class_names(table.schema, options.label) if isinstance(options.label, str) else None
    if names and options.label in columns:
        labels = columns[options.label]
        columns[options.label] = [_named(path, row, one, names) for row, one in enumerate(labels)]
    return columns


def arrow_names(path: Path) -> list[str]:
    """Return the names of the columns of a Parquet file, or of a folder of `save_to_disk`.

    Raises:
        ConfigError: pyarrow is not installed.
        DataError: not such a file or folder.
    """
    names: list[str] = read_schema(path).names
    return names


def _named(path: Path, row: int, label: object, names: list[str]) -> object:
    """Return the class name of a number, or of each in a list; None for unlabelled, others unchanged.

    Raises:
        DataError: a number without a name.
    """
    if isinstance(label, list):
        return [_named(path, row, one, names) for one in label]
    if not isinstance(label, int | float) or label != label:
        return label
    if label < 0:
        return None
    if label != int(label) or label >= len(names):
        raise DataError(
            f"{path}: row {row}: label {quoted(label)}; expected 0 to {len(names) - 1}, as the file names "
            f"{len(names)} classes; correct it"
        )
    return names[int(label)]
