"""Writing a store: whole shards, each with a record, until the manifest makes it complete.

A shard counts as done when its record is there; what has no record is swept before it is made. Several
writers may work at once, each on a slice of the shards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import zarr
from numpy.typing import NDArray

from pipeline.codecs.fidelity import Fidelity
from pipeline.digests import file_digest
from pipeline.errors import StoreError
from pipeline.files import naming, sync_file, sync_folder
from pipeline.store.faults import strays
from pipeline.store.frame import frame_files
from pipeline.store.header import Header
from pipeline.store.layout import GATHERED, RECORDS, ShardId
from pipeline.store.local import remove_inside
from pipeline.store.manifest import Manifest
from pipeline.store.nodes import reading
from pipeline.store.records import Records, ShardRecord
from pipeline.store.witness import Witness


class StoreWriter:
    """A store with its frame that takes shards. Hold a lock on the slice that is written.

    Args:
        path: the store's folder.
        header: the one that is in it.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.path, self.header, self.layout = path, header, header.layout
        self._records = Records(path)
        # A shard of zeros is a file like any other.
        with zarr.config.set({"array.write_empty_chunks": True}), reading(path, "an array"):
            self._arrays = {
                (section, array): zarr.open_array(path / section / array, mode="r+")
                for section in self.layout.sections
                for array in self.layout.arrays
            }

    def done(self) -> dict[ShardId, ShardRecord]:
        """Return the records of the shards that are there now, by whomever they were made."""
        found = self._records.read(self.layout)
        return {
            shard: found[shard]
            for shard in self.layout.shards()
            if shard in found and self._is_there(shard, found[shard])
        }

    def missing(self, shards: Iterable[ShardId]) -> list[ShardId]:
        """Return those of some shards that are not done, without what is left of them."""
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
        correct: int,
        witness: Witness,
    ) -> None:
        """Write one whole shard, durably, then its record.

        Args:
            shard: one that is missing.
            arrays: the codec's arrays of its rows.
            fidelity: what encoding them cost.
            labelled, correct: labelled samples, and those the teacher's own logits classify right.
            witness: what those of `witness_rows` looked like.
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
            witness=witness,
        )
        self._records.write(shard, record)

    def tidy(self) -> None:
        """Gather the records of a store that misses nothing, and remove what is none of its files."""
        done = self.done()
        self._records.gather(done)
        shards = {str(self.layout.shard_file(s, array)) for s in done for array in self.layout.arrays}
        for stray in strays(self.path, {*shards, *frame_files(self.path), GATHERED}):
            if not stray.name.startswith(f"{RECORDS}/"):
                remove_inside(self.path, stray.name)

    def manifest(self, cached_top1: Mapping[str, float | None]) -> Manifest:
        """Return the manifest of a store that misses nothing and is tidy.

        Args:
            cached_top1: the teacher's accuracy by section, read back from this store.

        Raises:
            StoreError: a shard is missing.
        """
        shards = self.done()
        if len(shards) < sum(1 for _ in self.layout.shards()):
            raise StoreError(f"{self.path}: shards are missing; expected all of them before the manifest")
        manifest = Manifest(
            header=self.header,
            shards=shards,
            metadata={},
            teacher_top1={
                "direct": {name: direct_top1(shards, name) for name in cached_top1},
                "cached": dict(cached_top1),
            },
        )
        others = sorted({*frame_files(self.path), GATHERED})
        metadata = {name: file_digest(self.path / name) for name in others}
        return replace(manifest, metadata=metadata)

    def complete_with(self, manifest: Manifest) -> None:
        """Write the manifest, which completes the store, and drop the single records."""
        manifest.write(self.path)
        self._records.clear()

    def _is_there(self, shard: ShardId, record: ShardRecord) -> bool:
        files = [self.path / self.layout.shard_file(shard, array) for array in record.files]
        sizes = [size for size, _ in record.files.values()]
        return all(f.exists() and f.stat().st_size == s for f, s in zip(files, sizes, strict=True))

    def _sweep(self, shard: ShardId) -> None:
        """Remove what is left of a shard: zarr reads a truncated one before it would overwrite it."""
        for array in self.layout.arrays:
            file = self.path / self.layout.shard_file(shard, array)
            for leftover in (file, *file.parent.glob(f"{file.name}.*.partial")):
                leftover.unlink(missing_ok=True)


def direct_top1(records: Mapping[ShardId, ShardRecord], *sections: str) -> float | None:
    """Return the teacher's accuracy on sections together, from its logits before encoding."""
    chosen = [record for shard, record in records.items() if shard.section in sections]
    labelled = sum(record.labelled for record in chosen)
    return sum(record.correct for record in chosen) / labelled if labelled else None
