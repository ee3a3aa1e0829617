"""A finished draft becomes a split of a prepared dataset."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError
from pipeline.core.files import write_atomic
from pipeline.data.dataset import open_split
from pipeline.data.draft import Draft
from pipeline.data.form import Form
from pipeline.data.images import Images
from pipeline.data.index import write_index
from pipeline.data.names import Names
from pipeline.data.sample import Sample


def deliver(draft: Draft, samples: Sequence[Sample], folder: Path, split: str, form: Form) -> Images:
    """Put a split into the folder of a prepared dataset, and open it.

    The draft stays: until all splits are delivered, the folder may be removed, as DVC does before it runs a
    stage.

    Args:
        draft: of all samples.
        samples: in its order.
        folder: where the split's files go.
        split: its name.
        form: of the images.

    Raises:
        DataError: two samples have one key.
    """
    rows, names = draft.rows(), Names.of(sample.name for sample in samples)
    _require_unique(rows["key"], names)
    columns = {
        "shapes": np.stack([rows["height"], rows["width"]], 1),
        "labels": rows["label"],
        "keys": rows["key"],
        "digests": rows["digest"],
    }
    target = folder / f"{split}.pixels"
    # The old file may be a link into DVC's cache.
    target.unlink(missing_ok=True)
    if form.keep == "pixels":
        _place(draft.pixels_path, target)
        columns["offsets"] = draft.offsets()[:-1]
    write_index(folder, split, columns, names)
    return open_split(folder, split, form)


def _place(source: Path, target: Path) -> None:
    """Give a file another name; on another file system, or one without links, copy it."""
    try:
        os.link(source, target)
    except OSError:
        with source.open("rb") as file:
            write_atomic(target, partial(shutil.copyfileobj, file))


def _require_unique(keys: NDArray[Any], names: Names) -> None:
    order = np.argsort(keys, kind="stable")
    same = np.flatnonzero(keys[order][1:] == keys[order][:-1])
    if len(same):
        first, second = (names[int(order[place])] for place in (same[0], same[0] + 1))
        raise DataError(
            f"samples {first!r} and {second!r} have the same key; expected unique names; rename one"
        )
