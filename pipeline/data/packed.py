"""Decoded images, packed: one flat file of uint8 pixels and one small index a split.

Owns the on-disk form of a prepared dataset and its memory-mapped reading. Nothing here decodes,
downloads or augments. A folder of prepared data holds

    dataset.json             classes, channels, decoder, mean and deviation, counts, digest
    {train,validation,test}.pixels   all images one after the other, rows of H x W x C uint8
    {train,validation,test}.npz      offsets, shapes, labels, keys, digests
    {train,validation,test}.names    one sample name a line
"""

from __future__ import annotations

import functools
import io
import os
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.data.sample import NO_DECODER, Sample
from pipeline.digests import array_digest, content_digest, sample_key, spec_digest
from pipeline.errors import DataError
from pipeline.files import naming, read_json, write_bytes, write_json

SPLITS = ("train", "validation", "test")
_SCHEMA = 2


@dataclass(frozen=True, eq=False, kw_only=True)
class PackedImages:
    """One split: N decoded images with labels, stable keys and content digests.

    Args:
        pixels: flat uint8, memory-mapped.
        channels: 1 or 3.
        offsets: (N,) int64, where each image starts in `pixels`.
        shapes: (N, 2) int32, heights and widths.
        labels: (N,) int64, -1 for unlabelled.
        keys: (N,) uint64, hashes of the samples' names.
        digests: (N,) uint64, hashes of each image's shape, pixels and label.
        names: the samples' names, for people.
        decoder: what made the pixels of files, with its version; none for arrays.

    """

    pixels: NDArray[np.uint8]
    channels: int
    offsets: NDArray[np.int64]
    shapes: NDArray[np.int32]
    labels: NDArray[np.int64]
    keys: NDArray[np.uint64]
    digests: NDArray[np.uint64]
    names: tuple[str, ...]
    decoder: str = NO_DECODER

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, row: int) -> NDArray[np.uint8]:
        """Return one image (H, W, C) uint8, without a copy."""
        height, width = self.shapes[row].tolist()
        start = int(self.offsets[row])
        return self.pixels[start : start + height * width * self.channels].reshape(height, width, -1)

    @functools.cached_property
    def uniform(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]] | None:
        """The file as images of one size (M, H, W, C) and each sample's place in it (N,).

        Nothing is copied. None where sizes differ; M is more than N for a subset.
        """
        if len(self) == 0 or (self.shapes != self.shapes[0]).any():
            return None
        height, width = self.shapes[0]
        count = int(height) * int(width) * self.channels
        if self.pixels.size % count or (self.offsets % count).any():
            return None
        return self.pixels.reshape(-1, height, width, self.channels), self.offsets // count

    @property
    def size_bytes(self) -> int:
        """Size of the samples' pixels."""
        return int(self.shapes.astype(np.int64).prod(1).sum()) * self.channels

    def subset(self, rows: NDArray[np.int64]) -> PackedImages:
        """Return some of the samples, in the given order, over the same pixels."""
        columns = ("offsets", "shapes", "labels", "keys", "digests")
        return replace(
            self,
            **{column: getattr(self, column)[rows] for column in columns},
            names=tuple(self.names[row] for row in rows.tolist()),
        )

    def digest(self) -> str:
        """Return the SHA-256 (hex) of keys and contents, in order."""
        return array_digest(self.keys, self.digests)


@dataclass(frozen=True, eq=False, kw_only=True)
class PreparedData:
    """A prepared dataset: three splits that share classes and channels.

    Args:
        classes: C class names; a label is an index into them.
        mean, std: per channel, of the training split's pixels scaled to 0..1.
        train, validation, test: the splits; validation may be empty.

    """

    classes: tuple[str, ...]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: PackedImages
    validation: PackedImages
    test: PackedImages

    @classmethod
    def open(cls, folder: Path) -> PreparedData:
        """Open what `pipeline prepare` wrote.

        Raises:
            DataError: there is no complete prepared dataset in `folder`.

        """
        try:
            description = read_json(folder / "dataset.json")
        except FileNotFoundError:
            raise DataError(
                f"{folder}: no prepared dataset (dataset.json is missing); run: pipeline prepare"
            ) from None
        except ValueError as error:
            raise DataError(
                f"{folder / 'dataset.json'}: not JSON ({error}); run: pipeline prepare"
            ) from None
        if description["schema"] != _SCHEMA:
            raise DataError(
                f"{folder}: prepared data of schema {description['schema']}, this program reads "
                f"{_SCHEMA}; run: pipeline prepare, or with DVC: dvc repro -f -s prepare"
            )
        form = description["channels"], description["decoder"]
        splits = {name: _open_split(folder, name, *form) for name in SPLITS}
        digest = spec_digest({name: split.digest() for name, split in splits.items()})
        if digest != description["digest"]:
            raise DataError(
                f"{folder}: index files do not belong to dataset.json (digest {digest[:12]}, "
                f"expected {description['digest'][:12]}); run: pipeline prepare"
            )
        return cls(
            classes=tuple(description["classes"]),
            channels=description["channels"],
            mean=tuple(description["mean"]),
            std=tuple(description["std"]),
            **splits,
        )


def write_description(
    folder: Path,
    *,
    source: str,
    classes: tuple[str, ...],
    channels: int,
    decoder: str,
    moments: Moments,
    splits: dict[str, PackedImages],
) -> dict[str, Any]:
    """Write dataset.json, the last file of a prepared dataset, and return its content."""
    mean, std = moments.mean_and_std()
    description = {
        "schema": _SCHEMA,
        "source": source,
        "classes": list(classes),
        "channels": channels,
        "decoder": decoder,
        "mean": mean,
        "std": std,
        "samples": {name: len(split) for name, split in splits.items()},
        "digest": spec_digest({name: split.digest() for name, split in splits.items()}),
    }
    write_json(folder / "dataset.json", description)
    return description


class Moments:
    """Per-channel mean and standard deviation of pixels, from exact integer sums."""

    def __init__(self, channels: int) -> None:
        self._counts = np.zeros((channels, 256), np.int64)

    def add(self, image_HWC: NDArray[np.uint8]) -> None:
        """Count one image's pixels."""
        for channel, counts in enumerate(self._counts):
            counts += np.bincount(image_HWC[..., channel].ravel(), minlength=256)

    def mean_and_std(self) -> tuple[list[float], list[float]]:
        """Return the two moments of pixels scaled to 0..1, rounded to six digits."""
        values = np.arange(256) / 255
        total = self._counts.sum(1)
        mean = self._counts @ values / total
        variance = self._counts @ values**2 / total - mean**2
        std = np.sqrt(np.maximum(variance, 0))
        return [round(float(m), 6) for m in mean], [max(round(float(s), 6), 1e-3) for s in std]


class SplitWriter:
    """Writes one split: pixels as they come, the index at the end.

    Args:
        folder: where the split's three files go.
        name: the split's name.
        channels: of every image.
        decoder: what makes their pixels.

    """

    def __init__(self, folder: Path, name: str, channels: int, decoder: str) -> None:
        self._folder, self._name, self._channels, self._decoder = folder, name, channels, decoder
        # Written beside and renamed: the old file may be a link into DVC's cache.
        self._path = folder / f"{name}.pixels"
        self._partial = folder / f".{name}.pixels.partial"
        self._file = self._partial.open("wb")
        self._rows: list[tuple[int, int, int, int, int]] = []
        self._names: list[str] = []
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._file.close()
        finally:
            self._partial.unlink(missing_ok=True)

    def add(self, sample: Sample, image_HWC: NDArray[np.uint8]) -> None:
        """Append one decoded image."""
        height, width, _ = image_HWC.shape
        digest = content_digest(image_HWC, sample.label)
        self._rows.append((self._end, height, width, sample.label, digest))
        self._names.append(sample.name)
        with naming(self._path):
            self._end += self._file.write(np.ascontiguousarray(image_HWC).data)

    def finish(self) -> PackedImages:
        """Write the index and return the split, opened."""
        with naming(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
        os.replace(self._partial, self._path)
        columns = list(zip(*self._rows, strict=True)) or [()] * 5
        index: dict[str, Any] = {
            "offsets": np.array(columns[0], np.int64),
            "shapes": np.array([columns[1], columns[2]], np.int32).T,
            "labels": np.array(columns[3], np.int64),
            "keys": _unique_keys(self._names),
            "digests": np.array(columns[4], np.uint64),
        }
        buffer = io.BytesIO()
        np.savez(buffer, **index)
        write_bytes(self._folder / f"{self._name}.npz", buffer.getvalue())
        names = "".join(f"{name}\n" for name in self._names)
        write_bytes(self._folder / f"{self._name}.names", names.encode())
        return _open_split(self._folder, self._name, self._channels, self._decoder)


def _unique_keys(names: Iterable[str]) -> NDArray[np.uint64]:
    seen: dict[int, str] = {}
    for name in names:
        key = sample_key(name)
        if key in seen:
            raise DataError(
                f"samples {seen[key]!r} and {name!r} have the same key; expected unique names; rename one"
            )
        seen[key] = name
    return np.fromiter(seen, np.uint64, len(seen))


def _open_split(folder: Path, name: str, channels: int, decoder: str) -> PackedImages:
    path = folder / f"{name}.pixels"
    try:
        index = folder / f"{name}.npz"
        with index.open("rb") as file, np.load(file) as archive:
            arrays = dict(archive)
        # Not splitlines, nor text mode: a name may hold any other line separator.
        names = tuple((folder / f"{name}.names").read_bytes().decode().split("\n")[:-1])
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise DataError(f"{error.filename}: missing; run: pipeline prepare") from None
    except (EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{index}: damaged ({error}); run: pipeline prepare") from None
    expected = int((arrays["shapes"].astype(np.int64).prod(1) * channels).sum())
    if size != expected:
        raise DataError(f"{path}: {size} bytes, expected {expected}; run: pipeline prepare")
    # As a plain array: slicing a memmap costs more than copying a small image.
    pixels = np.memmap(path, np.uint8, "r").view(np.ndarray) if size else np.zeros(0, np.uint8)
    return PackedImages(pixels=pixels, channels=channels, names=names, decoder=decoder, **arrays)
