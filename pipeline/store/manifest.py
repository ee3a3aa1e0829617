"""The manifest: the root of a complete store's digests, with its content, origin and fidelity.

It names the catalogues, which name the shards' files: see `catalogue.py`. It is written last and
atomically. It carries no clock, host or path, so the same dump has the same manifest. Students depend on
this one file.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import Any

from pipeline.codecs import state_shapes
from pipeline.codecs.fidelity import Fidelity
from pipeline.codecs.rule import sort_keys
from pipeline.core.errors import CorruptStoreError, IncompleteStoreError, MismatchError, StoreError, quoted
from pipeline.core.files import json_bytes, parse_object
from pipeline.core.forms import require_form
from pipeline.core.hashing import spec_digest
from pipeline.places.folder import Root, at
from pipeline.places.location import JSON_BYTES, Location
from pipeline.places.place import Tag
from pipeline.store.arrays import reason
from pipeline.store.catalogue import Catalogue
from pipeline.store.commands import dump_command, restoring
from pipeline.store.faults import MISSING, look_up
from pipeline.store.header import Header
from pipeline.store.layout import (
    GATHERED,
    MANIFEST,
    OF_RECORDS,
    Layout,
    ShardId,
    Span,
    catalogue_file,
    is_codec_file,
)
from pipeline.store.ledger import Finished
from pipeline.store.records import ShardRecord, require_measures
from pipeline.store.shards import Catalogues
from pipeline.store.totals import Totals
from pipeline.store.wire import FidelityForm, ManifestForm, ManifestOfRecordsForm, WrittenByForm

_SEAL = "digest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The header of a complete store, and the digests of its catalogues and of all files but the shards'.

    Args:
        header: its content and origin.
        shards: a record for every shard; of schema 4, read from the catalogues when asked for.
        totals: sums over the shards of each section.
        metadata: SHA-256 (hex) of every file besides shards and catalogues, by its name in the store.
        teacher_top1: {"direct": ..., "cached": ...}, each {section: accuracy or None}.
        written_by: versions of this program and of the libraries that wrote the bytes. Not in the digest:
            the same dump by a different version is the same dump. Empty in stores of older versions.
    """

    header: Header
    shards: Mapping[ShardId, ShardRecord]
    totals: Mapping[str, Totals]
    metadata: Mapping[str, str]
    teacher_top1: dict[str, dict[str, float | None]]
    written_by: Mapping[str, str] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        """The store's arrays, sections and shards."""
        return self.header.layout

    @property
    def size_bytes(self) -> int:
        """Size of all shards."""
        return sum(totals.bytes for totals in self.totals.values())

    def fidelity(self) -> Fidelity:
        """Return the codec's cost over the training views."""
        return self.totals["train"].fidelity

    def digest(self) -> str:
        """Return the SHA-256 (hex) of everything except `written_by`."""
        return str(self.to_dict()["digest"])

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest as plain values, with its own digest."""
        content = {
            **self.header.to_dict(),
            **self._told_shards(),
            "metadata": dict(self.metadata),
            "teacher_top1": self.teacher_top1,
        }
        if not self.written_by:
            return {**content, "digest": spec_digest(content)}
        written_by = {**self.written_by, _SEAL: spec_digest(dict(self.written_by))}
        return {**content, "written_by": written_by, "digest": spec_digest(content)}

    def _told_shards(self) -> dict[str, Any]:
        if not isinstance(self.shards, Catalogues):
            return {"shards": {str(shard): record.to_dict() for shard, record in self.shards.items()}}
        totals = {name: totals.to_dict() for name, totals in self.totals.items()}
        return {"catalogues": dict(self.shards.digests), "totals": totals}

    def write(self, store: Root) -> None:
        """Write the manifest, whatever is there."""
        at(store).put(MANIFEST, json_bytes(self.to_dict()))

    def publish(self, store: Root, replaced: Tag | None) -> None:
        """Write the manifest, which makes the store complete.

        Args:
            store: its folder or place.
            replaced: the tag of the manifest that this one replaces; None if there is none.

        Raises:
            MismatchError: another writer has completed the store with other content.
        """
        place, content = at(store), json_bytes(self.to_dict())
        if replaced is None:
            done = place.put_if_absent(MANIFEST, content)
        else:
            done = place.put_if_match(MANIFEST, content, replaced)
        if done is None and place.get(MANIFEST) != content:
            raise MismatchError(
                f"{store}: another process has completed this store in the meantime, with other content; "
                "give all writers the same parameters, data and versions, and run the command again"
            )

    @classmethod
    def read(cls, location: Location, *, copies: bool = False) -> Manifest:
        """Read a store's manifest; the cost does not grow with the number of shards.

        Args:
            location: of the store.
            copies: whether a copy stands in for a damaged catalogue, for a repair.

        Raises:
            IncompleteStoreError: the manifest is missing.
            CorruptStoreError: the manifest changed since it was written.
            StoreError: the schema is different, or the manifest is an ensemble's.
        """
        origin = f"{location}/{MANIFEST}"
        try:
            content = parse_object(location.read(MANIFEST))
            digest, written_by = content.pop("digest"), content.pop("written_by", {})
        except FileNotFoundError:
            raise _no_manifest(location) from None
        except (ValueError, KeyError) as error:
            raise CorruptStoreError(
                f"{origin}: not a manifest ({reason(error)}); {restoring(location)}"
            ) from None
        if "members" in content:
            raise StoreError(
                f"{location}: is an ensemble, which stores no logits; use the stores that it averages"
            )
        if "head" in content:
            raise StoreError(
                f"{location}: is a re-headed store, which stores no logits; use the dump that it refers to"
            )
        # The schema first: a newer program may compute digests differently.
        header = Header.from_dict(content, origin)
        parse = _of_records if header.schema == OF_RECORDS else _of_catalogues
        try:
            if spec_digest(content) == digest:
                return replace(parse(content, header, location, copies), written_by=_unsealed(written_by))
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise CorruptStoreError(
                f"{origin}: not a manifest ({reason(error)}); {restoring(location)}"
            ) from None
        raise CorruptStoreError(
            f"{origin}: changed since it was written (digest differs); {restoring(location)}"
        )

    def catalogue_files(self) -> dict[str, str]:
        """Return the SHA-256 (hex) of each catalogue and copy, by its name in the store."""
        digests = self.shards.digests.values() if isinstance(self.shards, Catalogues) else ()
        return {catalogue_file(digest, copy=copy): digest for digest in digests for copy in (False, True)}

    def file_of(self, shard: ShardId, array: str) -> tuple[int, str]:
        """Return (bytes, SHA-256 in hex) of a shard's file of one array."""
        if isinstance(self.shards, Catalogues):
            return self.shards.of(shard).files(shard)[array]
        return self.shards[shard].files[array]

    def catalogue(self, span: Span) -> Catalogue:
        """Return the records of a span's shards."""
        if isinstance(self.shards, Catalogues):
            return self.shards.read(span)
        return Catalogue.of(span, [self.shards[shard] for shard in span.shards()], self.header.origin)

    def finished(self, shards: Iterable[ShardId]) -> Iterator[tuple[ShardId, Finished]]:
        """Yield some shards as finished ones, reading each catalogue once if they are in order."""
        held = (shard for shard in shards if self.layout.holds(shard))
        for span, some in groupby(held, self.layout.span_of):
            catalogue = self.catalogue(span)
            # Of schema 4 it is read again if it is needed, so that few stay in memory.
            kept = not isinstance(self.shards, Catalogues)
            read = partial(_itself, catalogue) if kept else partial(self.catalogue, span)
            rows = list(Finished.all_of(catalogue, read))
            yield from ((shard, rows[shard.block - span.first]) for shard in some)

    def readable(self, spans: Iterable[Span] | None = None) -> dict[ShardId, Finished]:
        """Return the shards, of some spans or of all, whose catalogue can be read."""
        found: dict[ShardId, Finished] = {}
        for span in self.layout.spans() if spans is None else spans:
            with suppress(StoreError):
                found |= dict(self.finished(span.shards()))
        return found

    def find_metadata(self, location: Location, name: str, most_bytes: int) -> bytes | None:
        """Return the verified bytes of a file that is no shard, or None if it is not listed."""
        return self.read_metadata(location, name, most_bytes) if name in self.metadata else None

    def read_metadata(self, location: Location, name: str, most_bytes: int = JSON_BYTES) -> bytes:
        """Return the verified bytes of a file that is no shard.

        Args:
            location: of the store.
            name: of the file in the store.
            most_bytes: the largest size that is read.

        Raises:
            IncompleteStoreError: the file is missing.
            CorruptStoreError: the file changed since it was written.
        """
        content, problem = look_up(location, name, self.metadata[name], most_bytes=most_bytes)
        if problem == MISSING:
            raise IncompleteStoreError(f"{location}/{name}: missing; {restoring(location)}")
        if content is None or problem:
            raise CorruptStoreError(f"{location}/{name}: {problem}; {restoring(location)}")
        return content

    def shard_files(self) -> set[str]:
        """Return the names of all shards' files."""
        return set(self.layout.shard_files())


def _itself(catalogue: Catalogue) -> Catalogue:
    return catalogue


def _of_catalogues(content: dict[str, Any], header: Header, location: Location, copies: bool) -> Manifest:
    """Return a manifest of schema 4.

    Raises:
        KeyError, ValueError: a value is missing or out of range.
    """
    require_form(ManifestForm, content)
    layout, digests = header.layout, content["catalogues"]
    if len(digests) != layout.n_spans or not all(str(span) in digests for span in layout.spans()):
        raise ValueError(f"{len(digests):,} catalogues, but the layout has {layout.n_spans:,} others")
    _require_names(layout, content["metadata"], header.schema)
    for told in content["totals"].values():
        require_form(FidelityForm, sort_keys(told["fidelity"]), "fidelity")
    totals = {name: Totals.from_dict(content["totals"][name]) for name in layout.sections}
    for name, found in totals.items():
        require_measures(name, found.fidelity.measures, layout.measures)
    return Manifest(
        header=header,
        shards=Catalogues(location, header, digests, copies=copies),
        totals=totals,
        metadata=content["metadata"],
        teacher_top1=content["teacher_top1"],
    )


def _of_records(content: dict[str, Any], header: Header, *_: object) -> Manifest:
    """Return a manifest of schema 3, with all records.

    Raises:
        KeyError, ValueError: a value is missing or out of range.
    """
    require_form(ManifestOfRecordsForm, content)
    layout, told = header.layout, content["shards"]
    if len(told) != layout.n_shards:
        raise ValueError(f"{len(told):,} shards, but the layout has {layout.n_shards:,}")
    shards = {ShardId.parse(shard): ShardRecord.from_dict(record) for shard, record in told.items()}
    for shard, record in shards.items():
        record.require_shard(shard, layout)
    _require_names(layout, content["metadata"], header.schema)
    manifest = Manifest(
        header=header,
        shards=shards,
        totals={},
        metadata=content["metadata"],
        teacher_top1=content["teacher_top1"],
    )
    return replace(manifest, totals=sum_up(layout, manifest.catalogue))


def sum_up(layout: Layout, read: Callable[[Span], Catalogue]) -> dict[str, Totals]:
    """Return the sums over the shards of each section.

    Args:
        layout: of the store.
        read: returns the catalogue of a span.
    """
    return {
        name: Totals.of(layout.measures, (read(span) for span in layout.spans() if span.section == name))
        for name in layout.sections
    }


def _unsealed(written_by: Any) -> dict[str, str]:
    """Return versions without the digest beside them, which proves them.

    Raises:
        ValueError: the versions changed since they were written.
    """
    require_form(WrittenByForm, {"versions": written_by})
    versions = {name: number for name, number in written_by.items() if name != _SEAL}
    if versions and spec_digest(versions) != written_by.get(_SEAL):
        raise ValueError("written_by changed since it was written")
    return versions


def _require_names(layout: Layout, names: Collection[str], schema: int) -> None:
    """Refuse files outside the layout: no name from a manifest is trusted.

    Raises:
        ValueError: names a missing or a foreign file.
    """
    expected, fitted = layout.frame_files(), bool(state_shapes(layout.codec))
    if lacking := expected.difference(names):
        raise ValueError(f"metadata lacks {min(lacking)}")
    for name in names:
        gathered = schema == OF_RECORDS and name == GATHERED
        if name not in expected and not gathered and not (fitted and is_codec_file(name)):
            raise ValueError(f"metadata lists {quoted(name)}, which is not a file of this layout")


def _no_manifest(location: Location) -> IncompleteStoreError:
    Header.read(location)  # raises its own error if there is no store at all
    return IncompleteStoreError(
        f"{location}: not complete ({MANIFEST} is missing); resume the dump with: {dump_command(location)}"
    )
