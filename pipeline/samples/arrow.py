"""Parquet files, and folders that the library `datasets` saved: columns, class names, and single cells.

The only importer of pyarrow in this package, on use: it is an extra. Files are memory-mapped. A cell of a
Parquet file costs its row group, of which the last few stay in memory; one of an Arrow file costs itself.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import ConfigError, DataError, brief
from pipeline.core.package import extra_command
from pipeline.samples.parts import path_below

Bytes = NDArray[np.uint8]  # (n,)
STATE = "state.json"  # in each folder of `Dataset.save_to_disk`
DICT = "dataset_dict.json"  # in a folder of `DatasetDict.save_to_disk`
_ENDING = ".arrow"
# A row group is decoded whole. Writers for images make groups of about 100 rows.
MOST_GROUP_BYTES = 4 << 30
_HELD_GROUPS = 4
_SCANNED_ROWS = 64


def require_pyarrow(where: object) -> Any:
    """Return pyarrow.

    Args:
        where: the file that needs it, for the error.

    Raises:
        ConfigError: pyarrow is not installed.
    """
    try:
        import pyarrow
    except ModuleNotFoundError:
        raise ConfigError(
            f"{where} needs pyarrow, which is not installed; run: {extra_command('parquet')}"
        ) from None
    return pyarrow


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """Yield pyarrow; turn its errors into one about the file."""
    arrow = require_pyarrow(path)
    kind = "a folder of save_to_disk" if path.is_dir() else f"{_a_kind(path)} file"
    try:
        yield arrow
    except (arrow.ArrowException, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = brief(" ".join(str(error).split())) or type(error).__name__
        raise DataError(f"{path}: not {kind} ({reason}); write it again") from None


def _a_kind(path: Path) -> str:
    return "an Arrow" if path.suffix == _ENDING else "a Parquet"


def read_table(path: Path, wanted: Collection[str] = ()) -> Any:
    """Return columns of a Parquet file, or of a folder of `save_to_disk`, as an Arrow table.

    Args:
        path: the file or folder.
        wanted: names of columns, of which missing ones are left out; all columns if empty.

    Raises:
        ConfigError: pyarrow is not installed.
        DataError: not such a file or folder.
    """
    with _reading(path) as arrow:
        if path.is_dir():
            table = arrow.concat_tables([_stream(arrow, part) for part in arrow_files(path)])
        elif path.suffix == _ENDING:
            table = _stream(arrow, path)
        else:
            table = _parquet(path).read(_known(_parquet(path).schema_arrow, wanted))
        return table.select(_known(table.schema, wanted))


def read_schema(path: Path) -> Any:
    """Return the Arrow schema of a Parquet file, of an Arrow file, or of a folder of `save_to_disk`."""
    with _reading(path) as arrow:
        if path.is_dir():
            path = arrow_files(path)[0]
        return _stream(arrow, path).schema if path.suffix == _ENDING else _parquet(path).schema_arrow


def count_rows(path: Path) -> int:
    """Return the number of rows of a Parquet or Arrow file."""
    with _reading(path) as arrow:
        if path.suffix == _ENDING:
            return int(_stream(arrow, path).num_rows)
        return int(_parquet(path).metadata.num_rows)


def _known(schema: Any, wanted: Collection[str]) -> list[str]:
    return [name for name in schema.names if name in wanted or not wanted]


def arrow_files(folder: Path) -> list[Path]:
    """Return the data files of a folder that `Dataset.save_to_disk` wrote; its state.json lists them."""
    with _reading(folder):
        listed = json.loads((folder / STATE).read_text())["_data_files"]
        return [folder / Path(part["filename"]).name for part in listed]


def image_columns(schema: Any) -> list[str]:
    """Return the columns that `datasets` marked as images."""
    written = (schema.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(written)["info"]["features"] if written else {}
        return [name for name, feature in features.items() if feature["_type"] == "Image"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def holds_bytes(schema: Any, column: str) -> bool:
    """Whether a column has bytes, or structs with bytes."""
    kind = str(schema.field(column).type)
    return kind in ("binary", "large_binary") or (kind.startswith("struct<") and "bytes: " in kind)


def class_names(schema: Any, column: str) -> list[str] | None:
    """Return the class names that `datasets` wrote for a column of class numbers or lists of them."""
    written = (schema.metadata or {}).get(b"huggingface")
    try:
        feature = json.loads(written)["info"]["features"][column] if written else {}
        while "names" not in feature:  # a list of classes
            feature = feature[0] if isinstance(feature, list) else feature["feature"]
        names = feature["names"]
        return [str(name) for name in names] if isinstance(names, list) else None
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None


def _parquet(path: Path) -> Any:
    from pyarrow import parquet

    return parquet.ParquetFile(path, memory_map=True)


def _stream(arrow: Any, path: Path) -> Any:
    """Return an Arrow file as a table without copying: of the stream format, or of the file format."""
    file = arrow.memory_map(str(path))
    try:
        return arrow.ipc.open_stream(file).read_all()
    except arrow.ArrowInvalid:
        return arrow.ipc.open_file(file).read_all()


# Cells: bytes of one sample.


class _Held:
    """The last few values by key; each is made once, by one thread at a time.

    Args:
        most: number of values that are kept.
    """

    def __init__(self, most: int) -> None:
        self._most, self._values = most, OrderedDict[Any, Any]()
        self._making = Lock()
        # A forked worker of a DataLoader must not inherit a lock that another thread holds.
        os.register_at_fork(after_in_child=self._begin_anew)

    def _begin_anew(self) -> None:
        self._making = Lock()
        self._values.clear()

    def get(self, key: Any, make: Any) -> Any:
        """Return the value of a key, made by `make()` if it is not kept."""
        with self._making:
            if key not in self._values:
                self._values[key] = make()
            self._values.move_to_end(key)
            while len(self._values) > self._most:
                self._values.popitem(last=False)
            return self._values[key]


_FILES, _TABLES, _GROUPS = _Held(256), _Held(4096), _Held(_HELD_GROUPS)


def parquet_cell(path: Path, column: str, row: int) -> Bytes:
    """Return the bytes of a row of a Parquet file's image column.

    Raises:
        DataError: the file is no longer there, or the row has no bytes.
    """
    with _reading(path):
        known = path, _changed(path)
        file, ends = _FILES.get(known, lambda: _opened_parquet(path))
        group = int(np.searchsorted(ends, row, side="right"))
        if group == len(ends):
            raise _beyond(path, row, int(ends[-1]) if len(ends) else 0)
        key = (*known, column, group)
        values = _GROUPS.get(key, lambda: _group(path, file, column, group))
        return _as_bytes(path, row, values[row - (int(ends[group - 1]) if group else 0)].as_py())


def arrow_cell(path: Path, column: str, row: int) -> Bytes:
    """Return the bytes of a row of an Arrow file's image column; see `parquet_cell`."""
    with _reading(path) as arrow:
        key = path, _changed(path), column
        values = _TABLES.get(key, lambda: _stream(arrow, path).column(column))
        if row >= len(values):
            raise _beyond(path, row, len(values))
        return _as_bytes(path, row, values[row].as_py())


def _changed(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _opened_parquet(path: Path) -> tuple[Any, NDArray[np.int64]]:
    """Return a Parquet file and the end of each of its row groups (g,), in rows."""
    file = _parquet(path)
    counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    return file, np.cumsum(np.array(counts, np.int64))


def _group(path: Path, file: Any, column: str, group: int) -> Any:
    size = file.metadata.row_group(group).total_byte_size
    if size > MOST_GROUP_BYTES:
        raise DataError(
            f"{path}: row group {group} has {size / 1e9:.1f} GB; expected at most "
            f"{MOST_GROUP_BYTES / 1e9:.1f}, since it is decoded whole; write the file with "
            "row_group_size=100"
        )
    return file.read_row_group(group, columns=[column], use_threads=False).column(column)


def _beyond(path: Path, row: int, count: int) -> DataError:
    return DataError(
        f"{path}, row {row}: the file has {count:,} rows; expected the file that was prepared; restore it, "
        "or run: pipeline prepare"
    )


def scanned(path: Path, column: str) -> Iterator[Bytes | DataError]:
    """Yield the bytes of each row of an image column, a few rows in memory at a time."""
    with _reading(path) as arrow:
        if path.suffix == _ENDING:
            batches = _stream(arrow, path).select([column]).to_batches(_SCANNED_ROWS)
        else:
            batches = _parquet(path).iter_batches(_SCANNED_ROWS, columns=[column])
        row = 0
        for batch in batches:
            for value in batch.column(0):
                try:
                    yield _as_bytes(path, row, value.as_py())
                except DataError as error:
                    yield error
                row += 1


def _as_bytes(path: Path, row: int, value: Any) -> Bytes:
    """Return the content of a cell: bytes, a path, or a struct of both, as `datasets` writes images."""
    linked = None
    if isinstance(value, Mapping):
        linked, value = value.get("path"), value.get("bytes")
    if isinstance(value, str):
        linked, value = value, None
    if isinstance(value, bytes):
        return np.frombuffer(bytearray(value), np.uint8)
    if not isinstance(linked, str) or not linked:
        raise DataError(
            f"{path}, row {row}: has no image; expected bytes or a path; fill it, or remove the row"
        )
    file = path_below(path.parent, linked, f"{path}, row {row}")
    return cast(Bytes, np.fromfile(file, np.uint8))
