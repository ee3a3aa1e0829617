"""Writing a store: whole shards, each with a record, until the manifest makes the store complete.

New views or samples of a complete store are written beside it; see growth.py. A shard counts as finished
once its record exists; leftovers without a record are swept before the shard is written again. Several
writers may work at once, each on a slice of the shards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from pipeline.codecs.fidelity import Fidelity
from pipeline.core.errors import StoreError
from pipeline.core.files import naming, sync_file, sync_folder
from pipeline.core.hashing import file_digest
from pipeline.places.location import Location
from pipeline.store.arrays import logits_array, reading
from pipeline.store.frame import frame_files
from pipeline.store.growth import growth_folder, set_aside, settle, without
from pipeline.store.header import Header
from pipeline.store.layout import GATHERED, MANIFEST, ShardId
from pipeline.store.leftovers import sweep
from pipeline.store.manifest import Manifest
from pipeline.store.records import Records, RenderChecksums, ShardRecord, written_by


class StoreWriter:
    """Write shards into a store that has its frame. Hold a lock on the slice that is written.

    Args:
        store: the store's folder.
        header: the store's; if the store is complete with a different header, its growth's.
    """

    def __init__(self, store: Path, header: Header) -> None:
        self.store, self.header, self.layout = store, header, header.layout
        self._complete = Manifest.read(Location(store)).shards if (store / MANIFEST).exists() else {}
        self.path = path = growth_folder(store) if self._complete else store
        self._records = Records(path)
        # zarr would omit a shard of zeros; every shard needs a file.
        with zarr.config.set({"array.write_empty_chunks": True}), reading(path, "an array"):
            self._require_arrays()
            self._arrays = {
                (section, array): zarr.open_array(path / section / array, mode="r+")
                for section in self.layout.sections
                for array in self.layout.arrays
            }

    def _require_arrays(self) -> None:
        """Refuse arrays whose shards or codecs contradict the layout: zarr would trust them."""
        for section in self.layout.sections.values():
            for name in self.layout.arrays:
                array = logits_array(self.layout, section, name)
                array.require_metadata((self.path / array.metadata_file).read_bytes())

    @property
    def is_growing(self) -> bool:
        """Whether a complete store gets additions."""
        return self.path != self.store

    def done(self) -> dict[ShardId, ShardRecord]:
        """Return the records of the finished shards, from every writer."""
        found = {**self._complete, **self._records.read(self.layout)}
        return {
            shard: found[shard]
            for shard in self.layout.shards()
            if shard in found and self._is_there(shard, found[shard])
        }

    def missing(self, shards: Iterable[ShardId]) -> list[ShardId]:
        """Return the unfinished ones of some shards, and remove their leftovers."""
        done = self.done()
        missing = [shard for shard in shards if shard not in done]
        for shard in missing:
            self._sweep(shard)
        return missing

    def write(
        self,
        shard: ShardId,
        arrays: Mapping[str, NDArray[Any]],
        *,
        fidelity: Fidelity,
        labelled: int,
        correct: int | None,
        checksums: RenderChecksums,
    ) -> None:
        """Write one whole shard, durably, then its record.

        Args:
            shard: a missing one.
            arrays: the codec's arrays, one row per row of the shard.
            fidelity: the cost of encoding them.
            labelled, correct: labelled samples, and those that the teacher's own outputs answer correctly;
                None if the task counts no correct answers.
            checksums: of the rendered samples at `checksum_rows`.
        """
        rows = self.layout.rows(shard)
        files: dict[str, tuple[int, str]] = {}
        for name, values in arrays.items():
            file = self.path / self.layout.shard_file(shard, name)
            with naming(file):
                self._arrays[shard.section, name][shard.view, rows] = values
            sync_file(file)
            for folder in file.relative_to(self.path).parents[:-1]:
                sync_folder(self.path / folder)
            files[name] = file.stat().st_size, file_digest(file)
        record = ShardRecord(
            rows=self.layout.n_rows(shard),
            files=files,
            fidelity=fidelity,
            labelled=labelled,
            correct=correct,
            checksums=checksums,
        )
        self._records.write(shard, record)

    def read(self, section: str) -> dict[str, NDArray[Any]]:
        """Return the codec's arrays of a section's only view, all of whose shards are finished."""
        rows = self.layout.sections[section].rows()
        return {array: np.asarray(self._arrays[section, array][0])[rows] for array in self.layout.arrays}

    def tidy(self) -> None:
        """Gather the records of a store without missing shards, and remove leftovers of killed writers."""
        done = self.done()
        if self.path == self.store:
            set_aside(self.store, self.header, without(self._records.read(), self.layout))
        self._records.gather(done)
        shards = {
            str(self.layout.shard_file(shard, array))
            for shard in (*done, *self._records.read())
            for array in self.layout.arrays
        }
        sweep(self.path, {*shards, *frame_files(self.path), GATHERED})

    def manifest(self, cached_top1: Mapping[str, float | None]) -> Manifest:
        """Return the manifest of a tidied store without missing shards.

        Args:
            cached_top1: the teacher's accuracy by section, read back from this store.

        Raises:
            StoreError: a shard is missing.
        """
        shards = self.done()
        if len(shards) < sum(1 for _ in self.layout.shards()):
            raise StoreError(
                f"{self.path}: shards are missing; the manifest needs all of them; run the dump again"
            )
        manifest = Manifest(
            header=self.header,
            shards=shards,
            metadata={},
            teacher_top1={
                "direct": {name: direct_top1(shards, name) for name in cached_top1},
                "cached": dict(cached_top1),
            },
            written_by=written_by(),
        )
        others = sorted({*frame_files(self.path), GATHERED})
        metadata = {name: file_digest(self.path / name) for name in others}
        return replace(manifest, metadata=metadata)

    def complete_with(self, manifest: Manifest) -> None:
        """Write the manifest, which completes the store or publishes its growth."""
        manifest.write(self.store)
        settle(self.store)
        Records(self.store).clear()

    def _is_there(self, shard: ShardId, record: ShardRecord) -> bool:
        """Whether a shard's files exist, in the growth or in the store."""
        return all(
            any(
                _has(folder / self.layout.shard_file(shard, array), size)
                for folder in {self.path, self.store}
            )
            for array, (size, _) in record.files.items()
        )

    def _sweep(self, shard: ShardId) -> None:
        """Remove a shard's leftovers: zarr would read a truncated file before overwriting it."""
        for array in self.layout.arrays:
            file = self.path / self.layout.shard_file(shard, array)
            for leftover in (file, *file.parent.glob(f"{file.name}.*.partial")):
                leftover.unlink(missing_ok=True)


def _has(file: Path, size_bytes: int) -> bool:
    return file.exists() and file.stat().st_size == size_bytes


def direct_top1(records: Mapping[ShardId, ShardRecord], *sections: str) -> float | None:
    """Return the share of correct answers on sections together, from the outputs before encoding.

    None if no sample is labelled, or if the task counts no correct answers.
    """
    chosen = [record for shard, record in records.items() if shard.section in sections]
    labelled, correct = (
        sum(r.labelled for r in chosen),
        [r.correct for r in chosen if r.correct is not None],
    )
    return sum(correct) / labelled if labelled and len(correct) == len(chosen) else None
