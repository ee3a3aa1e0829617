"""Completing a store: when nothing is missing any more, the manifest says so."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.core.progress import note
from pipeline.places.location import Location
from pipeline.samples.packed import Images
from pipeline.samples.samples import UNLABELLED
from pipeline.store.growth import is_complete
from pipeline.store.header import Header
from pipeline.store.manifest import Manifest
from pipeline.store.reader import LogitStore
from pipeline.store.writer import StoreWriter


def complete(path: Path, header: Header, splits: dict[str, Images], *, completes: bool) -> Manifest | None:
    """Complete a store that lacks nothing; its held-out logits, read back, tell the teacher's accuracy.

    Args:
        path: the store's folder.
        header: what it is to hold.
        splits: the data.
        completes: whether to do so; say how much is done otherwise.

    Returns:
        The manifest, or None where the store is not complete yet.
    """
    location = Location(path)
    if is_complete(path, header):
        return Manifest.read(location)
    writer = StoreWriter(path, header)
    done, total = len(writer.done()), sum(1 for _ in writer.layout.shards())
    if done < total or not completes:
        rest = "" if done < total else "; complete the store with the same command without --shards"
        note(f"{path}: {done} of {total} shards are done{rest}")
        return None
    writer.tidy()
    held_out = [name for name in splits if name != "train"]
    store = LogitStore(location, writer.manifest(dict.fromkeys(held_out)))
    cached: dict[str, float | None] = {}
    for name in held_out:
        labels, section = torch.from_numpy(splits[name].labels), store.sections[name]
        known = labels != UNLABELLED
        logits = section.logits(0, section.rows_of(splits[name]))
        hits = logits.argmax(1)[known] == labels[known]
        cached[name] = float(hits.double().mean()) if len(hits) else None
    manifest = writer.manifest(cached)
    writer.complete_with(manifest)
    _warn_of_cost(path, manifest)
    return manifest


def _warn_of_cost(path: Path, manifest: Manifest) -> None:
    """Say so if the codec cost more than the pilot promised."""
    budget, fidelity = manifest.header.codec_spec.budget, manifest.fidelity()
    if budget is not None and not fidelity.within(budget):
        figures = fidelity.summary()
        note(
            f"{path}: over its budget: mean KL {figures['kl_t1_mean']:.2e} at T = 1, "
            f"{figures['kl_t4_mean']:.2e} at T = 4, asked for {budget:g}; the pilot was too small or too "
            "unlike the rest; for less, make a dump with a lower max_kl"
        )
