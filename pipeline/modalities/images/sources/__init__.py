"""Where a dataset comes from: the table of sources behind `data.source`.

A source is a function of the text after its name and a `ImageOptions`; adding one is one file and one
line in `SOURCES`. Nothing is decoded here: samples know how to load themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pipeline.core.errors import ConfigError, DataError, counted, did_you_mean
from pipeline.modalities.images.form import ImageSource
from pipeline.modalities.images.options import ImageOptions
from pipeline.modalities.images.sources.arrays import open_builtin, open_npz
from pipeline.modalities.images.sources.folder import open_folder
from pipeline.modalities.images.sources.torchvision import open_torchvision

__all__ = ["SOURCES", "ImageOptions", "open_source"]

SOURCES: Mapping[str, Callable[[str, ImageOptions], ImageSource]] = {
    "fashion-mnist-10k": open_builtin,
    "npz": open_npz,
    "folder": open_folder,
    "torchvision": open_torchvision,
}


def open_source(name: str, options: ImageOptions) -> ImageSource:
    """Find a dataset by the value of `data.source`.

    Raises:
        ConfigError: the name is none of the table's.
        DataError: the dataset is missing, empty, or not of the expected form.

    """
    kind, _, detail = name.partition(":")
    if kind not in SOURCES:
        hint = did_you_mean(kind, SOURCES)
        raise ConfigError(
            f"data.source is {name!r}; expected fashion-mnist-10k, npz:PATH, folder:PATH or "
            f"torchvision:NAME{hint}"
        )
    source = SOURCES[kind](detail, options)
    for split, samples in (("training", source.train), ("test", source.test)):
        if not samples:
            raise DataError(f"{name}: no {split} images; expected at least one")
    if len(source.classes) < 2:
        raise DataError(
            f"{name}: {counted(len(source.classes), 'class')}; expected at least two classes to tell apart"
        )
    return source
