"""The figures of a complete or unfinished store, for `pipeline inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.codecs.fidelity import Fidelity
from pipeline.core.errors import IncompleteStoreError, StoreError
from pipeline.places.location import Location, Place
from pipeline.store.growth import Pending, pending
from pipeline.store.header import Header
from pipeline.store.layout import MANIFEST, SCHEMA, ZARR_JSON, ShardId
from pipeline.store.manifest import Manifest
from pipeline.store.records import Records, ShardRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """A store's figures, header and growth.

    Args:
        summary: the figures, under keys that other programs rely on.
        header: the planned content and the origin.
        fidelity: cost of the codec over the finished shards.
        labelled: training samples with a label; None for an unfinished store.
        growing: the unfinished growth of a complete store, if any.
    """

    summary: dict[str, Any]
    header: Header
    fidelity: Fidelity
    labelled: int | None
    growing: Pending | None = None


def inspect(place: Place) -> Inspection:
    """Return a store's figures without reading its logits.

    Raises:
        IncompleteStoreError: there is no store.
        CorruptStoreError: its manifest changed since it was written.
    """
    location = Location(place)
    if location.exists(MANIFEST) or not location.exists(ZARR_JSON):
        manifest, growing = Manifest.read(location), _growth_of(place)
        told = {"growing": growing.to_dict()} if growing else {}
        return Inspection(
            summary={**summarise_manifest(manifest), **told},
            header=manifest.header,
            fidelity=manifest.fidelity(),
            labelled=_labelled(manifest.shards),
            growing=growing,
        )
    if not isinstance(place, (str, Path)) or not Path(place).is_dir():
        raise IncompleteStoreError(
            f"{location}: not complete; inspect an unfinished store on the machine that writes it"
        )
    header = Header.read(location)
    shards = Records(Path(place)).read(header.layout)
    summary = summarise(header, shards, complete=False, teacher_top1=None)
    return Inspection(
        summary=summary, header=header, fidelity=_training_fidelity(header, shards), labelled=None
    )


def _growth_of(place: Place) -> Pending | None:
    """Return a complete store's growth; a damaged growth, which the store does not need, counts as none."""
    with suppress(StoreError):
        return pending(Path(place)) if isinstance(place, (str, Path)) else None
    return None


def summarise_manifest(manifest: Manifest) -> dict[str, Any]:
    """Return a complete store's figures."""
    top1 = manifest.teacher_top1["cached"].get("test")
    return summarise(manifest.header, manifest.shards, complete=True, teacher_top1=top1)


def summarise(
    header: Header,
    shards: Mapping[ShardId, ShardRecord],
    *,
    complete: bool,
    teacher_top1: float | None,
) -> dict[str, Any]:
    """Return a store's figures as plain values.

    Args:
        header: of the store.
        shards: the finished ones.
        complete: whether the store has its manifest.
        teacher_top1: on the test images, from the cached logits.
    """
    layout = header.layout
    train = [record for shard, record in shards.items() if shard.section == "train"]
    train_rows = sum(record.rows for record in train)
    section, fidelity = layout.sections["train"], _training_fidelity(header, shards)
    return {
        "schema": SCHEMA,
        "complete": complete,
        "n_samples": section.n_samples,
        "n_views": section.n_views,
        "n_classes": layout.n_classes,
        "codec": layout.codec,
        "bytes": sum(record.bytes for record in shards.values()),
        "bytes_per_sample_view": sum(r.bytes for r in train) / train_rows if train_rows else None,
        "shards": {"total": layout.n_shards, "done": len(shards)},
        "fingerprint": header.fingerprint.to_dict(),
        "fidelity": fidelity.summary() if train else dict.fromkeys(fidelity.summary()),
        "teacher_top1": teacher_top1,
    }


def _labelled(shards: Mapping[ShardId, ShardRecord]) -> int:
    """Return the number of training samples with a label; view 0 has each sample once."""
    return sum(r.labelled for shard, r in shards.items() if shard.section == "train" and shard.view == 0)


def _training_fidelity(header: Header, shards: Mapping[ShardId, ShardRecord]) -> Fidelity:
    training = (record.fidelity for shard, record in shards.items() if shard.section == "train")
    return Fidelity.total(header.layout.measures, training)
