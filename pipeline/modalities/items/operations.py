"""Carry out the operations of a view on many histories at once, with integers only.

Every decision about an item is drawn at (seed, view, sample key, item number), so it depends neither on the
other items nor on the batch. Decisions about a history, e.g. where a span begins, are drawn once.

Histories lie one after the other: e.g. [7, 9] and [4] are ids [7, 9, 4], owner [0, 0, 1], number [0, 1, 0].
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.arrays import ranges
from pipeline.core.random import Lane, below, chance, draw, lanes_of
from pipeline.core.random import Words as RandomWords
from pipeline.modalities.items.spec import Crop, ItemsViews, Mask, Operation, Reorder

# Stands for a hidden item.
MASKED = -1
# A share of items in fixed point: 1 is 2^16.
_UNIT = 1 << 16

Ints = NDArray[np.int64]
Chosen = NDArray[np.bool_]


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Histories:
    """The items of B histories, one after the other.

    Args:
        ids: (T,) numbers in the catalogue, or `MASKED`.
        owner: (T,) history of each item, 0 to B - 1, ascending.
        number: (T,) number of each item in its un-augmented history, 0 for the oldest.
        count: B.
    """

    ids: Ints
    owner: Ints
    number: Ints
    count: int

    @classmethod
    def of(cls, arrays: list[NDArray[np.int32]]) -> Histories:
        """Return un-augmented histories, each (n,) int32."""
        lengths = np.array([len(array) for array in arrays], np.int64)
        ids = np.concatenate(arrays).astype(np.int64) if arrays else np.zeros(0, np.int64)
        owner = np.repeat(np.arange(len(arrays)), lengths)
        return cls(ids=ids, owner=owner, number=ranges(lengths), count=len(arrays))

    @property
    def lengths(self) -> Ints:
        """Number of items of each history (B,)."""
        return np.bincount(self.owner, minlength=self.count)

    def split(self) -> list[NDArray[np.int32]]:
        """Return each history (n,) int32."""
        return np.split(self.ids.astype(np.int32), np.cumsum(self.lengths)[:-1]) if self.count else []


@dataclass(frozen=True, eq=False, slots=True)
class _Draws:
    """Random numbers of B histories and their items in one view."""

    seed: int
    view: int
    keys: NDArray[np.uint64]

    def of_histories(self, lane: Lane) -> RandomWords:
        """Return four numbers (4, B)."""
        return draw(seed=self.seed, view=self.view, keys=self.keys, lane=lane)

    def of_items(self, histories: Histories, lane: Lane) -> RandomWords:
        """Return four numbers (4, T)."""
        lanes = lanes_of(lane, histories.number)
        return draw(seed=self.seed, view=self.view, keys=self.keys[histories.owner], lane=lanes)


def carry_out(spec: ItemsViews, view: int, keys: NDArray[np.uint64], plain: Histories) -> Histories:
    """Return the histories of one view.

    Args:
        spec: the views.
        view: number of the view.
        keys: (B,) keys of the samples.
        plain: the un-augmented histories.
    """
    draws, operations, shown = _Draws(spec.seed, view, keys), spec.operations, plain
    chosen = np.ones((len(operations), plain.count), np.bool_)
    if spec.apply == "one" and operations:
        one = below(draws.of_histories(Lane.HISTORY_CHOICE)[0], len(operations))
        chosen = one == np.arange(len(operations), dtype=np.uint64)[:, None]
    for operation, where in zip(operations, chosen, strict=True):
        shown = _applied(operation, shown, draws, where)
    return shown


def _applied(operation: Operation, shown: Histories, draws: _Draws, where: Chosen) -> Histories:
    """Return the histories, those (B,) that are true changed by an operation."""
    if isinstance(operation, Crop):
        return _cropped(operation, shown, draws, where)
    if isinstance(operation, Mask):
        return _masked(operation, shown, draws, where)
    return _reordered(operation, shown, draws, where)


def _cropped(crop: Crop, shown: Histories, draws: _Draws, where: Chosen) -> Histories:
    """Keep a span: e.g. of 10 items with share 0.5 and start 3, items 3 to 7."""
    low, high = (max(1, round(share * _UNIT)) for share in crop.scale)
    share, start, *_ = draws.of_histories(Lane.HISTORY_CROP)
    lengths = shown.lengths
    kept = np.maximum(1, _part_of(lengths, (below(share, high - low + 1)).astype(np.int64) + low))
    kept = np.where(where, kept, lengths)
    room = lengths - kept
    first = room if crop.place == "end" else below(start, _unsigned(room + 1)).astype(np.int64)
    place = ranges(lengths)
    begin, end = first[shown.owner], (first + kept)[shown.owner]
    return _only(shown, (place >= begin) & (place < end))


def _masked(mask: Mask, shown: Histories, draws: _Draws, where: Chosen) -> Histories:
    """Hide items; where all would be hidden, the one with the highest number stays."""
    numbers = draws.of_items(shown, Lane.HISTORY_MASK)[0]
    hidden = chance(numbers, mask.probability) & where[shown.owner]
    # The last of each history, by its random number: histories stand one after the other.
    order = np.lexsort((numbers, shown.owner))
    highest = order[np.cumsum(shown.lengths) - 1]
    left = np.bincount(shown.owner, weights=~hidden, minlength=shown.count)
    hidden[highest[left == 0]] = False
    return replace(shown, ids=np.where(hidden, MASKED, shown.ids))


def _reordered(reorder: Reorder, shown: Histories, draws: _Draws, where: Chosen) -> Histories:
    """Shuffle a span: its items are sorted by random numbers of 64 bits."""
    lengths = shown.lengths
    span = np.where(where, _part_of(lengths, round(reorder.share * _UNIT)), 0)
    start, *_ = draws.of_histories(Lane.HISTORY_REORDER)
    first = below(start, _unsigned(lengths - span + 1)).astype(np.int64)
    high, low, *_ = draws.of_items(shown, Lane.HISTORY_REORDER)
    place = ranges(lengths)
    inside = (place >= first[shown.owner]) & (place < (first + span)[shown.owner])
    # Items outside of the span keep their places: (before, span, after) is sorted first.
    section = np.where(place < first[shown.owner], 0, np.where(inside, 1, 2))
    drawn = np.where(inside, (high << np.uint64(32)) | low, place.astype(np.uint64))
    order = np.lexsort((shown.number, drawn, section, shown.owner))
    return replace(shown, ids=shown.ids[order], number=shown.number[order])


def _part_of(lengths: Ints, share: Ints | int) -> Ints:
    """Return a share (in 2^16ths) of lengths (B,), rounded half up."""
    part: Ints = (lengths * share + _UNIT // 2) // _UNIT
    return part


def _unsigned(values: Ints) -> NDArray[np.uint64]:
    return values.astype(np.uint64)


def _only(shown: Histories, kept: NDArray[Any]) -> Histories:
    """Return the items (T,) that are true."""
    return replace(shown, ids=shown.ids[kept], owner=shown.owner[kept], number=shown.number[kept])
