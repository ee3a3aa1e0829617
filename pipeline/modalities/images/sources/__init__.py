"""The table of image sources, selected by `data.source`.

A source is a function of the text behind the name's colon and an `ImageOptions`. To add one, write one
file and one line in `SOURCES`. User code is `module:callable`: a function without arguments, or of
`options`, that returns an `ImageSource`. Nothing is decoded here: each sample loads itself on demand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from pipeline.core.errors import ConfigError, DataError, counted, did_you_mean
from pipeline.core.own_code import Kind, call, find_callable, is_own, parameters_of
from pipeline.modalities.images.form import ImageSource
from pipeline.modalities.images.options import ImageOptions
from pipeline.modalities.images.sources.arrays import open_builtin, open_npz
from pipeline.modalities.images.sources.folder import open_folder
from pipeline.modalities.images.sources.tables import open_csv, open_datasets, open_parquet
from pipeline.modalities.images.sources.tars import open_wds
from pipeline.modalities.images.sources.torchvision import open_torchvision

__all__ = ["SOURCES", "ImageOptions", "open_source"]

_OWN = Kind(noun="source", returns="a dataset of images", plural="datasets")
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


def open_source(name: str, options: ImageOptions) -> ImageSource:
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
            f"data.source is {name!r}; expected fashion-mnist-10k, npz:PATH, folder:PATH, "
            f"torchvision:NAME, wds:PATTERN, parquet:PATTERN, hf:FOLDER, csv:PATTERN or your own "
            f"module:callable{hint}"
        )
    for split, samples in (("training", source.train), ("test", source.test)):
        if not samples:
            raise DataError(f"{name}: has no {split} images; expected at least one")
    if len(source.classes) < 2 and np.ndim(source.train[0].label) == 0:
        raise DataError(f"{name}: has {counted(len(source.classes), 'class')}; expected at least two")
    return source


def _own(name: str, options: ImageOptions) -> ImageSource:
    """Call user code that returns a dataset.

    Raises:
        ConfigError: the code cannot be imported, raises, or returns something else.
    """
    function = find_callable(name, _OWN)
    given = {"options": options} if "options" in parameters_of(function) else {}
    found = call(name, _OWN, function, given)
    if not isinstance(found, ImageSource):
        raise ConfigError(
            f"source {name} returns a {type(found).__name__}; expected a "
            "pipeline.modalities.images.form.ImageSource; correct it"
        )
    return found
