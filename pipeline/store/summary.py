"""The figures of a complete or unfinished store, for `pipeline inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipeline.codecs.fidelity import Fidelity
from pipeline.core.errors import IncompleteStoreError, StoreError
from pipeline.places.folder import Root, at
from pipeline.places.location import Address, Location
from pipeline.store.growth import Pending, pending
from pipeline.store.header import Header
from pipeline.store.index import Index, read_index, read_samples
from pipeline.store.layout import MANIFEST, ZARR_JSON
from pipeline.store.ledger import Done, Records, single_catalogues
from pipeline.store.manifest import Manifest
from pipeline.store.totals import Totals


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


def inspect(place: Address) -> Inspection:
    """Return a store's figures without reading its logits.

    Raises:
        IncompleteStoreError: there is no store.
        CorruptStoreError: its manifest changed since it was written.
    """
    location = Location(place)
    if not _is_unfinished(location):
        manifest, growing = Manifest.read(location), _growth_of(location)
        told = {"growing": growing.to_dict()} if growing else {}
        return Inspection(
            summary={**summarise_manifest(manifest), **told},
            header=manifest.header,
            fidelity=manifest.fidelity(),
            labelled=_labelled(manifest),
            growing=growing,
        )
    root, header = _written_at(location), Header.read(location)
    done = Records(root).read(header)
    totals = _totals_of(header, done, at(root).at_once)
    summary = summarise(header, totals, len(done), complete=False, teacher_top1=None)
    return Inspection(
        summary=summary,
        header=header,
        fidelity=totals["train"].fidelity,
        labelled=None,
    )


def samples_of(place: Address) -> Index:
    """Return the samples of each section, complete store or not, with their labels at the dump.

    Raises:
        IncompleteStoreError: there is no store.
        CorruptStoreError: manifest, keys, digests or labels changed since they were written.
    """
    location = Location(place)
    if _is_unfinished(location):
        return read_index(_written_at(location), Header.read(location))
    manifest = Manifest.read(location)
    header, fetch = manifest.header, partial(manifest.find_metadata, location)
    return {
        name: read_samples(location, header, section, fetch, at_once=location.reads_at_once)
        for name, section in header.layout.sections.items()
    }


def _is_unfinished(location: Location) -> bool:
    return location.exists(ZARR_JSON) and not location.exists(MANIFEST)


def _written_at(location: Location) -> Root:
    """Return the folder or place of an unfinished store, whose records are listed."""
    if location.root is None:
        raise IncompleteStoreError(
            f"{location}: not complete; inspect an unfinished store by the address that it is written to"
        )
    return location.root


def _growth_of(location: Location) -> Pending | None:
    """Return a complete store's growth; a damaged growth, which the store does not need, counts as none."""
    with suppress(StoreError):
        return pending(location.root) if location.root is not None else None
    return None


def summarise_manifest(manifest: Manifest) -> dict[str, Any]:
    """Return a complete store's figures."""
    top1, n_shards = manifest.teacher_top1["cached"].get("test"), manifest.layout.n_shards
    return summarise(manifest.header, manifest.totals, n_shards, complete=True, teacher_top1=top1)


def summarise(
    header: Header,
    totals: Mapping[str, Totals],
    done: int,
    *,
    complete: bool,
    teacher_top1: float | None,
) -> dict[str, Any]:
    """Return a store's figures as plain values.

    Args:
        header: of the store.
        totals: sums over the finished shards of each section.
        done: their number.
        complete: whether the store has its manifest.
        teacher_top1: on the test samples, from the cached logits.
    """
    layout, train = header.layout, totals["train"]
    section, fidelity = layout.sections["train"], train.fidelity
    return {
        "schema": header.schema,
        "complete": complete,
        "n_samples": section.n_samples,
        "n_views": section.n_views,
        "n_classes": layout.n_classes,
        "codec": layout.codec,
        "bytes": sum(some.bytes for some in totals.values()),
        "bytes_per_sample_view": train.bytes / train.rows if train.rows else None,
        "shards": {"total": layout.n_shards, "done": done},
        "fingerprint": header.fingerprint.to_dict(),
        "labels_digest": header.labels,
        "fidelity": fidelity.summary() if train.rows else dict.fromkeys(fidelity.summary()),
        "teacher_top1": teacher_top1,
    }


def _totals_of(header: Header, done: Done, at_once: int) -> dict[str, Totals]:
    """Return the sums over the finished shards of an unfinished store, some records at a time."""
    totals = {}
    for name in header.layout.sections:
        shards = [shard for shard in done if shard.section == name]
        totals[name] = Totals.of(header.layout.measures, single_catalogues(done, shards, at_once))
    return totals


def _labelled(manifest: Manifest) -> int:
    """Return the number of training samples with a label; view 0 has each sample once."""
    spans = (span for span in manifest.layout.spans() if (span.section, span.view) == ("train", 0))
    return sum(int(manifest.catalogue(span).columns["labelled"].sum()) for span in spans)
