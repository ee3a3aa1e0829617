"""The table of sources of histories, selected by `data.source`.

A source is a function of the text behind the name's colon and an `ItemsOptions`. To add one, write one file
and one line in `SOURCES`. User code is `module:callable`: a function without arguments, or of `options`,
that returns an `ItemsSource`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pipeline.modalities.items.form import ItemsSource
from pipeline.modalities.items.options import ItemsOptions
from pipeline.modalities.items.sources.builtin import NAME, open_builtin
from pipeline.modalities.items.sources.files import open_csv, open_inter
from pipeline.modalities.sources import SourceTable

SOURCES: Mapping[str, Callable[[str, ItemsOptions], ItemsSource]] = {
    NAME: open_builtin,
    "inter": open_inter,
    "csv": open_csv,
}
_TABLE = SourceTable(SOURCES, ItemsSource, noun="history", shapes=(NAME, "inter:PATH", "csv:PATH"))


def open_source(name: str, options: ItemsOptions) -> ItemsSource:
    """Find a log by the value of `data.source`; see `SourceTable.open`."""
    return _TABLE.open(name, options)
