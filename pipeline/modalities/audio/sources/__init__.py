"""The table of audio sources, selected by `data.source`.

A source is a function of the text behind the name's colon and an `AudioOptions`. To add one, write one
file and one line in `SOURCES`. User code is `module:callable`: a function without arguments, or of
`options`, that returns an `AudioSource`. Nothing is decoded here: each sample loads itself on demand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from pipeline.core.errors import ConfigError, DataError, counted, did_you_mean
from pipeline.core.own_code import Kind, call, find_callable, is_own, parameters_of
from pipeline.modalities.audio.form import AudioSource
from pipeline.modalities.audio.options import AudioOptions
from pipeline.modalities.audio.sources.arrays import open_npz
from pipeline.modalities.audio.sources.builtin import NAME, open_builtin
from pipeline.modalities.audio.sources.folder import open_folder
from pipeline.modalities.audio.sources.table import open_table
from pipeline.samples.samples import NO_CLASSES

_OWN = Kind(noun="source", returns="a dataset of clips", plural="datasets")
SOURCES: Mapping[str, Callable[[str, AudioOptions], AudioSource]] = {
    NAME: open_builtin,
    "folder": open_folder,
    "csv": open_table,
    "npz": open_npz,
}


def open_source(name: str, options: AudioOptions) -> AudioSource:
    """Find a dataset by the value of `data.source`.

    Raises:
        ConfigError: the table has no such name, or soundfile is not installed.
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
            f"data.source is {name!r}; expected {NAME}, folder:PATH, csv:PATH, npz:PATH or "
            f"module:callable of your own{hint}"
        )
    for split, samples in (("training", source.train), ("test", source.test)):
        if not samples:
            raise DataError(f"{name}: no {split} clips; expected at least one")
    is_index = np.ndim(source.train[0].label) == 0
    if is_index and len(source.classes) < 2 and source.classes != NO_CLASSES:
        raise DataError(
            f"{name}: {counted(len(source.classes), 'class')}; expected at least two classes to tell apart"
        )
    return source


def _own(name: str, options: AudioOptions) -> AudioSource:
    """Call user code that returns a dataset.

    Raises:
        ConfigError: the code cannot be imported, raises, or returns something else.
    """
    function = find_callable(name, _OWN)
    given = {"options": options} if "options" in parameters_of(function) else {}
    found = call(name, _OWN, function, given)
    if not isinstance(found, AudioSource):
        raise ConfigError(
            f"source {name} returns a {type(found).__name__}; expected a "
            "pipeline.modalities.audio.form.AudioSource; correct it"
        )
    return found
