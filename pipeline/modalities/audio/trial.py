"""A few unlabelled clips from the sound files of any folder, to try a model on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.core.arrays import spread
from pipeline.core.errors import DataError
from pipeline.core.hashing import content_digest, sample_key
from pipeline.core.progress import note
from pipeline.modalities.audio.decoding import AUDIO_FILES, decoder, read_sound, to_rate
from pipeline.modalities.audio.form import audio_form
from pipeline.samples.files import Tree, find_files
from pipeline.samples.packed import PackedSplit, offsets_of
from pipeline.samples.samples import UNLABELLED, LeftOut, Names


def open_sounds(folder: Path, rate: int, count: int) -> PackedSplit:
    """Decode at most `count` sound files of a folder into memory, evenly spread by name.

    Args:
        folder: folder of sound files, searched at any depth.
        rate: samples per second of the clips.
        count: at least 1.

    Raises:
        DataError: there is no sound file, or one cannot be read.
    """
    tree = find_files(folder, ".", AUDIO_FILES) if folder.is_dir() else Tree([], LeftOut())
    found, others = sorted(Path(name).as_posix() for name in tree.names), str(tree.left_out)
    if not found:
        raise DataError(
            f"{folder}: no sound files{others and f', left out: {others}'}; expected a folder with "
            f"{', '.join(AUDIO_FILES.suffixes)}; name another"
        )
    if others:
        note(f"{folder}: left out: {others}")
    names = [found[row] for row in spread(len(found), count).tolist()]
    clips = [to_rate(read_sound(folder / name), rate, folder / name) for name in names]
    shapes, form = np.array([clip.shape for clip in clips], np.int32), audio_form(rate, decoder())
    return PackedSplit(
        values=np.concatenate(clips),
        form=form,
        offsets=offsets_of(shapes, form)[:-1],
        shapes=shapes,
        labels=np.full(len(clips), UNLABELLED),
        keys=np.array([sample_key(name) for name in names], np.uint64),
        digests=np.array([content_digest(clip, UNLABELLED) for clip in clips], np.uint64),
        names=Names.of(names),
    )
