"""The table of audio sources, selected by `data.source`.

A source is a function of the text behind the name's colon and an `AudioOptions`. To add one, write one
file and one line in `SOURCES`. User code is `module:callable`: a function without arguments, or of
`options`, that returns an `AudioSource`. Nothing is decoded here: each sample loads itself on demand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pipeline.modalities.audio.form import AudioSource
from pipeline.modalities.audio.options import AudioOptions
from pipeline.modalities.audio.sources.arrays import open_npz
from pipeline.modalities.audio.sources.builtin import NAME, open_builtin
from pipeline.modalities.audio.sources.folder import open_folder
from pipeline.modalities.audio.sources.table import open_table
from pipeline.modalities.sources import SourceTable

SOURCES: Mapping[str, Callable[[str, AudioOptions], AudioSource]] = {
    NAME: open_builtin,
    "folder": open_folder,
    "csv": open_table,
    "npz": open_npz,
}
_TABLE = SourceTable(
    SOURCES, AudioSource, noun="clip", shapes=(NAME, "folder:PATH", "csv:PATH", "npz:PATH")
)


def open_source(name: str, options: AudioOptions) -> AudioSource:
    """Find a dataset by the value of `data.source`; see `SourceTable.open`."""
    return _TABLE.open(name, options)
