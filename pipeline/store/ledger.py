"""The ledger of an unfinished store: its finished shards, each with a record that proves itself.

    records/SHARD.record    a seal, then the record: the catalogue of one shard
    records/SHARD.json, records.jsonl     the same of older versions
    catalogues/             of a store whose manifest is lost, or is about to be written

A shard counts as finished once its record exists. Records are read one at a time: a store may have 100,000.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from threading import Lock
from typing import Any

from pipeline.codecs.fidelity import Fidelity
from pipeline.core.errors import CorruptStoreError, StoreError
from pipeline.core.files import parse_object, written_beside
from pipeline.core.hashing import bytes_digest, canonical_json, spec_digest
from pipeline.core.threads import side_by_side
from pipeline.places.folder import Root, at
from pipeline.places.local import NoFileError
from pipeline.places.location import JSON_BYTES
from pipeline.store.catalogue import Catalogue, Largest, largest_files
from pipeline.store.header import Header
from pipeline.store.layout import (
    CATALOGUES,
    GATHERED,
    RECORDS,
    Layout,
    ShardId,
    Span,
    catalogue_digest,
    catalogue_file,
)
from pipeline.store.records import RenderChecksums, ShardRecord

_RECORD_FILE = re.compile(r"(\w+\.v\d+\.b\d+)\.(record|json)")
_SEAL_BYTES = 65  # SHA-256 in hex, and a line break
_KEPT = 16
# Records of so many shards are read without listing all of them.
FEW = 64
# Stands for the origin of a record whose store is unknown.
_NOWHERE = "0" * 64


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished shard; its record is read when asked for.

    Args:
        shard: the shard.
        rows: number of its samples.
        sizes: bytes of its files, by the sorted names of its arrays.
        labelled, correct: as in its record.
        read: returns a catalogue with the shard.
    """

    shard: ShardId
    rows: int
    sizes: tuple[int, ...]
    labelled: int
    correct: int | None
    read: Callable[[], Catalogue]

    @classmethod
    def all_of(cls, catalogue: Catalogue, read: Callable[[], Catalogue]) -> Iterator[Finished]:
        """Yield the shards of a catalogue."""
        names = ("rows", "sizes", "labelled", "correct")
        columns = (catalogue.columns[name].tolist() for name in names)
        for shard, rows, sizes, labelled, correct in zip(catalogue.span.shards(), *columns, strict=True):
            yield cls(shard, rows, tuple(sizes), labelled, None if correct < 0 else correct, read)

    @property
    def bytes(self) -> int:
        """Size of the shard's files."""
        return sum(self.sizes)

    @property
    def record(self) -> ShardRecord:
        """The whole record."""
        return self.read().record(self.shard)

    @property
    def files(self) -> Mapping[str, tuple[int, str]]:
        """Array -> (bytes, SHA-256 in hex) of its file."""
        return self.read().files(self.shard)

    @property
    def checksums(self) -> RenderChecksums:
        """The checksums of rendered samples."""
        return self.record.checksums

    @property
    def fidelity(self) -> Fidelity:
        """The cost of the codec in this shard."""
        return self.record.fidelity


Done = dict[ShardId, Finished]


class Records:
    """The ledger in a store's folder or place.

    Args:
        store: the store's folder or place.
    """

    def __init__(self, store: Root) -> None:
        self._store = at(store)
        self._kept: OrderedDict[str, Catalogue] = OrderedDict()
        self._lock = Lock()

    def read(self, header: Header | None = None, shards: Collection[ShardId] | None = None) -> Done:
        """Return the finished shards; other processes may be adding some.

        A record that changed since it was written, or contradicts the header, counts as missing.

        Args:
            header: of the store; None to accept every shard.
            shards: the ones to look for; None for all.
        """
        wanted, made = (None if shards is None else set(shards)), header.origin if header else _NOWHERE
        largest = largest_files(header.layout) if header else {}
        found: Done = {}
        for catalogue, read in chain(self._gathered(made), self._catalogued()):
            if _fits(catalogue, header, made, largest):
                _add(found, Finished.all_of(catalogue, read), wanted)
        # The single record of a rewritten shard comes last, and so wins.
        named = ((name, _shard_of(name)) for name in self._names(wanted))
        asked = {name: shard for name, shard in named if shard and (wanted is None or shard in wanted)}
        singles = side_by_side(partial(self._single, made=made), asked, self._store.at_once)
        for (name, shard), single in zip(asked.items(), singles, strict=True):
            if single is None or single.span != Span.of(shard):
                continue
            if _fits(single, header, made, largest):
                found[shard] = next(Finished.all_of(single, partial(self._again, name, made)))
        return found if wanted is None else {shard: found[shard] for shard in found if shard in wanted}

    def write(self, shard: ShardId, record: ShardRecord, made: str) -> bool:
        """Write one record, durably, unless the shard has one.

        Args:
            shard: the shard.
            record: its record.
            made: `Header.origin` of the store.

        Returns:
            Whether the record there tells the same files.
        """
        content = Catalogue.of(Span.of(shard), [record], made).to_bytes()
        name = f"{shard}.record"
        whole = f"{bytes_digest(content)}\n".encode() + content
        while not self._store.put_if_absent(f"{RECORDS}/{name}", whole):
            there: bytes | None = b""
            with suppress(NoFileError):
                there = self._read(f"{RECORDS}/{name}")
            # None: another process has completed the store and removed its records.
            if there is not None:
                known = _opened(there)
                return (
                    known is not None
                    and known.span == Span.of(shard)
                    and known.files(shard) == record.files
                )
        return True

    def named(self, shards: Collection[ShardId]) -> set[ShardId]:
        """Return those of some shards that have a record of their own, readable or not."""
        names = self._names(shards)
        if len(shards) <= FEW:
            sizes = self._store.sizes_of([f"{RECORDS}/{name}" for name in names])
            names = [name for name in names if f"{RECORDS}/{name}" in sizes]
        found = {shard for name in names if (shard := _shard_of(name)) is not None}
        return found.intersection(shards)

    def put(self, catalogue: Catalogue) -> str:
        """Write a catalogue and its copy, durably, unless they exist; return its SHA-256 (hex)."""
        content = catalogue.to_bytes()
        digest = bytes_digest(content)
        for copy in (True, False):
            name = catalogue_file(digest, copy=copy)
            if self._read(name) != content:
                self._store.put(name, content)
        return digest

    def shards(self) -> set[ShardId]:
        """Return the shards that have a record, by the names of the files, or are in a catalogue."""
        single = {shard for name in self._names() if (shard := _shard_of(name)) is not None}
        return single.union(*(catalogue.span.shards() for catalogue, _ in self._catalogued()))

    def drop(self, shards: Collection[ShardId] | Layout) -> None:
        """Remove the records of some shards, or of those in a layout."""
        if not shards:
            return
        names = self._names(None if isinstance(shards, Layout) else shards)
        named = ((name, _shard_of(name)) for name in names)
        self._remove(
            name
            for name, shard in named
            if shard and (shards.holds(shard) if isinstance(shards, Layout) else shard in shards)
        )

    def clear(self) -> None:
        """Remove the records, and leftovers of interrupted writes."""
        names = sorted(self._store.names(RECORDS))
        self._remove(name for name in names if _RECORD_FILE.fullmatch(written_beside(name) or name))
        self._store.prune(RECORDS)

    def clear_catalogues(self, keep: Collection[str] = ()) -> None:
        """Remove catalogues that no manifest names.

        Args:
            keep: digests of the others.
        """
        others = []
        for name in sorted(self._store.names(CATALOGUES)):
            digest = catalogue_digest(f"{CATALOGUES}/{written_beside(name) or name}")
            if digest is not None and (digest not in keep or written_beside(name)):
                others.append(f"{CATALOGUES}/{name}")
        self._store.delete(others)
        self._store.prune(CATALOGUES)

    def _read(self, name: str) -> bytes | None:
        return self._store.get(name, 0, JSON_BYTES)

    def _remove(self, names: Iterable[str]) -> None:
        self._store.delete(f"{RECORDS}/{name}" for name in names)

    def _names(self, wanted: Collection[ShardId] | None = None) -> list[str]:
        """Return the names of single records; a newer form of the same shard comes later."""
        if wanted is not None and len(wanted) <= FEW:
            # No listing: its cost would grow with the number of finished shards.
            return [f"{shard}.{form}" for shard in wanted for form in ("json", "record")]
        return sorted(name for name in self._store.names(RECORDS) if _RECORD_FILE.fullmatch(name))

    def _single(self, name: str, made: str) -> Catalogue | None:
        content = b""
        with suppress(NoFileError):  # e.g. a FIFO, which writers refuse
            content = self._read(f"{RECORDS}/{name}") or b""
        return _unseal(content, made) if name.endswith(".json") else _opened(content)

    def _again(self, name: str, made: str) -> Catalogue:
        """Read a record that was good a moment ago."""
        found = self._single(name, made)
        if found is None:
            raise StoreError(
                f"{self._store}: record {name} has disappeared; another process is finishing the store; "
                "run the command again"
            )
        return found

    def _gathered(self, made: str) -> Iterator[tuple[Catalogue, Callable[[], Catalogue]]]:
        for line in (self._read(GATHERED) or b"").splitlines():
            if (catalogue := _unseal(line, made)) is not None:
                yield catalogue, partial(_itself, catalogue)

    def _catalogued(self) -> Iterator[tuple[Catalogue, Callable[[], Catalogue]]]:
        names = self._store.names(CATALOGUES)
        for digest in sorted({catalogue_digest(f"{CATALOGUES}/{name}") or "" for name in names} - {""}):
            with suppress(CorruptStoreError):
                yield self._catalogue(digest), partial(self._catalogue, digest)

    def _catalogue(self, digest: str) -> Catalogue:
        """Return a catalogue, or the catalogue of a whole copy.

        Raises:
            CorruptStoreError: both are missing or damaged.
        """
        # One thread at a time: several that read records ask for the same catalogue.
        with self._lock:
            if digest not in self._kept:
                content = self._content(digest)
                if content is None:
                    raise CorruptStoreError(f"{self._store}: catalogue {digest[:12]} has disappeared")
                self._kept[digest] = Catalogue.parse(content)
                if len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            return self._kept[digest]

    def _content(self, digest: str) -> bytes | None:
        for copy in (False, True):
            content = self._read(catalogue_file(digest, copy=copy))
            if content is not None and bytes_digest(content) == digest:
                with suppress(ValueError):
                    Catalogue.parse(content)
                    return content
        return None


def single_catalogues(done: Done, shards: Iterable[ShardId], at_once: int) -> Iterator[Catalogue]:
    """Yield the catalogue of each of some finished shards alone, in order.

    Args:
        done: the finished shards.
        shards: some of them.
        at_once: number of records that are read at the same time.
    """
    return side_by_side(lambda shard: done[shard].read().only(shard), shards, at_once)


def _shard_of(name: str) -> ShardId | None:
    match = _RECORD_FILE.fullmatch(name)
    with suppress(ValueError):
        return ShardId.parse(match[1]) if match else None
    return None


def _itself(catalogue: Catalogue) -> Catalogue:
    return catalogue


def _fits(catalogue: Catalogue, header: Header | None, made: str, largest: Largest) -> bool:
    """Whether a record or catalogue is one of this store."""
    if header is None:
        return True
    try:
        catalogue.require(header.layout, made, largest)
    except ValueError:
        return False
    return True


def _add(found: Done, some: Iterable[Finished], wanted: set[ShardId] | None) -> None:
    """Add the shards of a catalogue; one of which two catalogues tell different files counts as missing."""
    for finished in some:
        shard, other = finished.shard, found.get(finished.shard)
        if wanted is not None and shard not in wanted:
            continue
        if other is not None and other.files != finished.files:
            del found[shard]
        else:
            found[shard] = finished


def _opened(content: bytes) -> Catalogue | None:
    """Return the catalogue in a sealed record, or None if it changed since it was written."""
    seal, body = content[:_SEAL_BYTES], content[_SEAL_BYTES:]
    if seal != f"{bytes_digest(body)}\n".encode():
        return None
    with suppress(ValueError):
        # Its sums are checked when it becomes a part of a catalogue.
        return Catalogue.parse(body, is_sound=True)
    return None


# Records of schema 3: a line of JSON with its own digest.


def seal_line(shard: ShardId, record: ShardRecord) -> str:
    """Return a record as a line of schema 3."""
    content: dict[str, Any] = {"shard": str(shard), **record.to_dict()}
    return canonical_json({**content, "digest": spec_digest(content)}) + "\n"


def _unseal(line: bytes, made: str) -> Catalogue | None:
    """Return the record in a line; it tells no origin, so `made` is taken for it."""
    try:
        content = parse_object(line)
        if content.pop("digest") != spec_digest(content):
            return None
        shard, record = ShardId.parse(content.pop("shard")), ShardRecord.from_dict(content)
        return Catalogue.of(Span.of(shard), [record], made)
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return None
