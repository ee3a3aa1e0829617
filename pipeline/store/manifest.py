"""The manifest: a complete store's content, origin and fidelity, and the digest of every file.

It is written last and atomically. It carries no clock, host or path, so the same dump has the same
manifest. Students depend on this one file.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.codecs import state_shapes
from pipeline.codecs.fidelity import Fidelity
from pipeline.core.errors import CorruptStoreError, IncompleteStoreError, StoreError, quoted
from pipeline.core.files import parse_object, write_json
from pipeline.core.forms import require_form
from pipeline.core.hashing import spec_digest
from pipeline.places.location import JSON_BYTES, Location
from pipeline.store.arrays import RESTORE, reason
from pipeline.store.faults import MISSING, look_up
from pipeline.store.header import Header
from pipeline.store.layout import GATHERED, MANIFEST, Layout, ShardId, is_codec_file
from pipeline.store.records import ShardRecord
from pipeline.store.wire import ManifestForm, WrittenByForm

_SEAL = "digest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The header, the records and the digests of a complete store.

    Args:
        header: its content and origin.
        shards: a record for every shard.
        metadata: SHA-256 (hex) of every other file, by its name in the store.
        teacher_top1: {"direct": ..., "cached": ...}, each {section: accuracy or None}.
        written_by: versions of this program and of the libraries that wrote the bytes. Not in the digest:
            the same dump by a different version is the same dump. Empty in stores of older versions.
    """

    header: Header
    shards: Mapping[ShardId, ShardRecord]
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
        return sum(record.bytes for record in self.shards.values())

    def fidelity(self) -> Fidelity:
        """Return the codec's cost over the training views."""
        training = (r.fidelity for s, r in self.shards.items() if s.section == "train")
        return Fidelity.total(self.layout.measures, training)

    def digest(self) -> str:
        """Return the SHA-256 (hex) of everything except `written_by`."""
        return str(self.to_dict()["digest"])

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest as plain values, with its own digest."""
        content = {
            **self.header.to_dict(),
            "shards": {str(shard): record.to_dict() for shard, record in self.shards.items()},
            "metadata": dict(self.metadata),
            "teacher_top1": self.teacher_top1,
        }
        if not self.written_by:
            return {**content, "digest": spec_digest(content)}
        written_by = {**self.written_by, _SEAL: spec_digest(dict(self.written_by))}
        return {**content, "written_by": written_by, "digest": spec_digest(content)}

    def write(self, store: Path) -> None:
        """Write the manifest, which makes the store complete."""
        write_json(store / MANIFEST, self.to_dict())

    @classmethod
    def read(cls, location: Location) -> Manifest:
        """Read a store's manifest.

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
            raise CorruptStoreError(f"{origin}: not a manifest ({reason(error)}); {RESTORE}") from None
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
        try:
            if spec_digest(content) == digest:
                return replace(cls._of(header, content), written_by=_unsealed(written_by))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CorruptStoreError(f"{origin}: not a manifest ({reason(error)}); {RESTORE}") from None
        raise CorruptStoreError(f"{origin}: changed since it was written (digest differs); {RESTORE}")

    @classmethod
    def _of(cls, header: Header, content: dict[str, Any]) -> Manifest:
        """Return the manifest from its header and the rest of its content.

        Raises:
            ValueError: names or shards contradict the layout, or values are out of range.
        """
        require_form(ManifestForm, content)
        layout, told = header.layout, content["shards"]
        if len(told) != layout.n_shards:
            raise ValueError(f"{len(told):,} shards, but the layout has {layout.n_shards:,}")
        shards = {ShardId.parse(shard): ShardRecord.from_dict(record) for shard, record in told.items()}
        for shard, record in shards.items():
            record.require_shard(shard, layout)
        _require_names(layout, content["metadata"])
        return cls(
            header=header,
            shards=shards,
            metadata=content["metadata"],
            teacher_top1=content["teacher_top1"],
        )

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
            raise IncompleteStoreError(f"{location}/{name}: missing; {RESTORE}")
        if content is None or problem:
            raise CorruptStoreError(f"{location}/{name}: {problem}; {RESTORE}")
        return content

    def shard_files(self) -> set[str]:
        """Return the names of all shards' files."""
        return set(self.layout.shard_files())


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


def _require_names(layout: Layout, names: Collection[str]) -> None:
    """Refuse files outside the layout: no name from a manifest is trusted.

    Raises:
        ValueError: names a missing or a foreign file.
    """
    expected, fitted = layout.frame_files(), bool(state_shapes(layout.codec))
    if lacking := expected.difference(names):
        raise ValueError(f"metadata lacks {min(lacking)}")
    for name in names:
        if name not in expected and name != GATHERED and not (fitted and is_codec_file(name)):
            raise ValueError(f"metadata lists {quoted(name)}, which is not a file of this layout")


def _no_manifest(location: Location) -> IncompleteStoreError:
    Header.read(location)  # raises its own error if there is no store at all
    return IncompleteStoreError(
        f"{location}: not complete ({MANIFEST} is missing); resume the dump with: pipeline cache-logits "
        f"{location.stem}"
    )
