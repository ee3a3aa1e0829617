"""The manifest: what a complete store holds, from whom, how faithful, and the digest of every file.

It is written last and atomically, and carries no clock, host or path, so the same dump has the same
manifest. Students depend on this one file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.codecs.fidelity import Fidelity
from pipeline.digests import spec_digest
from pipeline.errors import CorruptStoreError, IncompleteStoreError
from pipeline.files import parse_object, write_json
from pipeline.store.faults import look_up
from pipeline.store.header import Header
from pipeline.store.layout import MANIFEST, Layout, ShardId
from pipeline.store.location import Location
from pipeline.store.nodes import RESTORE
from pipeline.store.records import ShardRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything about a complete store.

    Args:
        header: what it holds and what it is made from.
        shards: a record for every shard.
        metadata: SHA-256 (hex) of every other file, by its name in the store.
        teacher_top1: {"direct": ..., "cached": ...}, each {section: accuracy or None}.
    """

    header: Header
    shards: Mapping[ShardId, ShardRecord]
    metadata: Mapping[str, str]
    teacher_top1: dict[str, dict[str, float | None]]

    @property
    def layout(self) -> Layout:
        """How the store is cut."""
        return self.header.layout

    @property
    def size_bytes(self) -> int:
        """Size of all shards."""
        return sum(record.bytes for record in self.shards.values())

    def fidelity(self) -> Fidelity:
        """Return the codec's cost over the training views."""
        return Fidelity.total(r.fidelity for s, r in self.shards.items() if s.section == "train")

    def digest(self) -> str:
        """Return the SHA-256 (hex) of everything that it says."""
        return str(self.to_dict()["digest"])

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest as plain values, with its own digest."""
        content = {
            **self.header.to_dict(),
            "shards": {str(shard): record.to_dict() for shard, record in self.shards.items()},
            "metadata": dict(self.metadata),
            "teacher_top1": self.teacher_top1,
        }
        return {**content, "digest": spec_digest(content)}

    def write(self, store: Path) -> None:
        """Write the manifest, which makes the store complete."""
        write_json(store / MANIFEST, self.to_dict())

    @classmethod
    def read(cls, location: Location) -> Manifest:
        """Read a store's manifest.

        Raises:
            IncompleteStoreError: there is none.
            CorruptStoreError: it is not what was written.
            StoreError: it is of another schema.
        """
        origin = f"{location}/{MANIFEST}"
        try:
            content = parse_object(location.read(MANIFEST))
            digest = content.pop("digest")
        except FileNotFoundError:
            raise _no_manifest(location) from None
        except (ValueError, KeyError) as error:
            raise CorruptStoreError(f"{origin}: not a manifest ({error!r}); {RESTORE}") from None
        # First the schema: a newer program may also compute digests in another way.
        header = Header.from_dict(content, origin)
        if spec_digest(content) != digest:
            raise CorruptStoreError(f"{origin}: changed since it was written (digest differs); {RESTORE}")
        return cls(
            header=header,
            shards={ShardId.parse(s): ShardRecord.from_dict(r) for s, r in content["shards"].items()},
            metadata=content["metadata"],
            teacher_top1=content["teacher_top1"],
        )

    def read_metadata(self, location: Location, name: str) -> bytes:
        """Return a file that is no shard, checked.

        Raises:
            IncompleteStoreError: it is missing.
            CorruptStoreError: it was changed.
        """
        content, problem = look_up(location, name, self.metadata[name])
        if content is None:
            raise IncompleteStoreError(f"{location}/{name}: missing; {RESTORE}")
        if problem:
            raise CorruptStoreError(f"{location}/{name}: changed since it was written; {RESTORE}")
        return content

    def shard_files(self) -> set[str]:
        """Return the names of all shards' files."""
        return {str(self.layout.shard_file(s, array)) for s in self.shards for array in self.layout.arrays}


def _no_manifest(location: Location) -> IncompleteStoreError:
    Header.read(location)  # which says so if there is no store at all
    return IncompleteStoreError(
        f"{location}: not complete ({MANIFEST} is missing); expected a finished dump; go on with: pipeline "
        f"cache-logits {location.stem}"
    )
