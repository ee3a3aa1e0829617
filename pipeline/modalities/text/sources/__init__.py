"""The table of sources of texts, selected by `data.source`.

A source is a function of the text behind the name's colon and a `TextOptions`. To add one, write one file
and
one line in `SOURCES`. User code is `module:callable`: a function without arguments, or of `options`, that
returns a `TextSource`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from pipeline.core.errors import ConfigError, DataError, counted, did_you_mean
from pipeline.core.own_code import Kind, call, find_callable, is_own, parameters_of
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
from pipeline.samples.samples import NO_CLASSES

__all__ = ["SOURCES", "TextOptions", "open_source"]

_OWN = Kind(noun="source", returns="a dataset of texts", plural="datasets")
SOURCES: Mapping[str, Callable[[str, TextOptions], TextSource]] = {
    "udhr-languages": open_languages,
    "csv": open_csv,
    "tsv": open_tsv,
    "jsonl": open_jsonl,
    "parquet": open_parquet,
    "hf": open_datasets,
    "folder": open_folder,
}


def open_source(name: str, options: TextOptions) -> TextSource:
    """Find a dataset by the value of `data.source`.

    Raises:
        ConfigError: the table has no such name.
        DataError: the dataset is missing, empty or malformed.
    """
    kind, _, detail = name.partition(":")
    hint = did_you_mean(kind, SOURCES)
    if kind in SOURCES:
        source = SOURCES[kind](detail, options)
    elif is_own(name) and not hint:
        source = _own(name, options)
    else:
        raise ConfigError(
            f"data.source is {name!r}; expected udhr-languages, csv:PATH, tsv:PATH, jsonl:PATH, "
            f"parquet:PATH, "
            f"hf:PATH, folder:PATH or module:callable of your own{hint}"
        )
    for split, samples in (("training", source.train), ("test", source.test)):
        if not samples:
            raise DataError(f"{name}: no {split} texts; expected at least one")
    is_index = np.ndim(source.train[0].label) == 0
    if is_index and len(source.classes) < 2 and source.classes != NO_CLASSES:
        raise DataError(
            f"{name}: {counted(len(source.classes), 'class')}; expected at least two classes to tell apart"
        )
    return source


def _own(name: str, options: TextOptions) -> TextSource:
    """Call user code that returns a dataset.

    Raises:
        ConfigError: the code cannot be imported, raises, or returns something else.
    """
    function = find_callable(name, _OWN)
    given = {"options": options} if "options" in parameters_of(function) else {}
    found = call(name, _OWN, function, given)
    if not isinstance(found, TextSource):
        raise ConfigError(
            f"source {name} returns a {type(found).__name__}; expected a "
            "pipeline.modalities.text.form.TextSource; correct it"
        )
    return found
