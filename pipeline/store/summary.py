"""A store in figures, finished or not: what `pipeline inspect` tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.codecs.fidelity import Fidelity
from pipeline.errors import StoreError
from pipeline.files import read_json
from pipeline.store.layout import MANIFEST, SCHEMA, ZARR_JSON, Layout, ShardId
from pipeline.store.manifest import Fingerprint, Manifest, ShardRecord, read_records


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """A store's figures, and what they are of.

    Args:
        summary: the figures, with the keys that other programs rely on.
        teacher: name, card and precision of the teacher.
        views: canonical form of the view spec.
    """

    summary: dict[str, Any]
    teacher: dict[str, Any]
    views: dict[str, Any]


def inspect(path: Path) -> Inspection:
    """Look at a store without reading its logits.

    Raises:
        IncompleteStoreError: there is no store.
        CorruptStoreError: its manifest was changed.
    """
    if (path / MANIFEST).exists() or not (path / ZARR_JSON).exists():
        manifest = Manifest.read(path)
        summary = summarise_manifest(manifest)
        return Inspection(summary=summary, teacher=manifest.teacher, views=manifest.views)
    attributes = read_json(path / ZARR_JSON)["attributes"]
    if attributes.get("schema") != SCHEMA:
        raise StoreError(
            f"{path}: an unfinished store of schema {attributes.get('schema')}; this program reads "
            f"{SCHEMA}; use the version that wrote it"
        )
    summary = summarise(
        layout=Layout.from_dict(attributes["layout"]),
        fingerprint=Fingerprint(**attributes["fingerprint"]),
        shards=read_records(path),
        complete=False,
        teacher_top1=None,
    )
    return Inspection(summary=summary, teacher=attributes["teacher"], views=attributes["views"])


def summarise_manifest(manifest: Manifest) -> dict[str, Any]:
    """Return a complete store's figures."""
    return summarise(
        layout=manifest.layout,
        fingerprint=manifest.fingerprint,
        shards=manifest.shards,
        complete=True,
        teacher_top1=manifest.teacher_top1["cached"].get("test"),
    )


def summarise(
    *,
    layout: Layout,
    fingerprint: Fingerprint,
    shards: Mapping[ShardId, ShardRecord],
    complete: bool,
    teacher_top1: float | None,
) -> dict[str, Any]:
    """Return a store's figures as plain values.

    Args:
        layout: how it is cut.
        fingerprint: what it is made from.
        shards: those that are done.
        complete: whether it has its manifest.
        teacher_top1: on the test images, from the cache.
    """
    train = [record for shard, record in shards.items() if shard.section == "train"]
    train_rows = sum(record.rows for record in train)
    section, fidelity = layout.sections["train"], Fidelity.total(record.fidelity for record in train)
    return {
        "schema": SCHEMA,
        "complete": complete,
        "n_samples": section.n_samples,
        "n_views": section.n_views,
        "n_classes": layout.n_classes,
        "codec": layout.codec,
        "bytes": sum(record.bytes for record in shards.values()),
        "bytes_per_sample_view": sum(r.bytes for r in train) / train_rows if train_rows else None,
        "shards": {"total": sum(1 for _ in layout.shards()), "done": len(shards)},
        "fingerprint": fingerprint.to_dict(),
        "fidelity": fidelity.summary() if train else dict.fromkeys(fidelity.summary()),
        "teacher_top1": teacher_top1,
    }
