"""Follow a dump: read each view of an unfinished store as soon as all of its shards are written.

A complete store's manifest names the digest of every file. Here the same digests come from elsewhere:

    frame       header, keys, codec state and metadata stand before the first shard; the header's
                fingerprint proves keys and state
    records     each shard has a record, written after its files, with their digests
    catalogues  the records of a span, joined as the dump will join them; their SHA-256 is kept
    manifest    once it is written, it must name the same files and the same catalogues

So a reader sees the bytes that it would have seen after the manifest. A store that is complete from the
beginning is an ordinary `LogitStore`. Waiting, in `waiting.py`, is done by the caller's thread, so
that Ctrl-C ends it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.core.errors import CorruptStoreError, IncompleteStoreError, MismatchError, StoreError, counted
from pipeline.core.hashing import bytes_digest
from pipeline.core.threads import side_by_side
from pipeline.places.folder import Root, at
from pipeline.places.location import Location
from pipeline.places.place import required
from pipeline.store.arrays import reason
from pipeline.store.catalogue import Catalogue
from pipeline.store.commands import restoring
from pipeline.store.frame import frame_files, is_framed
from pipeline.store.header import Header
from pipeline.store.index import read_index
from pipeline.store.layout import MANIFEST, ZARR_JSON, ShardId, Span
from pipeline.store.ledger import FEW, Done, Records
from pipeline.store.manifest import Manifest
from pipeline.store.reader import LogitStore
from pipeline.store.shards import Catalogues
from pipeline.store.summary import inspect
from pipeline.store.waiting import TIMEOUT_SECONDS, wait_until


class UnfinishedCatalogues(Catalogues):
    """The records of a store that is being written, of the spans that are whole so far.

    Args:
        path: the store's folder or place.
        header: of the store.
        metadata: SHA-256 (hex) of each file besides shards and catalogues, by its name.
    """

    def __init__(self, path: Root, header: Header, metadata: dict[str, str]) -> None:
        self.digests: dict[str, str] = {}
        super().__init__(Location(path), header, self.digests)
        self._is_folder, self._at_once = isinstance(path, Path), at(path).at_once
        self._metadata, self._records = metadata, Records(path)
        self._manifest: Manifest | None = None
        # Records of spans that are not whole yet.
        self._parts: dict[ShardId, Catalogue] = {}

    def lacking(self, spans: Iterable[Span]) -> list[ShardId]:
        """Look for the records of some spans, and return the shards that have none.

        A record that changed since it was written, or is of another store, counts as none.

        Raises:
            MismatchError: the store was begun anew, or completed with other records than those read.
            CorruptStoreError: records contradict each other.
        """
        with self._lock:
            if self._is_complete():
                return []
            new = [span for span in spans if str(span) not in self.digests]
            lacking = self._look_for([shard for span in new for shard in span.shards()])
            for span in new:
                if not lacking.intersection(span.shards()):
                    self.digests[str(span)] = bytes_digest(self._joined(span).to_bytes())
            return sorted(lacking)

    def has_record(self, shard: ShardId) -> bool:
        """Whether a shard is written."""
        return bool(self._records.read(self._header, [shard]))

    def _look_for(self, shards: list[ShardId]) -> set[ShardId]:
        """Read the records of some shards; return the shards without one."""
        missing = [shard for shard in shards if shard not in self._parts]
        # A few at a time: a listing, twice a second, would cost as much as the store has shards. In object
        # storage it costs a request per thousand names, and a look for each record two.
        is_listed = not self._is_folder and len(missing) > FEW
        there = sorted(self._records.named(missing)) if is_listed else missing
        for start in range(0, len(there), FEW):
            done = self._records.read(self._header, there[start : start + FEW])
            parts = side_by_side(partial(_part_of, done), done, self._at_once)
            found = zip(done, parts, strict=True)
            self._parts.update((shard, part) for shard, part in found if part is not None)
        return {shard for shard in missing if shard not in self._parts}

    def _joined(self, span: Span) -> Catalogue:
        """Return the catalogue of a span whose records were all read."""
        try:
            joined = Catalogue.joined(span, [self._parts.pop(shard) for shard in span.shards()])
            joined.require_sound()
        except ValueError as error:
            raise CorruptStoreError(
                f"{self._location}: records of {span} and the next shards contradict each other "
                f"({reason(error)}); {restoring(self._location)}"
            ) from None
        return joined

    def _read(self, span: Span) -> Catalogue:
        if str(span) not in self.digests and not self._is_complete():
            raise IncompleteStoreError(
                f"{self._location}: {span} and the next shards are not written yet; wait for their view"
            )
        if not self._is_complete() and not self._look_for(list(span.shards())):
            found = self._joined(span)
            if bytes_digest(found.to_bytes()) != self.digests[str(span)]:
                raise self._changed(span)
            return found
        # The dump removes records after it has written the manifest: look once more.
        if self._is_complete() and self._manifest is not None:
            return self._manifest.catalogue(span)
        raise self._changed(span)

    def _is_complete(self) -> bool:
        """Whether the store has its manifest; compare it with everything that was read, once."""
        if self._manifest is None and self._location.exists(MANIFEST):
            manifest = Manifest.read(self._location)
            self._require_same(manifest.header)
            if dict(manifest.metadata) != self._metadata:
                raise self._begun_anew()
            for span in manifest.layout.spans():
                found = self.digests.get(str(span))
                if found and found != bytes_digest(manifest.catalogue(span).to_bytes()):
                    raise self._changed(span)
            self._manifest = manifest
        elif self._manifest is None:
            self._require_same(Header.read(self._location))
        return self._manifest is not None

    def _require_same(self, header: Header) -> None:
        if not header.says_the_same_as(self._header):
            raise self._begun_anew()

    def _begun_anew(self) -> MismatchError:
        return MismatchError(
            f"{self._location}: data, teacher, views or codec changed while the store was followed; "
            "expected one store throughout; run the command again"
        )

    def _changed(self, span: Span) -> MismatchError:
        return MismatchError(
            f"{self._location}: shards of {span.section} view {span.view} were made again with other bytes "
            "while the store was followed; expected those read before; start this run anew"
        )


class FollowedStore(LogitStore):
    """A store that is being written; a view can be read once `has_view`, and `wait_for_view` returned.

    Args:
        path: the store's folder or place, with its header.
        header: of the store.
        timeout_seconds: without a new shard and without a writer, after which waiting ends.
    """

    def __init__(self, path: Root, header: Header, *, timeout_seconds: float) -> None:
        self._path, self._timeout_seconds = path, timeout_seconds
        metadata = _digests(path, sorted(frame_files(path)))
        self._catalogues = UnfinishedCatalogues(path, header, metadata)
        manifest = Manifest(
            header=header,
            shards=self._catalogues,
            totals={},
            metadata=metadata,
            teacher_top1={"direct": {}, "cached": {}},
        )
        super().__init__(Location(path), manifest)

    def has_view(self, view: int) -> bool:
        """Whether all shards of a training view are written, without waiting."""
        return not self._catalogues.lacking(self._spans("train", view))

    def wait_for_view(self, view: int) -> None:
        """Wait until all shards of a training view are written.

        Raises:
            IncompleteStoreError: no shard was written for too long, and no process writes the store.
            MismatchError: the store was begun anew.
        """
        self._wait(f"view {view}", self._spans("train", view), partial(self._advice, view))

    def wait_for_held_out(self) -> None:
        """Wait until the held-out samples are written; see `wait_for_view` for errors."""
        names = [name for name in self.sections if name != "train"]
        self._wait("the held-out samples", [span for name in names for span in self._spans(name, 0)])

    def summary(self) -> dict[str, Any]:
        """Return the figures of `pipeline inspect --json`, of the shards so far."""
        return inspect(self._path).summary

    def _spans(self, section: str, view: int) -> list[Span]:
        spans = self.manifest.layout.spans()
        return [span for span in spans if (span.section, span.view) == (section, view)]

    def _wait(self, what: str, spans: Sequence[Span], advice: Callable[[], str] = str) -> None:
        total = sum(span.count for span in spans)

        def look() -> str:
            lacking = len(self._catalogues.lacking(spans))
            return f"{what}, {lacking:,} of {counted(total, 'shard')} missing{advice()}" if lacking else ""

        wait_until(self._path, look, timeout_seconds=self._timeout_seconds)

    def _advice(self, view: int) -> str:
        """Return a remark if a view far ahead has shards: the dump makes all views of a block in turn."""
        last = self.n_views - 1
        ahead = last > view + 1 and self._catalogues.has_record(ShardId("train", last, 0))
        return " (to have whole views first, restart the dump with --by-view)" if ahead else ""


def follow(path: Root, *, timeout_seconds: float = TIMEOUT_SECONDS) -> LogitStore:
    """Open a store that may be unfinished; wait until its dump has begun.

    Args:
        path: the store's folder or place, which may not exist yet.
        timeout_seconds: without a new shard and without a writer, after which waiting ends.

    Raises:
        IncompleteStoreError: no dump begins.
        CorruptStoreError: keys, codec state or manifest changed since they were written.
    """
    begins = "the dump to begin"
    wait_until(path, lambda: "" if _has_begun(path) else begins, timeout_seconds=timeout_seconds)
    if at(path).exists(MANIFEST):
        return LogitStore.open(path)
    header = Header.read(Location(path))
    read_index(path, header)  # proves the keys
    store = FollowedStore(path, header, timeout_seconds=timeout_seconds)
    for section in store.sections.values():
        section.keep_metadata()
    _ = store.codec  # proves the codec's state
    return store


def _has_begun(path: Root) -> bool:
    """Whether a store is complete or has its frame; in object storage, the frame follows the header."""
    place = at(path)
    return place.exists(MANIFEST) or (
        place.exists(ZARR_JSON) and is_framed(path, Header.read(Location(path)).layout)
    )


def _digests(path: Root, names: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 (hex) of some files by name."""
    place = at(path)
    contents = side_by_side(partial(required, place), names, place.at_once)
    return {name: bytes_digest(content) for name, content in zip(names, contents, strict=True)}


def _part_of(done: Done, shard: ShardId) -> Catalogue | None:
    """Return the catalogue of a finished shard; None if its record has disappeared."""
    try:
        return done[shard].read().only(shard)
    except StoreError:  # the store is complete now, or the dump makes the shard again
        return None
