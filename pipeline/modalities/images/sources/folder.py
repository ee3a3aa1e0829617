"""Datasets of image files in class folders, see `samples/folders.py`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from pipeline.modalities.images.decoding import DECODER, SUFFIXES, ImageFile
from pipeline.modalities.images.form import ImageSource
from pipeline.modalities.images.options import ImageOptions
from pipeline.samples.files import Files
from pipeline.samples.folders import find_classes

IMAGE_FILES = Files("image", SUFFIXES)


def open_folder(detail: str, options: ImageOptions) -> ImageSource:
    """Open PATH/train/CLASS/* and PATH/test/CLASS/*, or PATH/CLASS/*; see `find_classes`."""
    root = Path(detail)
    found = find_classes(root, IMAGE_FILES)
    load = partial(ImageFile, channels=options.channels, max_pixels=options.max_pixels)
    return ImageSource(
        classes=found.classes,
        channels=options.channels,
        train=found.train.samples(load),
        validation=None if found.validation is None else found.validation.samples(load),
        test=found.test.samples(load),
        decoder=DECODER,
        root=root,
        left_out=found.left_out,
        forks=True,
    )
