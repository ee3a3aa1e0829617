"""The table of sources of texts, selected by `data.source`.

A source is a function of the text behind the name's colon and a `TextOptions`. To add one, write one file
and one line in `SOURCES`. User code is `module:callable`: a function without arguments, or of `options`,
that returns a `TextSource`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pipeline.modalities.sources import SourceTable
from pipeline.modalities.text.form import TextSource
from pipeline.modalities.text.options import TextOptions
from pipeline.modalities.text.sources.builtin import open_languages
from pipeline.modalities.text.sources.folder import open_folder
from pipeline.modalities.text.sources.tables import (
    open_csv,
    open_datasets,
    open_jsonl,
    open_parquet,
    open_tsv,
)

__all__ = ["SOURCES", "TextOptions", "open_source"]

SOURCES: Mapping[str, Callable[[str, TextOptions], TextSource]] = {
    "udhr-languages": open_languages,
    "csv": open_csv,
    "tsv": open_tsv,
    "jsonl": open_jsonl,
    "parquet": open_parquet,
    "hf": open_datasets,
    "folder": open_folder,
}
_SHAPES = ("udhr-languages", *(f"{name}:PATH" for name in SOURCES if name != "udhr-languages"))
_TABLE = SourceTable(SOURCES, TextSource, noun="text", shapes=_SHAPES)


def open_source(name: str, options: TextOptions) -> TextSource:
    """Find a dataset by the value of `data.source`; see `SourceTable.open`."""
    return _TABLE.open(name, options)
