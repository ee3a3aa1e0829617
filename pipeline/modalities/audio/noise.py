"""Background noise: a folder of your own recordings, identified by a digest of its files."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError, MismatchError, quoted
from pipeline.core.hashing import file_digest
from pipeline.modalities.audio.decoding import AUDIO_FILES, read_sound, to_rate
from pipeline.samples.files import find_files

# 1 hour at 16 kHz: all noises stay in memory.
_MOST_SAMPLES = 3600 * 16_000
# Folders that the user named in this process.
_NAMED: set[str] = set()


@dataclass(frozen=True, eq=False, slots=True)
class Noises:
    """Recordings of noise at one rate.

    Args:
        clips: each (n,) int16, in the order of their names.
    """

    clips: tuple[NDArray[np.int16], ...]

    def stretch(self, clip: int, start: int, count: int) -> NDArray[np.int16]:
        """Return `count` samples of a clip from `start` on; a short clip begins again at its end."""
        samples = self.clips[clip]
        end = start + count
        if end <= len(samples):
            return samples[start:end]
        return samples[np.arange(start, end) % len(samples)]


def noise_files(folder: str) -> list[str]:
    """Return the names of a folder's sound files, at any depth, sorted.

    Raises:
        DataError: no such folder, or no sound files in it.
    """
    root = Path(folder)
    names = find_files(root, ".", AUDIO_FILES).names if root.is_dir() else []
    if not names:
        raise DataError(
            f"{folder}: no sound files; expected a folder of noises, as background_noise names it; correct "
            "the path"
        )
    return sorted(Path(name).as_posix() for name in names)


@lru_cache(maxsize=8)
def noise_digest(folder: str) -> str:
    """Return the SHA-256 (hex) of the names and bytes of a folder's sound files.

    Read once per process.

    Raises:
        DataError: no such folder, or no sound files in it.
    """
    state = hashlib.sha256()
    for name in noise_files(folder):
        state.update(f"{name}\n{file_digest(Path(folder) / name)}\n".encode())
    return state.hexdigest()


def trust_folder(folder: str) -> None:
    """Let views read a folder outside the working folder: the user named it, not a store alone."""
    _NAMED.add(folder)


def _require_named(folder: str) -> None:
    """Refuse a folder that only a store's header names, unless it lies in the working folder.

    Raises:
        MismatchError: it lies elsewhere, or in a store, which may contain links to any place.
    """
    place = Path(os.path.abspath(folder))
    here = place.is_relative_to(Path.cwd()) and not any(part.endswith(".zarr") for part in place.parts)
    if folder not in _NAMED and not here:
        raise MismatchError(
            f"background_noise: a store names the folder {quoted(folder)}, which is not in the working "
            "folder; a store alone reads no other folder; name it in params.yaml, or link it into the "
            "working folder and dump again"
        )


@lru_cache(maxsize=4)
def open_noises(folder: str, digest: str, rate: int) -> Noises:
    """Decode a folder's sound files.

    Args:
        folder: the folder.
        digest: the expected digest of its files.
        rate: samples per second of the result.

    Raises:
        DataError: a file is unreadable, or there is more than an hour.
        MismatchError: the files are not those of the digest.
    """
    _require_named(folder)
    found = noise_digest(folder)
    if found != digest:
        raise MismatchError(
            f"{folder}: background noise of digest {found[:12]}, and the views were made with "
            f"{digest[:12]}; bring the same files back, or make a new dump"
        )
    clips, total = [], 0
    for name in noise_files(folder):
        path = Path(folder) / name
        clips.append(to_rate(read_sound(path), rate, path))
        total += len(clips[-1])
        if total > _MOST_SAMPLES:
            raise DataError(
                f"{folder}: more than {_MOST_SAMPLES / rate / 60:,.0f} minutes of background noise; "
                "expected less, as it stays in memory; remove some"
            )
    return Noises(tuple(clips))
