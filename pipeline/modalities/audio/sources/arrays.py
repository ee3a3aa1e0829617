"""Clips stored as arrays in one .npz file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError
from pipeline.modalities.audio.form import HIGHEST_RATE, LOWEST_RATE, AudioSource
from pipeline.modalities.audio.options import AudioOptions
from pipeline.samples.npz import Parts, read_npz, require_labels
from pipeline.samples.samples import Sample, Samples

_NPZ = Parts("clips", optional=("lengths",), general=("sample_rate",))


def open_npz(detail: str, options: AudioOptions) -> AudioSource:
    """Open an .npz file with {train,test}_{clips,labels} and sample_rate.

    Clips are (N, T) int16. Those of different lengths are padded at the end, and {train,test}_lengths (N,)
    has the number of samples of each. val_... and classes are optional.

    Raises:
        DataError: the file is missing, damaged, or has arrays of another form.
    """
    path = Path(detail)
    found = read_npz(path, _NPZ)
    lengths = {}
    for split, clips in found.samples.items():
        _require_clips(path, split, clips)
        require_labels(path, split, found.labels[split], len(clips), "clip")
        lengths[split] = _lengths(path, split, clips, found.arrays.get(f"{split}_lengths"))
    classes, labels = found.named_classes("clip")
    samples = {
        split: clip_samples(clips, lengths[split], labels[split], split, str(path))
        for split, clips in found.samples.items()
    }
    return AudioSource(
        classes=classes,
        train=samples["train"],
        validation=None if found.validation is None else samples[found.validation],
        test=samples["test"],
        sample_rate=_rate(path, found.arrays["sample_rate"]),
        left_out=found.left_out,
        forks=True,
    )


def clip_samples(
    clips_NT: NDArray[np.int16], lengths_N: NDArray[Any], labels_N: NDArray[Any], split: str, file: str
) -> Samples:
    """Return samples SPLIT/ROW of padded clips."""

    def make(row: int) -> Sample:
        length = int(lengths_N[row])
        return Sample(f"{split}/{row}", int(labels_N[row]), lambda: clips_NT[row, :length], file)

    return Samples(make, np.arange(len(clips_NT)))


def _require_clips(path: Path, split: str, clips: NDArray[Any]) -> None:
    if clips.dtype != np.int16 or clips.ndim != 2 or not clips.size:
        raise DataError(
            f"{path}: {split}_clips is {clips.dtype} {clips.shape}; expected int16 (N, T), one channel; "
            "convert it, e.g. with np.rint(32767 * clips).astype(np.int16)"
        )


def _lengths(
    path: Path, split: str, clips: NDArray[Any], lengths: NDArray[Any] | None
) -> NDArray[np.int64]:
    count, longest = clips.shape
    if lengths is None:
        return np.full(count, longest)
    if not np.issubdtype(lengths.dtype, np.integer) or lengths.shape != (count,):
        raise DataError(
            f"{path}: {split}_lengths is {lengths.dtype} {lengths.shape}; expected integers ({count},)"
        )
    if not 1 <= int(lengths.min()) <= int(lengths.max()) <= longest:
        raise DataError(
            f"{path}: {split}_lengths has {int(lengths.min())} to {int(lengths.max())}; expected 1 to "
            f"{longest}, the length of {split}_clips"
        )
    return lengths.astype(np.int64)


def _rate(path: Path, given: NDArray[Any]) -> int:
    if given.size != 1 or given.dtype.kind not in "iuf" or not LOWEST_RATE <= given.item() <= HIGHEST_RATE:
        raise DataError(
            f"{path}: sample_rate is {given.dtype} {given.tolist()!s:.40}; expected one number, "
            f"{LOWEST_RATE:,} to {HIGHEST_RATE:,} samples per second"
        )
    return int(given.item())
