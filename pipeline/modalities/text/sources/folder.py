"""Text files in class folders: PATH/train/CLASS/*.txt and PATH/test/CLASS/*.txt, or PATH/CLASS/*.txt.

`samples/folders.py` finds the files, by the rules of all modalities.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError
from pipeline.modalities.text.form import TextSource
from pipeline.modalities.text.options import TextOptions
from pipeline.samples.cells import require_regular
from pipeline.samples.folders import Files, find_classes

TEXT_FILES = Files("text", (".txt",))
_BOM = b"\xef\xbb\xbf"


def open_folder(detail: str, options: TextOptions) -> TextSource:
    """Open a folder of text files in UTF-8, one text each; see `find_classes` for its layouts.

    Raises:
        DataError: no such folder, or one of another layout.
    """
    root = Path(detail)
    if options.text_pair is not None:
        raise DataError(f"{root}: a file is one text, and data.text_pair is set; remove it")
    found = find_classes(root, TEXT_FILES)
    return TextSource(
        classes=found.classes,
        train=found.train.samples(_loader),
        validation=None if found.validation is None else found.validation.samples(_loader),
        test=found.test.samples(_loader),
        left_out=found.left_out,
    )


def _loader(path: Path) -> partial[NDArray[np.uint8]]:
    return partial(_read, path)


def _read(path: Path) -> NDArray[np.uint8]:
    """Return a file's bytes, without a byte order mark.

    Raises:
        DataError: it cannot be read.
    """
    require_regular(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}; expected a readable file; mend it, or remove it"
        ) from None
    return np.frombuffer(content.removeprefix(_BOM), np.uint8)
