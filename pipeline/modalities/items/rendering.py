"""Render the views of a split of histories for one model: (B, length) ids, padded in front."""

from __future__ import annotations

from copy import copy
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.arrays import Rows, ranges
from pipeline.modalities.items.operations import MASKED, Histories, carry_out
from pipeline.modalities.items.spec import ItemsViews
from pipeline.modalities.preprocessing import UsualRenderer
from pipeline.samples.packed import Split

# Id of padding; item c of the catalogue has id c + 1, and the mask stands behind them.
PAD, FIRST = 0, 1
# Lengths of batches are multiples of this, so that a compiled network sees few of them.
_STEP = 8


class Seen(Protocol):
    """The part of a model's preprocessing that decides rendering."""

    @property
    def items(self) -> int:
        """C, the size of the catalogue."""

    @property
    def max_length(self) -> int:
        """Items per history."""


class ItemsRenderer(UsualRenderer):
    """Renders the views of a split for one model.

    Args:
        samples: the split.
        spec: the views; None for un-augmented histories.
        seen: the model's preprocessing.
    """

    dtype = torch.int32
    # Models may see different parts of a history; checksums are of all of it.
    checks_rendered = False

    def __init__(self, samples: Split, spec: ItemsViews | None, seen: Seen) -> None:
        self._samples, self._spec, self._seen = samples, spec, seen

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a rendered history: (length,)."""
        return (self._seen.max_length,)

    def for_model(self, seen: Seen) -> ItemsRenderer:
        """Return a renderer of the same views for a different model."""
        other = copy(self)
        other._seen = seen
        return other

    def histories(self, view: int, rows: Rows) -> Histories:
        """Return the histories of rows (B,) of one view."""
        plain = Histories.of([self._samples.array(row) for row in rows.tolist()])
        if self._spec is None:
            return plain
        return carry_out(self._spec, view, self._samples.keys[rows], plain)

    def render(self, view: int, rows: Rows) -> Tensor:
        """Return ids (B, length) int32 of rows (B,) of one view, the latest item last."""
        shown, length = self.histories(view, rows), self._seen.max_length
        ids = np.where(shown.ids == MASKED, self._seen.items, shown.ids) + FIRST
        # E.g. 7 items in a length of 5: the columns are -2, -1, 0, 1, ..., and the first two are cut.
        lengths = shown.lengths
        columns = ranges(lengths) + (length - lengths)[shown.owner]
        kept = columns >= 0
        padded = np.full((len(rows), length), PAD, np.int32)
        padded[shown.owner[kept], columns[kept]] = ids[kept]
        return torch.from_numpy(padded)

    def evidence(self, view: int, rows: Rows) -> list[NDArray[np.int32]]:
        """Return the items (n,) of the view of each row (B,); -1 is hidden."""
        return self.histories(view, rows).split()

    def lengths(self, view: int, rows: Rows) -> NDArray[np.int64]:
        """Return the number of un-augmented items that the model sees of rows (B,)."""
        lengths: NDArray[np.int64] = self._samples.shapes[rows, 0].astype(np.int64)
        return np.minimum(lengths, self._seen.max_length)

    def used(self, rendered: Tensor) -> tuple[int | slice, ...]:
        """Return (B, the last columns), with the longest history rounded up to a multiple of 8."""
        filled = (rendered != PAD).any(0).nonzero()
        length = rendered.shape[1]
        longest = length - int(filled[0]) if len(filled) else 1
        return len(rendered), slice(length - min(-(-longest // _STEP) * _STEP, length), length)
