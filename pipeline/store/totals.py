"""Sums over the shards of a section, which a manifest has so that no catalogue is read for its figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import fsum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.codecs.fidelity import HIGHEST_BIN, Divergence, Fidelity
from pipeline.codecs.rule import Measures
from pipeline.store.catalogue import Catalogue


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Sums over the shards of a section.

    Args:
        bytes: of the shards' files.
        rows: of the shards: samples, times views.
        labelled, correct: as in a record; of all views.
        fidelity: cost of the codec.
    """

    bytes: int
    rows: int
    labelled: int
    correct: int | None
    fidelity: Fidelity

    @classmethod
    def of(cls, measures: Measures, catalogues: Iterable[Catalogue]) -> Totals:
        """Add up catalogues, one after the other; sums of divergences do not depend on their order."""
        sums = dict.fromkeys(("sizes", "rows", "labelled", "samples", "same", "correct"), 0)
        counts = np.zeros((len(measures.divergences), 2 * HIGHEST_BIN + 1), np.int64)
        each: list[NDArray[np.float64]] = []
        counted = True
        for catalogue in catalogues:
            columns = catalogue.columns
            for name in sums:
                sums[name] += int(columns[name].sum(dtype=np.int64))
            counted = counted and bool((columns["correct"] >= 0).all())
            order = [catalogue.head.divergences.index(name) for name in measures.divergences]
            each.append(columns["totals"][:, order])
            kinds = np.repeat(np.tile(np.argsort(order), catalogue.span.count), columns["bins"].ravel())
            np.add.at(counts, (kinds, columns["edges"].astype(np.int64) + HIGHEST_BIN), columns["counts"])
        totals = np.concatenate([np.zeros((0, len(measures.divergences))), *each])
        divergences = {
            name: Divergence(total=fsum(totals[:, k].tolist()), histogram=_sparse(counts[k]))
            for k, name in enumerate(measures.divergences)
        }
        fidelity = Fidelity(
            samples=sums["samples"],
            divergences=divergences,
            agreement=measures.agreement,
            same=sums["same"],
        )
        return cls(
            bytes=sums["sizes"],
            rows=sums["rows"],
            labelled=sums["labelled"],
            correct=sums["correct"] if counted else None,
            fidelity=fidelity,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the sums as plain values."""
        told = {"bytes": self.bytes, "rows": self.rows, "labelled": self.labelled}
        correct = {} if self.correct is None else {"correct": self.correct}
        return {**told, **correct, "fidelity": self.fidelity.to_dict()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Totals:
        """Return the sums that `to_dict` described, whose form is checked.

        Raises:
            ValueError: the sums contradict each other.
        """
        return cls(**{"correct": None, **value, "fidelity": Fidelity.from_dict(value["fidelity"])})

    @property
    def accuracy(self) -> float | None:
        """The share of correct answers; None without labels, or if the task counts no answers."""
        return self.correct / self.labelled if self.labelled and self.correct is not None else None


def _sparse(counts: NDArray[np.int64]) -> dict[int, int]:
    filled = np.flatnonzero(counts)
    return dict(zip((filled - HIGHEST_BIN).tolist(), counts[filled].tolist(), strict=True))
