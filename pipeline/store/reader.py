"""Reading a store: a view at a time, each checked against the manifest, rows found by sample key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor

from pipeline.codecs import find_codec
from pipeline.data.packed import PackedImages
from pipeline.digests import file_digest
from pipeline.errors import CorruptStoreError, IncompleteStoreError, MismatchError
from pipeline.models.teacher import Teacher
from pipeline.store.layout import ShardId
from pipeline.store.manifest import Manifest
from pipeline.store.summary import summarise_manifest
from pipeline.views.spec import ViewSpec


class SectionReader:
    """A split's part of a store.

    Args:
        path: the store's folder.
        manifest: the store's.
        name: train, validation or test.
    """

    def __init__(self, path: Path, manifest: Manifest, name: str) -> None:
        self._path, self._manifest, self._name = path, manifest, name
        self._layout = manifest.layout
        section = self._layout.sections[name]
        self.n_samples, self.n_views = section.n_samples, section.n_views
        self.keys: NDArray[np.uint64] = self._index("keys")
        self._digests: NDArray[np.uint64] = self._index("digests")

    def rows_of(self, images: PackedImages) -> NDArray[np.int64]:
        """Return the row of each sample of a split, found by its key.

        Raises:
            MismatchError: a sample is not in the store, or has other content there.
        """
        order = np.argsort(self.keys)
        place = np.searchsorted(self.keys, images.keys, sorter=order)
        rows = order[np.minimum(place, len(order) - 1)]
        absent = self.keys[rows] != images.keys
        changed = self._digests[rows] != images.digests
        for problem, what in ((absent, "is not in the store"), (changed, "has other content there")):
            if problem.any():
                sample = images.names[int(np.argmax(problem))]
                raise MismatchError(
                    f"{self._path}: made from another dataset: sample {sample!r} {what} "
                    f"({int(problem.sum()):,} of {len(images):,} {self._name} samples); expected the "
                    "images that the teacher saw; restore the data or make a new dump"
                )
        return rows.astype(np.int64)

    def encoded(self, view: int) -> dict[str, NDArray[Any]]:
        """Read one view whole: the codec's arrays, N rows each.

        Raises:
            CorruptStoreError: bytes are not those that were written.
        """
        self._check(view)
        return {array: self._read(array, view) for array in self._layout.arrays()}

    def logits(self, view: int = 0) -> Tensor:
        """Read and decode one view: (N, C) float32, each row's maximum 0."""
        arrays = self.encoded(view)
        codec = find_codec(self._layout.codec, self._layout.n_classes)
        return codec.decode({name: torch.from_numpy(values) for name, values in arrays.items()})

    def _check(self, view: int) -> None:
        if not 0 <= view < self.n_views:
            raise IndexError(f"view {view} of {self._path}; it has {self.n_views} views, from 0")
        for block in range(self._layout.blocks(self._name)):
            shard = ShardId(self._name, view, block)
            for bad in broken_files(self._path, self._manifest, shard):
                raise CorruptStoreError(f"{self._path}: {bad}; restore it (dvc checkout)")

    def _read(self, array: str, view: int) -> NDArray[Any]:
        try:
            return np.asarray(zarr.open_array(self._path / self._name / array, mode="r")[view])
        except (ValueError, RuntimeError, KeyError, FileNotFoundError) as error:
            raise CorruptStoreError(
                f"{self._path}: {self._name}/{array} cannot be decoded ({str(error).splitlines()[0]}); "
                "restore it (dvc checkout)"
            ) from None

    def _index(self, name: str) -> NDArray[np.uint64]:
        try:
            return np.asarray(zarr.open_array(self._path / self._name / name, mode="r")[:])
        except (ValueError, RuntimeError, KeyError, FileNotFoundError) as error:
            raise CorruptStoreError(
                f"{self._path}: {self._name}/{name} cannot be read ({str(error).splitlines()[0]}); restore "
                "it (dvc checkout)"
            ) from None


class LogitStore:
    """A complete store of cached logits, opened for reading.

    Args:
        path: the store's folder.
        manifest: read from it.

    >>> store = LogitStore.open(Path("data/logits/main.zarr"))  # doctest: +SKIP
    >>> store.view(0)  # doctest: +SKIP
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        self.sections = {name: SectionReader(path, manifest, name) for name in manifest.layout.sections}
        self.codec = find_codec(manifest.layout.codec, manifest.layout.n_classes)

    @classmethod
    def open(cls, path: Path | str) -> LogitStore:
        """Open a store.

        Raises:
            IncompleteStoreError: it was not finished.
            CorruptStoreError: its manifest, metadata or index was changed.
        """
        path = Path(path)
        manifest = Manifest.read(path)
        for name, digest in manifest.metadata.items():
            file = path / name
            if not file.exists():
                raise IncompleteStoreError(f"{file}: missing; restore it (dvc checkout)")
            if file_digest(file) != digest:
                raise CorruptStoreError(f"{file}: changed since it was written; restore it (dvc checkout)")
        return cls(path, manifest)

    @property
    def n_views(self) -> int:
        """V, the number of training views."""
        return self.sections["train"].n_views

    @property
    def n_samples(self) -> int:
        """N, the number of training samples."""
        return self.sections["train"].n_samples

    @property
    def keys(self) -> NDArray[np.uint64]:
        """Sample keys of the training rows (N,)."""
        return self.sections["train"].keys

    @property
    def view_spec(self) -> ViewSpec:
        """The views that the teacher saw."""
        return ViewSpec.from_canonical(self.manifest.views)

    def require(self, *, views: ViewSpec, view_count: int, codec: str) -> None:
        """Refuse a store that is not of these views and this codec.

        Raises:
            MismatchError: naming what differs.
        """
        for what, found, expected in (
            ("views", self.view_spec, views),
            ("views.count", self.n_views, view_count),
            ("codec", self.codec.name, codec),
        ):
            if found != expected:
                raise MismatchError(
                    f"{self.path}: {what} is {found}; expected {expected}, as the dump's parameters say; "
                    f"correct them, use a new dump name, or remove the store with: rm -r {self.path}"
                )

    def require_teacher(self, teacher: Teacher) -> None:
        """Refuse a teacher that is not the one that made the store.

        Raises:
            MismatchError: other weights, preprocessing, classes or precision.
        """
        expected, found = self.manifest.fingerprint.teacher, teacher.digest()
        if expected != found:
            raise MismatchError(
                f"{self.path}: made by another teacher ({expected[:12]}), {teacher.name} is now "
                f"{found[:12]}; expected the one that made it; restore its checkpoint or make a new dump"
            )

    def rows_of(self, images: PackedImages) -> NDArray[np.int64]:
        """Return the training row of each sample of a split; see `SectionReader.rows_of`."""
        return self.sections["train"].rows_of(images)

    def view(self, view: int) -> Tensor:
        """Read one training view: (N, C) float32 logits, each row's maximum 0."""
        return self.sections["train"].logits(view)

    def encoded_view(self, view: int) -> dict[str, NDArray[Any]]:
        """Read one training view without decoding it."""
        return self.sections["train"].encoded(view)

    def held_out(self, name: str, images: PackedImages) -> Tensor | None:
        """Return the teacher's logits of un-augmented images, in the split's order, or None.

        Args:
            name: validation or test.
            images: that split.
        """
        if name not in self.sections or not len(images):
            return None
        section = self.sections[name]
        return section.logits()[torch.from_numpy(section.rows_of(images))]

    def summary(self) -> dict[str, Any]:
        """Return what `pipeline inspect --json` prints."""
        return summarise_manifest(self.manifest)


def broken_files(path: Path, manifest: Manifest, shard: ShardId) -> list[str]:
    """Return what is wrong with a shard's files, a line each; nothing if they are what was written."""
    problems = []
    for array, (size, digest) in manifest.shards[shard].files.items():
        name = manifest.layout.shard_file(shard, array)
        file = path / name
        if not file.exists():
            problems.append(f"{name} is missing")
        elif file.stat().st_size != size:
            problems.append(f"{name} has {file.stat().st_size} bytes, expected {size}")
        elif file_digest(file) != digest:
            problems.append(f"{name} has other bytes than were written")
    return problems
