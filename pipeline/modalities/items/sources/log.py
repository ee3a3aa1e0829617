"""From a log of interactions to histories: filter, order, leave the last items out.

Of each user, the last item is the label of a test sample, the one before that of a validation sample. Each
earlier item but the first is the label of a training sample; its history are the items before it.

    items of user u: a b c d e
    train:           u/1: a -> b, u/2: a b -> c
    validation:      u/3: a b c -> d
    test:            u/4: a b c d -> e

Samples are named by user and position. So new interactions of a user add samples and change none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.core.arrays import ranges
from pipeline.core.errors import DataError, counted, plural
from pipeline.core.hashing import sample_key
from pipeline.core.progress import note
from pipeline.core.random import Lane, draw
from pipeline.modalities.items.form import ItemsSource
from pipeline.modalities.items.options import ItemsOptions
from pipeline.samples.labels import require_class_names
from pipeline.samples.samples import LeftOut, Sample, Samples

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Interactions:
    """The interactions of a log, in its order.

    Args:
        users, items: names of the n users and items.
        times: (n,) int64 or float64; None if the log has no time.
    """

    users: Sequence[str]
    items: Sequence[str]
    times: NDArray[np.int64] | NDArray[np.float64] | None


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class _Log:
    """Numbered interactions.

    Args:
        users, items: (n,) numbers of users and items.
        times: (n,), 0 without time.
    """

    users: Ints
    items: Ints
    times: NDArray[np.int64] | NDArray[np.float64]

    def only(self, kept: NDArray[np.bool_]) -> _Log:
        """Return the interactions (n,) that are true."""
        return _Log(users=self.users[kept], items=self.items[kept], times=self.times[kept])


def histories_of(
    origin: object, found: Interactions, options: ItemsOptions, left_out: LeftOut | None = None
) -> ItemsSource:
    """Return the samples of a log.

    Args:
        origin: of the log, for messages.
        found: all interactions.
        options: limits of users and items, lengths.
        left_out: what the reader left out.

    Raises:
        DataError: no user or no item holds the limits.
    """
    (users, user_names), (items, item_names) = _numbered(found.users), _numbered(found.items)
    times = np.zeros(len(users), np.int64) if found.times is None else found.times
    log, dropped = _Log(users=users, items=items, times=times), Counter[str]()
    log = _filtered(_without_duplicates(log, dropped), options, dropped)
    if not len(log.users):
        raise DataError(
            f"{origin}: no user with {options.min_user_interactions} interactions with items of "
            f"{options.min_item_interactions}; expected some; lower data.min_user_interactions or "
            f"data.min_item_interactions"
        )
    if found.times is None:
        order = _drawn_order(log, user_names, item_names)
        note(
            f"{origin}: no column of times, so each user's items stand in a random order, drawn by user "
            "and item: the tested item is a random one"
        )
    else:
        # Items of one moment stay in the order of the log.
        order = np.lexsort((np.arange(len(log.users)), log.times, log.users))
    catalogue, items = np.unique(log.items[order], return_inverse=True)
    names = tuple(item_names[item] for item in catalogue.tolist())
    require_class_names(origin, names)
    said = LeftOut(dropped=dropped) if left_out is None else left_out + LeftOut(dropped=dropped)
    kept, counts = np.unique(log.users, return_counts=True)
    users_kept = [user_names[user] for user in kept.tolist()]
    return _source(origin, users_kept, counts, items.astype(np.int32), names, options, said)


def _numbered(names: Sequence[str]) -> tuple[Ints, list[str]]:
    """Return the number (n,) of each name, and the different names in order."""
    places: dict[str, int] = {}
    codes = np.fromiter((places.setdefault(name, len(places)) for name in names), np.int64, len(names))
    known = sorted(places)
    rank = np.empty(len(known), np.int64)
    rank[[places[name] for name in known]] = np.arange(len(known))
    return (rank[codes] if len(known) else codes), known


def _without_duplicates(log: _Log, dropped: Counter[str]) -> _Log:
    """Keep one of several interactions of one user, item and time: the first in the log."""
    order = np.lexsort((np.arange(len(log.users)), log.times, log.items, log.users))
    same = np.zeros(len(order), np.bool_)
    parts = [np.diff(values[order]) == 0 for values in (log.users, log.items, log.times)]
    same[order[1:]] = np.logical_and.reduce(parts)
    if same.any():
        dropped["duplicate interactions"] = int(same.sum())
    return log.only(~same)


def _filtered(log: _Log, options: ItemsOptions, dropped: Counter[str]) -> _Log:
    """Leave out users and items with few interactions, in turn, until all hold the limits."""
    limits = {"user": options.min_user_interactions, "item": options.min_item_interactions}
    while True:
        kept = np.ones(len(log.users), np.bool_)
        for kind, codes in (("user", log.users), ("item", log.items)):
            counts = np.bincount(codes)
            few = (counts > 0) & (counts < limits[kind])
            if few.any():
                interactions = counted(limits[kind], "interaction")
                dropped[f"{plural(kind)} with fewer than {interactions}"] += int(few.sum())
                kept &= ~few[codes]
        if kept.all():
            return log
        log = log.only(kept)


def _drawn_order(log: _Log, users: Sequence[str], items: Sequence[str]) -> Ints:
    """Return an order (n,): user by user, the items of each by random numbers of 64 bits."""
    pairs = zip(log.users.tolist(), log.items.tolist(), strict=True)
    keys = np.fromiter((sample_key(f"{users[u]}\n{items[i]}") for u, i in pairs), np.uint64, len(log.users))
    high, low, *_ = draw(seed=0, view=0, keys=keys, lane=Lane.HISTORY_ORDER)
    return np.lexsort((log.items, (high << np.uint64(32)) | low, log.users))


def _source(
    origin: object,
    users: Sequence[str],
    counts: Ints,
    items: NDArray[np.int32],
    names: tuple[str, ...],
    options: ItemsOptions,
    left_out: LeftOut,
) -> ItemsSource:
    """Return the samples of ordered histories.

    Args:
        origin: of the log.
        users: names of U users.
        counts: (U,) number of items of each.
        items: (n,) all their items, user by user.
        names: of the catalogue.
        options: lengths.
        left_out: users, items and rows that are not read.
    """
    starts = np.cumsum(counts) - counts

    def samples(owners: Ints, positions: Ints) -> Samples:
        def make(row: int) -> Sample:
            user, position = int(owners[row]), int(positions[row])
            end = int(starts[user]) + position
            first = max(int(starts[user]), end - options.max_history)
            return Sample(f"{users[user]}/{position}", int(items[end]), lambda: items[first:end])

        return Samples(make, np.arange(len(owners)))

    # Positions 1 to n - 3 of n items train: the first one has no history, the last two are held out.
    most = (
        counts - 3 if options.samples_per_user is None else np.minimum(counts - 3, options.samples_per_user)
    )
    owners = np.repeat(np.arange(len(users)), most)
    positions = ranges(most) + (counts - 2 - most)[owners]
    every = np.arange(len(users))
    if not len(owners):
        raise DataError(
            f"{origin}: no user has four interactions; expected some, as two are held out and the first "
            "has no history; lower data.min_item_interactions, or add interactions"
        )
    _tell_unseen(origin, items[starts[owners] + positions], items[starts + counts - 1])
    return ItemsSource(
        classes=names,
        train=samples(owners, positions),
        validation=samples(every, counts - 2),
        test=samples(every, counts - 1),
        left_out=left_out,
    )


def _tell_unseen(origin: object, trained: NDArray[np.int32], tested: NDArray[np.int32]) -> None:
    """Tell of test samples whose item no training sample has as its label."""
    unseen = int((~np.isin(tested, trained)).sum())
    if unseen:
        note(
            f"{origin}: the items of {unseen:,} of {len(tested):,} test histories are no training label, "
            "so no model learns to name them; they count as misses"
        )
