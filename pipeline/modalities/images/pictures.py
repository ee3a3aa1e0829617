"""A few unlabelled images from the files of any folder, to show or to try a model on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.core.arrays import spread
from pipeline.core.errors import DataError
from pipeline.core.hashing import content_digest, sample_key
from pipeline.core.progress import note
from pipeline.modalities.images.decoding import DECODER, SUFFIXES, load_image
from pipeline.modalities.images.form import image_form
from pipeline.modalities.images.sources.folder import IMAGE_FILES
from pipeline.samples.files import Tree, find_files
from pipeline.samples.packed import PackedSplit, offsets_of
from pipeline.samples.samples import UNLABELLED, LeftOut, Names


def open_pictures(folder: Path, channels: int, count: int) -> PackedSplit:
    """Decode at most `count` image files of a folder into memory, evenly spread by name.

    Args:
        folder: folder of image files, searched at any depth.
        channels: channels of the decoded images, 1 or 3.
        count: at least 1.

    Raises:
        DataError: there is no image, or one cannot be read.
    """
    tree = find_files(folder, ".", IMAGE_FILES) if folder.is_dir() else Tree([], LeftOut())
    found, others = sorted(Path(name).as_posix() for name in tree.names), str(tree.left_out)
    if not found:
        raise DataError(
            f"{folder}: no image files{others and f', left out: {others}'}; expected a folder with "
            f"{', '.join(SUFFIXES)}; choose a different folder"
        )
    if others:
        note(f"{folder}: left out: {others}")
    names = [found[row] for row in spread(len(found), count).tolist()]
    images = [load_image(folder / name, channels) for name in names]
    shapes = np.array([image.shape[:2] for image in images], np.int32)
    form = image_form(channels, DECODER)
    return PackedSplit(
        values=np.concatenate([image.ravel() for image in images]),
        form=form,
        offsets=offsets_of(shapes, form)[:-1],
        shapes=shapes,
        labels=np.full(len(images), UNLABELLED),
        keys=np.array([sample_key(name) for name in names], np.uint64),
        digests=np.array([content_digest(image, UNLABELLED) for image in images], np.uint64),
        names=Names.of(names),
    )
