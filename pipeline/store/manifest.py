"""The manifest: what a complete store holds, from whom, how faithful, and the digest of every file.

It is written last and atomically, and carries no clock, host or path, so the same dump has the same
manifest. Students depend on this one file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.codecs.fidelity import Fidelity
from pipeline.digests import spec_digest
from pipeline.errors import CorruptStoreError, IncompleteStoreError, StoreError
from pipeline.files import read_json, write_json
from pipeline.store.layout import MANIFEST, RECORDS, SCHEMA, Layout, ShardId


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Digests of everything that decides a store's content.

    Args:
        dataset: keys and contents of the samples of all splits.
        teacher: weights, preprocessing and precision.
        views: the view spec without the number of views.
        codec: name and version.
    """

    dataset: str
    teacher: str
    views: str
    codec: str

    def to_dict(self) -> dict[str, str]:
        """Return the digests as plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRecord:
    """What is known of one finished shard.

    Args:
        rows: samples in it.
        files: array -> (bytes, SHA-256 in hex) of its file.
        fidelity: what the codec cost here.
        labelled, correct: labelled samples, and those whose label the teacher's own logits put first.
    """

    rows: int
    files: Mapping[str, tuple[int, str]]
    fidelity: Fidelity
    labelled: int
    correct: int

    @property
    def bytes(self) -> int:
        """Size of the shard's files."""
        return sum(size for size, _ in self.files.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain values."""
        return {
            "rows": self.rows,
            "files": {array: [size, digest] for array, (size, digest) in self.files.items()},
            "fidelity": self.fidelity.to_dict(),
            "labelled": self.labelled,
            "correct": self.correct,
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> ShardRecord:
        """Return the record that `to_dict` described."""
        files = {array: (size, digest) for array, (size, digest) in value["files"].items()}
        fidelity = Fidelity.from_dict(value["fidelity"])
        return cls(**{**value, "files": files, "fidelity": fidelity})


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything about a complete store.

    Args:
        layout: how it is cut.
        fingerprint: what it was made from.
        teacher: name, card and precision of the teacher.
        views: canonical form of the view spec.
        shards: a record for every shard.
        metadata: SHA-256 (hex) of every zarr.json and index file, by path in the store.
        teacher_top1: {"direct": ..., "cached": ...}, each {section: accuracy or None}.
    """

    layout: Layout
    fingerprint: Fingerprint
    teacher: dict[str, Any]
    views: dict[str, Any]
    shards: Mapping[ShardId, ShardRecord]
    metadata: Mapping[str, str]
    teacher_top1: dict[str, dict[str, float | None]]

    def fidelity(self) -> Fidelity:
        """Return the codec's cost over the training views."""
        return Fidelity.total(r.fidelity for s, r in self.shards.items() if s.section == "train")

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest as plain values, with its own digest."""
        content = {
            "schema": SCHEMA,
            "layout": self.layout.to_dict(),
            "fingerprint": self.fingerprint.to_dict(),
            "teacher": self.teacher,
            "views": self.views,
            "shards": {str(shard): record.to_dict() for shard, record in self.shards.items()},
            "metadata": dict(self.metadata),
            "teacher_top1": self.teacher_top1,
        }
        return {**content, "digest": spec_digest(content)}

    def write(self, store: Path) -> None:
        """Write the manifest, which makes the store complete."""
        write_json(store / MANIFEST, self.to_dict())

    @classmethod
    def read(cls, store: Path) -> Manifest:
        """Read a store's manifest.

        Raises:
            IncompleteStoreError: there is none.
            CorruptStoreError: it is not what was written.
            StoreError: it is of another schema.
        """
        path = store / MANIFEST
        try:
            content = read_json(path)
            digest = content.pop("digest")
            schema = content.pop("schema")
        except (FileNotFoundError, NotADirectoryError):
            raise _no_manifest(store) from None
        except (ValueError, KeyError, AttributeError) as error:
            raise CorruptStoreError(f"{path}: not a manifest ({error}); {_RESTORE}") from None
        if schema != SCHEMA:
            raise StoreError(
                f"{path}: schema {schema}; this program reads {SCHEMA}; use the version that wrote it"
            )
        if spec_digest({"schema": schema, **content}) != digest:
            raise CorruptStoreError(f"{path}: changed since it was written (digest differs); {_RESTORE}")
        shards = content.pop("shards")
        return cls(
            layout=Layout.from_dict(content.pop("layout")),
            fingerprint=Fingerprint(**content.pop("fingerprint")),
            shards={ShardId.parse(s): ShardRecord.from_dict(r) for s, r in shards.items()},
            **content,
        )


def read_records(store: Path) -> dict[ShardId, ShardRecord]:
    """Return the records of an unfinished store's finished shards."""
    return {
        ShardId.parse(file.stem): ShardRecord.from_dict(read_json(file))
        for file in sorted((store / RECORDS).glob("*.json"))
    }


_RESTORE = "restore it (dvc checkout) or make the store again"


def _no_manifest(store: Path) -> IncompleteStoreError:
    if not store.exists():
        return IncompleteStoreError(
            f"{store}: no such store; expected a dump; run: pipeline cache-logits {store.stem}, or dvc pull"
        )
    return IncompleteStoreError(
        f"{store}: not complete ({MANIFEST} is missing); expected a finished dump; go on with: pipeline "
        f"cache-logits {store.stem}"
    )
