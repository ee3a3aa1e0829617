"""Writing a store: whole shards, each with a record, until the manifest makes the store complete.

New views or samples of a complete store are written beside it; see growth.py. A shard counts as finished
once its record exists; leftovers without a record are swept before the shard is written again. Several
writers may work at once, each on a slice of the shards.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from pipeline.codecs.fidelity import Fidelity
from pipeline.core.errors import CorruptStoreError, StoreError
from pipeline.core.files import naming, sync_file, sync_folder
from pipeline.core.hashing import file_digest
from pipeline.places.location import Location
from pipeline.store.arrays import RESTORE, logits_array, reading, reason
from pipeline.store.catalogue import Catalogue
from pipeline.store.frame import frame_files
from pipeline.store.growth import forget_work, growth_folder, set_aside, settle
from pipeline.store.header import Header
from pipeline.store.layout import GATHERED, MANIFEST, ShardId, Span
from pipeline.store.ledger import Done, Finished, Records
from pipeline.store.leftovers import sweep
from pipeline.store.manifest import Manifest, sum_up
from pipeline.store.records import RenderChecksums, ShardRecord, written_by
from pipeline.store.shards import Catalogues


class StoreWriter:
    """Write shards into a store that has its frame. Hold a lock on the slice that is written.

    Args:
        store: the store's folder.
        header: the store's; if the store is complete with a different header, its growth's.
    """

    def __init__(self, store: Path, header: Header) -> None:
        self.store, self.header, self.layout = store, header, header.layout
        self._complete = Manifest.read(Location(store)) if (store / MANIFEST).exists() else None
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

    def done(self, shards: Iterable[ShardId] | None = None) -> Done:
        """Return the finished ones of some shards, or of all, from every writer."""
        asked = list(self.layout.shards() if shards is None else shards)
        found = self._finished_before(asked)
        found |= self._records.read(self.header, [shard for shard in asked if shard not in found])
        return {shard: found[shard] for shard in asked if shard in found and self._is_there(found[shard])}

    def begun(self) -> set[ShardId]:
        """Return the shards that have a record, by the names of the records."""
        return self._records.shards()

    def missing(self, shards: Iterable[ShardId]) -> list[ShardId]:
        """Return the unfinished ones of some shards, and remove their leftovers."""
        shards = list(shards)
        done = self.done(shards)
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
        self._records.write(shard, record, self.header.origin)

    def read(self, section: str) -> dict[str, NDArray[Any]]:
        """Return the codec's arrays of a section's only view, all of whose shards are finished."""
        rows = self.layout.sections[section].rows()
        return {array: np.asarray(self._arrays[section, array][0])[rows] for array in self.layout.arrays}

    def tidy(self) -> None:
        """Remove leftovers of killed writers from a store without missing shards."""
        surplus = {shard for shard in self._records.shards() if not self.layout.holds(shard)}
        if self.path == self.store:
            set_aside(self.store, self.header, surplus)
        of_growth = surplus if self.is_growing else set()
        known = {
            self.layout.shard_name(shard, array)
            for shard in chain(self.layout.shards(), of_growth)
            for array in self.layout.arrays
        }
        sweep(self.path, known | frame_files(self.path) | {GATHERED})

    def manifest(self, cached_top1: Mapping[str, float | None], done: Done | None = None) -> Manifest:
        """Write the catalogues of a store without missing shards, and return its manifest.

        Args:
            cached_top1: the teacher's accuracy by section, read back from this store.
            done: its shards, if they are known; see `done`.

        Raises:
            StoreError: a shard is missing.
        """
        done = self.done() if done is None else done
        if len(done) < self.layout.n_shards:
            raise StoreError(
                f"{self.path}: shards are missing; the manifest needs all of them; run the dump again"
            )
        digests = {str(span): self._catalogue(span, done) for span in self.layout.spans()}
        catalogues = Catalogues(Location(self.store), self.header, digests)
        totals = sum_up(self.layout, catalogues.read)
        names = sorted(frame_files(self.path))
        return Manifest(
            header=self.header,
            shards=catalogues,
            totals=totals,
            metadata={name: file_digest(self.path / name) for name in names},
            teacher_top1={
                "direct": {name: totals[name].accuracy for name in cached_top1},
                "cached": dict(cached_top1),
            },
            written_by=written_by(),
        )

    def complete_with(self, manifest: Manifest) -> None:
        """Complete the store, or publish its growth, and remove what it no longer needs."""
        self.publish(manifest)
        forget_work(self.store, manifest)

    def publish(self, manifest: Manifest) -> None:
        """Write the manifest, which completes the store or publishes its growth."""
        manifest.write(self.store)
        settle(self.store)

    def _catalogue(self, span: Span, done: Done) -> str:
        """Write the catalogue of a span, unless the complete store has it; return its SHA-256 (hex)."""
        if self._complete is not None and self._complete.layout.has_span(span):
            if isinstance(self._complete.shards, Catalogues):
                return self._complete.shards.digests[str(span)]
            return self._records.put(self._complete.catalogue(span))
        parts = [part.only(shard) for shard in span.shards() for part in [done[shard].read()]]
        try:
            joined = Catalogue.joined(span, parts)
            joined.require_sound()
        except ValueError as error:
            raise CorruptStoreError(
                f"{self.path}: records of {span} and the next shards contradict each other "
                f"({reason(error)}); {RESTORE}"
            ) from None
        return self._records.put(joined)

    def _finished_before(self, shards: Iterable[ShardId]) -> Done:
        """Return those of some shards that a complete store has."""
        if self._complete is None:
            return {}
        return dict(self._complete.finished(sorted(shards)))

    def _is_there(self, finished: Finished) -> bool:
        """Whether a shard's files exist, in the growth or in the store."""
        names = [self.layout.shard_name(finished.shard, array) for array in sorted(self.layout.arrays)]
        return all(
            any(_has(f"{folder}/{name}", size) for folder in {self.path, self.store})
            for name, size in zip(names, finished.sizes, strict=True)
        )

    def _sweep(self, shard: ShardId) -> None:
        """Remove a shard's leftovers: zarr would read a truncated file before overwriting it."""
        for array in self.layout.arrays:
            file = self.path / self.layout.shard_file(shard, array)
            for leftover in (file, *file.parent.glob(f"{file.name}.*.partial")):
                leftover.unlink(missing_ok=True)


def _has(file: str, size_bytes: int) -> bool:
    try:
        return os.stat(file).st_size == size_bytes
    except OSError:
        return False


def direct_top1(done: Done) -> float | None:
    """Return the share of correct answers on some shards together, from the outputs before encoding.

    None if no sample is labelled, or if the task counts no correct answers.
    """
    labelled, correct = sum(f.labelled for f in done.values()), [f.correct for f in done.values()]
    known = [count for count in correct if count is not None]
    return sum(known) / labelled if labelled and len(known) == len(correct) else None
