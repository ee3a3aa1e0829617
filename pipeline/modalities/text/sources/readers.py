"""Read files of tables into columns: CSV, TSV, JSON lines, Parquet, and folders of the library `datasets`.

Errors name the file and the line. `tables.py` makes samples of the columns.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.core.errors import ConfigError, DataError, counted, first_of, quoted
from pipeline.core.package import extra_command
from pipeline.modalities.text.options import TextOptions, wanted_columns

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


def _decoded(path: Path) -> str:
    """Return a file's text.

    Raises:
        DataError: not UTF-8; the message names the line.
    """
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}:{line}: not UTF-8 (byte 0x{content[error.start]:02X}); expected text in UTF-8; "
            f"convert it, e.g. "
            "iconv -t UTF-8"
        ) from None


def read_delimited(path: Path, delimiter: str) -> Columns:
    """Read values divided by commas, which may be quoted, or by tabs, which may not.

    Raises:
        DataError: broken text, or a line with another number of fields than the header.
    """
    quoted_fields = delimiter == ","
    text = io.StringIO(_decoded(path), newline="")
    with _long_fields():
        reader = csv.reader(
            text,
            delimiter=delimiter,
            quoting=csv.QUOTE_MINIMAL if quoted_fields else csv.QUOTE_NONE,
            strict=quoted_fields,
        )
        try:
            header = next(reader, [])
            columns: Columns = {name: [] for name in header}
            columns[LINES] = []
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise DataError(
                        f"{path}:{reader.line_num}: {counted(len(row), 'field')}; expected {len(header)}, "
                        f"as the header "
                        f"has ({first_of(header)}); correct the line"
                    )
                for name, value in zip(header, row, strict=True):
                    columns[name].append(value)
                columns[LINES].append(reader.line_num)
        except csv.Error as error:
            raise DataError(
                f"{path}:{reader.line_num}: {error}; expected quoted values; correct the line"
            ) from None
    return columns


def read_json_lines(path: Path, options: TextOptions) -> Columns:
    """Read one JSON object per line; other keys than the columns of `options` are left out.

    Raises:
        DataError: a line that is no object.
    """
    wanted = set(wanted_columns(options))
    columns: Columns = {LINES: []}
    for number, line in enumerate(_decoded(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            raise DataError(
                f"{path}:{number}: not JSON ({error}); expected one object per line; correct it"
            ) from None
        if not isinstance(values, dict):
            raise DataError(f"{path}:{number}: {quoted(values)}; expected an object; correct it")
        for name in wanted & set(values):
            # A column that begins late is missing in the rows before.
            column = columns.setdefault(name, [])
            column += [None] * (len(columns[LINES]) - len(column)) + [values[name]]
        columns[LINES].append(number)
    for column in columns.values():
        column += [None] * (len(columns[LINES]) - len(column))
    return columns


def _arrow(where: str) -> Any:
    try:
        import pyarrow
    except ModuleNotFoundError:
        raise ConfigError(
            f"{where} needs pyarrow, which is not installed; run: {extra_command('text')}"
        ) from None
    return pyarrow


def read_arrow(path: Path, options: TextOptions) -> Columns:
    """Read a Parquet file, or a folder of `save_to_disk`; numbers of named classes become their names.

    Raises:
        ConfigError: pyarrow is not installed.
        DataError: not such a file or folder.
    """
    table = _arrow_table(path, wanted_columns(options))
    return _with_names(table.to_pydict(), (table.schema.metadata or {}).get(b"huggingface"), options)


def arrow_names(path: Path) -> list[str]:
    """Return the names of the columns of a Parquet file, or of a folder of `save_to_disk`.

    Raises:
        ConfigError: pyarrow is not installed.
        DataError: not such a file or folder.
    """
    names: list[str] = _arrow_table(path, set()).schema.names
    return names


def _arrow_table(path: Path, wanted: Collection[str]) -> Any:
    """Read columns of a Parquet file, or of a folder whose state.json lists files of Arrow's stream format.

    Without wanted columns, the table has all of them.
    """
    arrow = _arrow(str(path))
    kind = "a folder of save_to_disk" if path.is_dir() else "a Parquet file"
    try:
        table = _saved_table(arrow, path) if path.is_dir() else _parquet_table(path)
    except (arrow.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path}: not {kind} ({reason}); write it again") from None
    names = [name for name in table.column_names if name in wanted or not wanted]
    return table.select(names)


def _parquet_table(path: Path) -> Any:
    from pyarrow import parquet

    return parquet.read_table(path, memory_map=True)


def _saved_table(arrow: Any, folder: Path) -> Any:
    tables = []
    for part in json.loads((folder / "state.json").read_text())["_data_files"]:
        with arrow.memory_map(str(folder / Path(part["filename"]).name)) as file:
            tables.append(arrow.ipc.open_stream(file).read_all())
    return arrow.concat_tables(tables)


def _with_names(columns: Columns, metadata: bytes | None, options: TextOptions) -> Columns:
    """Replace numbers of a label column by class names, where the file tells these."""
    features = json.loads(metadata)["info"]["features"] if metadata else {}
    label = options.label if isinstance(options.label, str) else ""
    names = features.get(label, {}).get("names")
    if names and label in columns:
        columns[label] = [None if one is None or one < 0 else names[one] for one in columns[label]]
    return columns
