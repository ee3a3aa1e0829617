"""Text files in UTF-8 in class folders, one text each: see `samples/folders.py` for the layouts."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError
from pipeline.modalities.text.form import TextSource
from pipeline.modalities.text.options import TextOptions
from pipeline.samples.cells import require_regular
from pipeline.samples.files import Files
from pipeline.samples.folders import find_classes

TEXT_FILES = Files("text", (".txt",))
_BOM = b"\xef\xbb\xbf"


def open_folder(detail: str, options: TextOptions) -> TextSource:
    """Open PATH/train/CLASS/*.txt and PATH/test/CLASS/*.txt, or PATH/CLASS/*.txt; see `find_classes`."""
    root = Path(detail)
    if options.text_pair is not None:
        raise DataError(
            f"{root}: data.text_pair is {options.text_pair!r}; expected none, since a file is one text; "
            "remove it"
        )
    found = find_classes(root, TEXT_FILES)
    load = partial(partial, read_text)
    return TextSource(
        classes=found.classes,
        train=found.train.samples(load),
        validation=None if found.validation is None else found.validation.samples(load),
        test=found.test.samples(load),
        left_out=found.left_out,
        forks=True,
    )


def read_text(path: Path) -> NDArray[np.uint8]:
    """Return a file's bytes (n,), without a byte order mark.

    Raises:
        DataError: no regular file, or it cannot be read.
    """
    require_regular(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}; expected a readable file; mend it, or remove it"
        ) from None
    return np.frombuffer(content.removeprefix(_BOM), np.uint8)
