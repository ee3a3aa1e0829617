"""Check a store: compare every byte with the manifest, and run the teacher again on random samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.codecs import Rule, TeacherOutput
from pipeline.codecs.head import Head
from pipeline.core.errors import ConfigError, StoreError
from pipeline.core.progress import note, track
from pipeline.core.team import ALONE, Team, parts_for
from pipeline.evaluation.context import RunContext
from pipeline.loading.drift import Drift, measure_drift, store_sightings
from pipeline.loading.feed import Feed, consecutive
from pipeline.modalities.table import mixed_blocks, preprocessing_of, views_of
from pipeline.models.teacher import Teacher
from pipeline.places.folder import Root
from pipeline.places.location import Location
from pipeline.store.faults import Fault, metadata_faults, shard_faults, strays
from pipeline.store.header import Header
from pipeline.store.index import is_described
from pipeline.store.layout import MANIFEST, ZARR_JSON, ShardId, Span
from pipeline.store.leftovers import is_passing
from pipeline.store.manifest import Manifest, sum_up
from pipeline.store.reader import LogitStore, SectionReader
from pipeline.store.rehead import Reheaded

# Limit on the mean divergence (nats for classes), or ten times the codec's own mean if that is larger. A
# single pair may reach ten times this, or twenty times the codec's 99th percentile. More is not rounding.
REPLAY_KL = 1e-3
_BATCH = 256
# Fields of an audit that are no part of its public interface.
_UNTOLD = ("drift", "files", "measure", "limit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """Findings of `pipeline verify`.

    Args:
        ok: no file is bad, and replayed outputs match the stored ones.
        checked: number of files read.
        bad: one line per problem.
        replayed: number of (view, sample) pairs that the teacher saw again.
        replay_max_abs_diff: largest difference between outputs, in the part that the codec preserves.
        replay_kl_mean: mean of the task's first divergence, e.g. KL(teacher || stored) at temperature 1 in
            nats for classes.
        drift: difference between images rendered now and then; None without a replay.
        files: names of bad files.
        measure: name of `replay_kl_mean`.
        limit: up to which `replay_kl_mean` is rounding.
    """

    ok: bool
    checked: int
    bad: list[str] = field(default_factory=list)
    replayed: int = 0
    replay_max_abs_diff: float | None = None
    replay_kl_mean: float | None = None
    drift: Drift | None = None
    files: tuple[str, ...] = ()
    measure: str = "KL"
    limit: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the findings as plain values; the keys are a public interface."""
        return {name: value for name, value in asdict(self).items() if name not in _UNTOLD}


def verify(path: Root, workers: int = 1, team: Team = ALONE) -> Audit:
    """Read every file of a store once, and compare it with the manifest.

    Args:
        path: the store's folder or place.
        workers: threads that read, hash and decode, in each process.
        team: processes that share the shards.

    Raises:
        IncompleteStoreError: the manifest is missing.
        CorruptStoreError: the manifest itself was changed.
    """
    location = Location(path)
    # A whole copy stands in for a damaged catalogue, which is a fault, so that its shards are checked too.
    manifest = Manifest.read(location, copies=True)
    known = {MANIFEST, *manifest.metadata, *manifest.shard_files(), *manifest.catalogue_files()}
    decoding = _Decoding(location, manifest)
    check = partial(_check_shards, location, manifest, decoding, workers)
    faults = [
        *metadata_faults(location, {**manifest.metadata, **manifest.catalogue_files()}),
        *(check() if team is ALONE else _check_together(path, manifest, decoding, workers, team)),
        # Not a fault: leftovers of killed writers, which the next writer removes, and unfinished growths.
        *(stray for stray in strays(path, known) if not is_passing(stray.name)),
    ]
    bad = [str(fault) for fault in faults] or [
        *_contradictions(location, manifest),
        *decoding.problems(),
    ]
    return Audit(ok=not bad, checked=len(known), bad=bad, files=tuple(fault.name for fault in faults))


def _check_shards(
    location: Location,
    manifest: Manifest,
    decoding: _Decoding,
    workers: int,
    spans: Sequence[Span] | None = None,
) -> list[Fault]:
    """Check the shards of some spans, or of all with progress; `decoding` notes what does not decode."""
    shards, quiet = manifest.readable(spans), spans is not None
    return list(
        shard_faults(location, manifest.layout, shards, workers=workers, quiet=quiet, look=decoding.look)
    )


def _check_together(
    path: Root, manifest: Manifest, decoding: _Decoding, workers: int, team: Team
) -> Iterator[Fault]:
    """Do the same with a team; each process opens the store for each part of it."""
    parts = parts_for(team, list(manifest.layout.spans()))
    checked = team.map(partial(_check_part, path, workers), parts)
    for faults, problems in track(checked, "verify", total=len(parts), unit="part"):
        decoding.found.update(problems)
        yield from faults


def _check_part(path: Root, workers: int, spans: Sequence[Span]) -> tuple[list[Fault], dict[ShardId, str]]:
    """Check the shards of some spans in another process."""
    location = Location(path)
    manifest = Manifest.read(location, copies=True)
    decoding = _Decoding(location, manifest)
    return _check_shards(location, manifest, decoding, workers, spans), decoding.found


def verify_reheaded(path: Root, workers: int = 1, team: Team = ALONE) -> Audit:
    """Check a re-headed store: its manifest and head, every byte behind it, and its outputs.

    Raises:
        CorruptStoreError: manifest or head changed since they were written.
        MismatchError: the store behind it was rewritten since.
    """
    store = Reheaded.open(path)
    (member,) = store.members
    root = member.location.root
    audit = verify(Path(str(member.location)) if root is None else root, workers, team)
    bad = audit.bad or [
        f"{name} view {view} has non-finite outputs"
        for name, section in store.sections.items()
        for view in range(section.n_views)
        if not all(bool(outputs.isfinite().all()) for outputs in section.decoded(view))
    ]
    return replace(audit, ok=not bad, bad=bad, checked=audit.checked + 2)


def _contradictions(location: Location, manifest: Manifest) -> list[str]:
    """Compare redundant metadata: root with manifest, and samples with the dataset digest."""
    problems = []
    try:
        root = Header.parse(manifest.read_metadata(location, ZARR_JSON), f"{location}/{ZARR_JSON}")
        if not root.says_the_same_as(manifest.header):
            problems.append(f"{ZARR_JSON} and {MANIFEST} describe different stores")
        store = LogitStore(location, manifest)
        _require_described(store)
        index = {name: section.index for name, section in store.sections.items()}
        different = manifest.totals != sum_up(manifest.layout, manifest.catalogue)
    except StoreError as error:
        return [str(error)]
    if different:
        problems.append(f"{MANIFEST} and the catalogues tell different sums")
    if not is_described(index, manifest.header):
        problems.append("the samples' keys, digests and labels do not match the header's digests")
    return problems


def _require_described(store: LogitStore) -> None:
    """Refuse a header without views or preprocessing; only note it if its modality is not importable."""
    try:
        views_of(store)
        preprocessing_of(store)
    except ConfigError as error:
        note(f"{store.location}: views and preprocessing were not checked: {error}")


class _Decoding:
    """Decodes every shard: digests alone would accept values that were written wrongly.

    Only notes it if the codec is user code that may not run.

    Args:
        location: of the store.
        manifest: the store's.

    Attributes:
        found: the problem of each shard that does not decode to finite outputs.
    """

    def __init__(self, location: Location, manifest: Manifest) -> None:
        self._location, self.found = location, dict[ShardId, str]()
        self._sections: Mapping[str, SectionReader] = {}
        self._unopened: StoreError | ConfigError | None = None
        try:
            store = LogitStore(location, manifest)
            _ = store.codec
            self._sections = store.sections
        except (StoreError, ConfigError) as error:
            self._unopened = error

    def look(self, shard: ShardId, contents: Mapping[str, bytes]) -> None:
        """Decode the bytes of a shard; on any thread."""
        if shard.section not in self._sections:
            return
        try:
            finite = bool(self._sections[shard.section].decode_shard(shard, contents).isfinite().all())
        except StoreError as error:
            problem = str(error)
        else:
            problem = "" if finite else f"{shard.section} view {shard.view} has non-finite logits"
        if problem:
            self.found[shard] = problem

    def problems(self) -> list[str]:
        """Return one problem per view at most, section by section."""
        if isinstance(self._unopened, ConfigError):
            note(f"{self._location}: its bytes are checked, its logits are not decoded: {self._unopened}")
        elif self._unopened is not None:
            return [str(self._unopened)]
        sections = list(self._sections)
        order = sorted(self.found, key=lambda shard: (sections.index(shard.section), shard))
        views: dict[tuple[str, int], str] = {}
        for shard in order:
            views.setdefault((shard.section, shard.view), self.found[shard])
        return list(views.values())


def replay(
    store: LogitStore | Reheaded, context: RunContext, teacher: Teacher, count: int, seed: int = 0
) -> Audit:
    """Run the teacher again on random (view, sample) pairs and compare with the stored logits.

    First, the samples with render checksums are rendered again. In a store opened with `allow_drift` they
    may differ; the logits' difference then includes the effect of that drift.

    Args:
        store: a store that passed `verify`, or one that re-heads it.
        context: the store's data, or a part of it, and the device.
        teacher: the store's teacher.
        count: number of pairs.
        seed: seed of the random choice.

    Raises:
        DataError: an image differs from the prepared one.
        MismatchError: the data or the teacher is not the store's.
    """
    (member,) = store.members
    member.require_teacher(teacher.described())
    images = context.data.train
    feed = context.feed(images, views_of(store), teacher.card.preprocessing, mixed_blocks(store, images))
    drift = measure_drift(feed, store_sightings(member, "train", images))
    if drift.differing and not member.allow_drift:
        return Audit(ok=False, checked=0, bad=[str(drift)], drift=drift)
    pairs = np.random.default_rng(seed).integers((0, 0), (store.n_views, len(images)), (count, 2))
    images.require_unchanged(np.unique(pairs[:, 1]))
    task = context.task.restored(store.measures)
    differences, divergences = zip(*_compared(store, feed, teacher, pairs, task), strict=True)
    found = torch.cat(divergences)
    mean, worst = float(found.mean()), float(found.max())
    cost = store.finding.fidelity if isinstance(store, Reheaded) else store.manifest.fidelity()
    first = task.measures.divergences[0]
    mean_limit = max(REPLAY_KL, 10 * cost.mean(first))
    worst_limit = max(10 * REPLAY_KL, 20 * cost.divergences[first].p99)
    bad, name = [], "KL" if not task.measures.is_absolute else first
    if mean > mean_limit:
        bad.append(f"replayed logits differ: mean {name} {mean:.2e}, expected at most {mean_limit:.0e}")
    if worst > worst_limit:
        bad.append(
            f"replayed logits differ: {name} {worst:.2e} for one pair, expected at most {worst_limit:.0e}"
        )
    return Audit(
        ok=not bad,
        checked=0,
        bad=bad,
        replayed=count,
        replay_max_abs_diff=max(differences),
        replay_kl_mean=mean,
        drift=drift,
        measure=name,
        limit=mean_limit,
    )


def _compared(
    store: LogitStore | Reheaded,
    feed: Feed,
    teacher: Teacher,
    pairs: NDArray[np.int64],
    rule: Rule,
) -> Iterator[tuple[float, Tensor]]:
    """Yield per view of pairs (P, 2): the largest output difference, and the first divergence (p,)."""
    stored_rows = store.rows_of(feed.images)
    for view in np.unique(pairs[:, 0]).tolist():
        rows = pairs[pairs[:, 0] == view, 1]
        head = store.head if isinstance(store, Reheaded) else None
        fresh = rule.kept(_outputs(teacher, head, feed, view, rows))
        stored = store.sections["train"].logits(view, stored_rows[rows])
        yield float((fresh - stored).abs().max()), rule.diverge(fresh, stored)[:, 0]


def _outputs(teacher: Teacher, head: Head | None, feed: Feed, view: int, rows: NDArray[np.int64]) -> Tensor:
    batches = [rows[batch] for batch in consecutive(len(rows), _BATCH)]
    found = (teacher.output(images) for images in feed.batches(view, batches))
    return torch.cat([_said(output, head).cpu() for output in found])


def _said(output: TeacherOutput, head: Head | None) -> Tensor:
    """Return the teacher's outputs, or those of another head over its features."""
    if head is None:
        return output.logits
    features = output.logits if head.of_outputs else output.require_features()
    return head.to(features.device).outputs(features)
