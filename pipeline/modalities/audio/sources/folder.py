"""Sound files in class folders, or described by a metadata.csv, as Hugging Face's AudioFolder has them."""

from __future__ import annotations

from pathlib import Path

from pipeline.modalities.audio.decoding import AUDIO_FILES, SoundFile, decoder
from pipeline.modalities.audio.form import AudioSource
from pipeline.modalities.audio.options import AudioOptions
from pipeline.modalities.audio.sources.table import open_metadata
from pipeline.samples.folders import find_classes

METADATA = "metadata.csv"


def open_folder(detail: str, options: AudioOptions) -> AudioSource:
    """Open PATH/train/CLASS/* and PATH/test/CLASS/*, or PATH/CLASS/*; see `find_classes`.

    With PATH/metadata.csv, or PATH/train/metadata.csv and one per split, classes are those of its column
    `data.label`, and folders do not matter.
    """
    root = Path(detail)
    if (root / METADATA).is_file() or (root / "train" / METADATA).is_file():
        return open_metadata(root, METADATA, options)
    found = find_classes(root, AUDIO_FILES)
    return AudioSource(
        classes=found.classes,
        train=found.train.samples(SoundFile),
        validation=None if found.validation is None else found.validation.samples(SoundFile),
        test=found.test.samples(SoundFile),
        decoder=decoder(),
        left_out=found.left_out,
        forks=True,
    )
