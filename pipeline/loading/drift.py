"""Drift: detect and measure differences between rendering here and rendering for the teacher.

Renders some samples of each shard again and compares them with the shard's stored checksums and values.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.arrays import Rows
from pipeline.core.errors import MismatchError
from pipeline.core.progress import note
from pipeline.core.random import Lane, permutation
from pipeline.loading.feed import Feed
from pipeline.modalities.table import preprocessing_of, views_of
from pipeline.samples.packed import Split
from pipeline.store.index import ABSENT
from pipeline.store.layout import Layout, ShardId
from pipeline.store.reader import LogitStore
from pipeline.store.records import PLACES, Recorded, RenderChecksums, checksum_rows, versions
from pipeline.store.soft_labels import SoftLabels

# Samples that are rendered again at a start, however many shards a store has.
MOST_CHECKED = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """The difference between samples rendered here and for the teacher.

    Args:
        checked: number of samples rendered again.
        differing: number of samples with different bytes.
        first: name and view of the first differing sample, or None.
        mean_difference, largest_difference: of the differing samples' stored values; of images, in levels
            of 255.
    """

    checked: int
    differing: int
    first: str | None
    mean_difference: float
    largest_difference: int

    def __str__(self) -> str:
        if not self.differing:
            return f"{self.checked:,} checksummed samples render as they did for the teacher"
        return (
            f"{self.differing:,} of {self.checked:,} checksummed samples render differently than they did "
            f"for the teacher, first {self.first}; their {PLACES} stored values per sample differ by "
            f"{self.mean_difference:.2f} on average and {self.largest_difference} at most"
        )

    def require_none(
        self, origin: str, made_with: Mapping[str, str], decoder: str, way_out: str = ""
    ) -> None:
        """Refuse differing samples.

        Args:
            origin: the store.
            made_with: versions of decoder, torch and torchvision that rendered for the store.
            decoder: the samples' decoder here.
            way_out: an additional remedy for the message, beside those versions and a new dump.

        Raises:
            MismatchError: samples differ; the message has the difference and both sets of versions.
        """
        if self.differing:
            there, here = (
                ", ".join(f"{name} {number}" for name, number in sorted(some.items()))
                for some in (made_with, versions(decoder))
            )
            versions_told = (
                f"dumped with {there}, here {here}; expected equal samples; use the same versions"
                if there != here
                else f"dumped with {there}, as here; expected equal samples; if an augmentation of your "
                "own has changed, restore it, or raise its version; else use the dump's machine"
            )
            raise MismatchError(f"{origin}: {self}; {versions_told}, or make a new dump{way_out}")


@dataclass(frozen=True, slots=True)
class Sighting:
    """The stored checksums of one shard for samples present in a feed.

    Args:
        view: view of the shard.
        rows: (W,) rows of these samples in the feed.
        checksums: stored checksums and values.
    """

    view: int
    rows: Rows
    checksums: RenderChecksums


def picked(shards: Iterable[ShardId], seed: int = 0) -> list[ShardId]:
    """Return at most `MOST_CHECKED` shards, in order, so that each catalogue is read once."""
    some = sorted(shards)
    if len(some) > MOST_CHECKED:
        some = [some[place] for place in np.sort(_shuffled(len(some), seed)[:MOST_CHECKED]).tolist()]
    return some


def sightings(
    layout: Layout,
    records: Iterable[tuple[ShardId, Recorded]],
    places: Rows,
    section: str,
    *,
    mixes: bool,
) -> list[Sighting]:
    """Return the stored checksums of a section's finished shards.

    Args:
        layout: the store's layout.
        records: finished shards; those of other sections are skipped.
        places: (R,) sample of each row of the section, or `ABSENT`.
        section: name of the section.
        mixes: whether views mix samples; then a shard with one absent sample cannot be rendered again.
    """
    found = []
    for shard, record in records:
        if shard.section != section:
            continue
        block = places[layout.rows(shard)]
        rows = block[checksum_rows(layout.n_rows(shard))]
        lost = mixes and (block == ABSENT).any()
        there = np.flatnonzero((rows != ABSENT) & (not lost))
        if len(there):
            found.append(Sighting(shard.view, rows[there], record.checksums[there]))
    return found


def spread_out(seen: Sequence[Sighting], seed: int = 0) -> list[Sighting]:
    """Return at most `MOST_CHECKED` of the checksums, as evenly over the shards as possible.

    A drift that touches 1 % of the samples stays unseen with a probability of 0.99^4096 = 10^-18.

    Args:
        seen: the checksums of all shards.
        seed: of the choice, so that several students check different samples.
    """
    if sum(len(sighting.rows) for sighting in seen) <= MOST_CHECKED:
        return list(seen)
    # E.g. 93,900 shards: one sample of each of 4,096 shards. 100 shards: 40 samples of each.
    each = max(1, MOST_CHECKED // len(seen))
    chosen = np.sort(_shuffled(len(seen), seed)[:MOST_CHECKED])
    found = []
    for place in chosen.tolist():
        some = np.sort(_shuffled(len(seen[place].rows), seed, view=place)[:each])
        found.append(
            replace(seen[place], rows=seen[place].rows[some], checksums=seen[place].checksums[some])
        )
    return found


def _shuffled(count: int, seed: int, view: int = 0) -> Rows:
    return permutation(seed=seed, epoch=view, keys=np.arange(count, dtype=np.uint64), lane=Lane.CHECKED)


def store_sightings(
    store: LogitStore, section: str, images: Split, seed: int = 0, view: int | None = None
) -> list[Sighting]:
    """Return a store's checksums of samples present in a split, at most `MOST_CHECKED`.

    Args:
        store: the store.
        section: the split's name.
        images: the split.
        seed: of the choice of samples, if there are many.
        view: the only view to look at; None for all.
    """
    layout, index = store.manifest.layout, store.sections[section].index
    places = np.full(layout.sections[section].n_rows, ABSENT)
    places[layout.sections[section].rows()] = index.samples_of(images)
    mixes = section == "train" and views_of(store).mixes
    views = range(store.sections[section].n_views) if view is None else (view,)
    shards = (shard for shard in store.manifest.shards if shard.section == section and shard.view in views)
    records = store.manifest.finished(picked(shards, seed))
    return spread_out(sightings(layout, records, places, section, mixes=mixes), seed)


def measure_drift(feed: Feed, seen: Sequence[Sighting]) -> Drift:
    """Render samples again and compare them with stored checksums.

    Args:
        feed: the samples, with the store's views and the teacher's preprocessing.
        seen: the stored checksums.

    Raises:
        MismatchError: the number of channels or the dtype differs.
        DataError: a sample changed since it was prepared, which is not drift.
    """
    if seen:
        feed.images.require_unchanged(np.unique(np.concatenate([s.rows for s in seen])))
    differing: list[str] = []
    levels = [np.zeros(0, np.int64)]
    for sighting, shown in zip(seen, _shown(feed, seen), strict=True):
        now, then = RenderChecksums.of(shown), sighting.checksums
        if (now.values.shape, now.values.dtype) != (then.values.shape, then.values.dtype):
            raise MismatchError(
                f"the teacher saw {then.values.dtype} samples with {then.channels} channels, but here "
                f"they are {now.values.dtype} with {now.channels}; use the data of the dump"
            )
        other = np.flatnonzero(np.array(now.crcs) != np.array(sighting.checksums.crcs))
        names = (feed.images.names[row] for row in sighting.rows[other])
        differing.extend(f"{name!r} in view {sighting.view}" for name in names)
        before, after = (w.values[other].astype(np.int64).ravel() for w in (sighting.checksums, now))
        levels.append(np.abs(after - before))
    off = np.concatenate(levels)
    return Drift(
        checked=sum(len(sighting.rows) for sighting in seen),
        differing=len(differing),
        first=differing[0] if differing else None,
        mean_difference=float(off.mean()) if len(off) else 0.0,
        largest_difference=int(off.max(initial=0)),
    )


def _shown(feed: Feed, seen: Sequence[Sighting]) -> Iterator[Sequence[NDArray[Any]]]:
    """Yield the checked integers of each sighting's samples; rendered samples are rendered ahead."""
    requests = [(sighting.view, sighting.rows) for sighting in seen]
    if feed.checks_rendered:
        return (list(rendered.cpu().numpy()) for rendered in feed.rendered(requests))
    return itertools.starmap(feed.evidence, requests)


def require_no_drift(store: SoftLabels, feed: Feed, seed: int = 0, view: int | None = None) -> None:
    """Refuse a store, or an ensemble's member, whose training samples render differently here.

    If the store was opened with `allow_drift`, note the difference instead.

    Args:
        store: the store or ensemble.
        feed: the student's feed.
        seed: of the choice of samples, if there are many.
        view: the only view to compare; None for all.

    Raises:
        MismatchError: the teacher saw different samples, or they decode or render differently here.
    """
    for member in store.members:
        _require_no_drift(member, feed, seed, view)


def _require_no_drift(store: LogitStore, feed: Feed, seed: int, view: int | None) -> None:
    images, made_with = feed.images, store.manifest.header.versions
    is_same_decoder = images.decoder == made_with["decoder"]
    if is_same_decoder:
        # With the same decoder, different content is a different sample: refuse it by name, before drift.
        store.rows_of(images)
    preprocessing = feed.seen_by(preprocessing_of(store))
    drift = measure_drift(preprocessing, store_sightings(store, "train", images, seed, view))
    if not store.allow_drift:
        way_out = ", or measure the cost with --allow-drift"
        drift.require_none(str(store.location), made_with, images.decoder, way_out)
        if not is_same_decoder:
            store.rows_of(images)
    elif drift.differing:
        note(f"{store.location}: {drift}")
