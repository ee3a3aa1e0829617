"""Recognise logs of interactions at a path for `pipeline init`."""

from __future__ import annotations

from pathlib import Path

from pipeline.modalities.items.options import ItemsOptions
from pipeline.modalities.items.sources.files import SUFFIX, columns_of
from pipeline.modalities.modality import Recognised
from pipeline.samples.tables import header_of

# A table with one of these is a set of texts, e.g. reviews of products by users.
_TEXTS = ("text", "review", "review_text", "sentence", "content", "comment")


def recognise(path: Path, name: str) -> Recognised | None:
    """Return how to read the log at a path, or None if it is none.

    Args:
        path: a folder or file.
        name: its name for params.yaml.
    """
    if path.is_dir():
        found = any(one.suffix == SUFFIX and one.is_file() for one in path.iterdir())
        return Recognised(source=f"inter:{name}") if found else None
    if path.suffix == SUFFIX:
        return Recognised(source=f"inter:{name}")
    if path.suffix != ".csv" or not path.is_file():
        return None
    header = header_of(path)
    columns = columns_of(header, ItemsOptions())
    is_log = columns["user"] is not None and columns["item"] is not None
    if not is_log or {one.lower() for one in header} & set(_TEXTS):
        return None
    return Recognised(source=f"csv:{name}", options=columns)
