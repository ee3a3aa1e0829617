"""Writing a store: whole shards, each with a record, until the manifest makes the store complete.

New views or samples of a complete store are written beside it; see growth.py. A shard counts as finished
once its record exists; leftovers without a record are replaced. Several writers may work at once, each on a
slice of the shards. Where no lock keeps slices apart, e.g. in object storage, two may write the same shard:
equal bytes are as good as one's, and different ones are refused.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from numpy.typing import NDArray

from pipeline.codecs.fidelity import Fidelity
from pipeline.core.errors import CorruptStoreError, MismatchError, StoreError
from pipeline.core.hashing import bytes_digest
from pipeline.core.threads import side_by_side
from pipeline.places.folder import Root, at
from pipeline.places.location import Location
from pipeline.places.place import Tag, required
from pipeline.store.arrays import StoredArray, logits_array, reading, reason
from pipeline.store.catalogue import Catalogue
from pipeline.store.commands import restoring
from pipeline.store.frame import frame_files
from pipeline.store.growth import forget_work, growth_folder, set_aside, settle
from pipeline.store.header import Header
from pipeline.store.layout import GATHERED, MANIFEST, ShardId, Span
from pipeline.store.ledger import Done, Finished, Records, single_catalogues
from pipeline.store.leftovers import sweep
from pipeline.store.manifest import Manifest, sum_up
from pipeline.store.records import RenderChecksums, ShardRecord, written_by
from pipeline.store.shards import Catalogues

# A writer takes so long at most from a shard's last file to its record.
_OTHERS_SECONDS = 10.0
_POLL_SECONDS = 0.2


class StoreWriter:
    """Write shards into a store that has its frame. Hold a lock on the slice that is written.

    Args:
        store: the store's folder or place.
        header: the store's; if the store is complete with a different header, its growth's.
    """

    def __init__(self, store: Root, header: Header) -> None:
        self.store, self.header, self.layout = store, header, header.layout
        # Its tag first: should it be replaced in between, publishing this growth fails.
        self._replaced = at(store).tag(MANIFEST)
        self._complete = Manifest.read(Location(store)) if self._replaced else None
        self.path = path = growth_folder(store) if self._complete else store
        self._place, self._records = at(path), Records(path)
        with reading(path, "an array"):
            self._metadata = dict(self._read_metadata())

    def _read_metadata(self) -> Iterator[tuple[StoredArray, bytes]]:
        """Yield each array; refuse metadata that contradict the layout, which zarr would trust."""
        for section in self.layout.sections.values():
            for name in self.layout.arrays:
                array = logits_array(self.layout, section, name)
                metadata = self._place.get(array.metadata_file)
                if metadata is None:
                    raise FileNotFoundError(f"{array.metadata_file} is missing")
                array.require_metadata(metadata)
                yield array, metadata

    @property
    def is_growing(self) -> bool:
        """Whether a complete store gets additions."""
        return self.path != self.store

    def done(self, shards: Iterable[ShardId] | None = None) -> Done:
        """Return the finished ones of some shards, or of all, from every writer."""
        asked = list(self.layout.shards() if shards is None else shards)
        found = self._finished_before(asked)
        found |= self._records.read(self.header, [shard for shard in asked if shard not in found])
        there = self._sizes(found.values())
        return {
            shard: found[shard] for shard in asked if shard in found and self._is_there(found[shard], there)
        }

    def begun(self) -> set[ShardId]:
        """Return the shards that have a record, by the names of the records."""
        return self._records.shards()

    def missing(self, shards: Iterable[ShardId]) -> list[ShardId]:
        """Return the unfinished ones of some shards, and remove records whose files are gone."""
        shards = list(shards)
        # Listed first: a record that another writer adds from now on is none of those.
        recorded = self._records.named(shards)
        done = self.done(shards)
        self._records.drop(recorded.difference(done))
        return [shard for shard in shards if shard not in done]

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
        rows, section = self.layout.rows(shard), self.layout.sections[shard.section]
        files: dict[str, tuple[int, str]] = {}
        written: dict[str, Tag] = {}
        for name, values in arrays.items():
            file, array = self.layout.shard_name(shard, name), logits_array(self.layout, section, name)
            content = array.encode(self._metadata[array], file, values, (shard.view, rows))
            written[file] = self._put(shard, file, content)
            files[name] = len(content), bytes_digest(content)
        record = ShardRecord(
            rows=self.layout.n_rows(shard),
            files=files,
            fidelity=fidelity,
            labelled=labelled,
            correct=correct,
            checksums=checksums,
        )
        self._record(shard, record, written)

    def _put(self, shard: ShardId, file: str, content: bytes) -> Tag:
        """Write a shard's file; one that differs is replaced if it was left by a killed writer.

        Raises:
            MismatchError: another writer has finished this shard, with other bytes.
        """
        tag = self._place.put_if_absent(file, content)
        while tag is None:
            there, before = self._place.tag(file), self._place.get(file)
            if before == content and there is not None:
                return there
            self._require_unrecorded(shard)
            if there is None or before is None:
                tag = self._place.put_if_absent(file, content)
                continue
            tag = self._place.put_if_match(file, content, there)
            if tag is not None and self._is_recorded(shard):
                # The other writer has looked at its files for the last time: it would not see this one.
                self._place.put_if_match(file, before, tag)
                raise self._unequal(shard)
        return tag

    def _record(self, shard: ShardId, record: ShardRecord, written: Mapping[str, Tag]) -> None:
        """Write a shard's record, unless another writer, without a lock between both, changed its files.

        Both write files first and look at the other's record, or files, afterwards; so one of them sees the
        other, and no record of other files remains.

        Raises:
            MismatchError: another writer has written this shard with other bytes.
        """
        ours = self._records.write(shard, record, self.header.origin)
        untouched = all(self._place.tag(file) == tag for file, tag in written.items())
        if ours and untouched:
            return
        if ours or untouched:
            self._records.drop([shard])
        raise self._unequal(shard)

    def _require_unrecorded(self, shard: ShardId) -> None:
        """Wait for the record of another writer at work, if no lock keeps such away, and refuse it.

        Another writer that has completed the store meanwhile has removed its records.
        """
        deadline = time.monotonic() + (0 if self._place.has_locks else _OTHERS_SECONDS)
        while not self._is_recorded(shard):
            if time.monotonic() >= deadline:
                return
            time.sleep(_POLL_SECONDS)
        raise self._unequal(shard)

    def _is_recorded(self, shard: ShardId) -> bool:
        """Whether another writer has finished a shard, or the store, whose records are then gone."""
        return bool(self._records.named([shard])) or at(self.store).tag(MANIFEST) != self._replaced

    def _unequal(self, shard: ShardId) -> MismatchError:
        return MismatchError(
            f"{self.path}: another process has written shard {shard} with other bytes; writers of one "
            "store need equal devices, threads and versions; stop one of both, and run the command again"
        )

    def read(self, section: str) -> dict[str, NDArray[Any]]:
        """Return the codec's arrays of a section's only view, all of whose shards are finished."""
        cut = self.layout.sections[section]
        found = {}
        for name in self.layout.arrays:
            array = logits_array(self.layout, cut, name)
            files = [
                self.layout.shard_name(ShardId(section, 0, block), name)
                for block in range(len(self.layout.blocks(section)))
            ]
            contents = side_by_side(self._place.get, files, self._place.at_once)
            whole = {f: content for f, content in zip(files, contents, strict=True) if content is not None}
            kept = {array.metadata_file: self._metadata[array], **whole}
            found[name] = array.decode(self.path, kept, 0)[cut.rows()]
        return found

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
            metadata={name: bytes_digest(required(self._place, name)) for name in names},
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
        manifest.publish(self.store, self._replaced)
        settle(self.store)

    def _catalogue(self, span: Span, done: Done) -> str:
        """Write the catalogue of a span, unless the complete store has it; return its SHA-256 (hex)."""
        if self._complete is not None and self._complete.layout.has_span(span):
            if isinstance(self._complete.shards, Catalogues):
                return self._complete.shards.digests[str(span)]
            return self._records.put(self._complete.catalogue(span))
        parts = list(single_catalogues(done, span.shards(), self._place.at_once))
        try:
            joined = Catalogue.joined(span, parts)
            joined.require_sound()
        except ValueError as error:
            raise CorruptStoreError(
                f"{self.path}: records of {span} and the next shards contradict each other "
                f"({reason(error)}); {restoring(self.path)}"
            ) from None
        return self._records.put(joined)

    def _finished_before(self, shards: Iterable[ShardId]) -> Done:
        """Return those of some shards that a complete store has."""
        if self._complete is None:
            return {}
        return dict(self._complete.finished(sorted(shards)))

    def _sizes(self, found: Collection[Finished]) -> Sequence[Mapping[str, int]]:
        """Return the sizes of shards' files by name, in the growth and in the store."""
        names = [name for finished in found for name in self._names(finished)]
        places = [self._place, at(self.store)] if self.is_growing else [self._place]
        return [place.sizes_of(names) for place in places]

    def _is_there(self, finished: Finished, there: Sequence[Mapping[str, int]]) -> bool:
        """Whether a shard's files exist, in the growth or in the store."""
        return all(
            any(sizes.get(name) == size for sizes in there)
            for name, size in zip(self._names(finished), finished.sizes, strict=True)
        )

    def _names(self, finished: Finished) -> list[str]:
        return [self.layout.shard_name(finished.shard, array) for array in sorted(self.layout.arrays)]


def direct_top1(done: Done) -> float | None:
    """Return the share of correct answers on some shards together, from the outputs before encoding.

    None if no sample is labelled, or if the task counts no correct answers.
    """
    labelled, correct = sum(f.labelled for f in done.values()), [f.correct for f in done.values()]
    known = [count for count in correct if count is not None]
    return sum(known) / labelled if labelled and len(known) == len(correct) else None
