"""The index of a prepared split: what is known of each sample, beside its pixels.

SPLIT.npz      arrays of N: shapes, labels, keys, digests, and what a kind of images needs beside them
SPLIT.names    one sample name a line
"""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.names import Names
from pipeline.errors import DataError
from pipeline.files import write_bytes

Columns = dict[str, NDArray[Any]]


def write_index(folder: Path, split: str, columns: Columns, names: Names) -> None:
    """Write the index of one split."""
    buffer = io.BytesIO()
    np.savez(buffer, **columns)  # type: ignore[arg-type]
    write_bytes(folder / f"{split}.npz", buffer.getvalue())
    write_bytes(folder / f"{split}.names", names.to_bytes())


def read_index(folder: Path, split: str) -> tuple[Columns, Names]:
    """Return what `write_index` wrote.

    Raises:
        DataError: it is missing or damaged.
    """
    path = folder / f"{split}.npz"
    try:
        with path.open("rb") as file, np.load(file) as archive:
            columns = dict(archive)
        names, count = Names.parse((folder / f"{split}.names").read_bytes()), len(columns["labels"])
    except FileNotFoundError as error:
        raise missing(error.filename) from None
    except (EOFError, ValueError, LookupError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged ({error}); run: pipeline prepare") from None
    if len(names) != count:
        raise DataError(
            f"{folder / split}.names: {len(names)} names, expected {count}; run: pipeline prepare"
        )
    return columns, names


def missing(path: str | Path) -> DataError:
    """Return what to say of a file that a prepared dataset lacks."""
    return DataError(f"{path}: missing; run: pipeline prepare")
