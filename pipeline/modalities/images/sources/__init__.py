"""The table of image sources, selected by `data.source`.

A source is a function of the text behind the name's colon and an `ImageOptions`. To add one, write one
file and one line in `SOURCES`. User code is `module:callable`: a function without arguments, or of
`options`, that returns an `ImageSource`. Nothing is decoded here: each sample loads itself on demand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pipeline.modalities.images.form import ImageSource
from pipeline.modalities.images.options import ImageOptions
from pipeline.modalities.images.sources.arrays import open_builtin, open_npz
from pipeline.modalities.images.sources.folder import open_folder
from pipeline.modalities.images.sources.tables import open_csv, open_datasets, open_parquet
from pipeline.modalities.images.sources.tars import open_wds
from pipeline.modalities.images.sources.torchvision import open_torchvision
from pipeline.modalities.sources import SourceTable

__all__ = ["SOURCES", "ImageOptions", "open_source"]

SOURCES: Mapping[str, Callable[[str, ImageOptions], ImageSource]] = {
    "fashion-mnist-10k": open_builtin,
    "npz": open_npz,
    "folder": open_folder,
    "torchvision": open_torchvision,
    "wds": open_wds,
    "parquet": open_parquet,
    "hf": open_datasets,
    "csv": open_csv,
}
_SHAPES = (
    "fashion-mnist-10k",
    "npz:PATH",
    "folder:PATH",
    "torchvision:NAME",
    "wds:PATTERN",
    "parquet:PATTERN",
    "hf:FOLDER",
    "csv:PATTERN",
)
_TABLE = SourceTable(SOURCES, ImageSource, noun="image", shapes=_SHAPES)


def open_source(name: str, options: ImageOptions) -> ImageSource:
    """Find a dataset by the value of `data.source`; see `SourceTable.open`."""
    return _TABLE.open(name, options)
