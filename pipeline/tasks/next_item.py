"""The next item: one softmax over a catalogue, judged by the rank of the item that comes next.

Teacher, codecs and losses are those of `classes`. The figures differ: with thousands of items a first guess
is rarely right, and a recommender shows a list. All figures are over the whole catalogue, as samples of it
would order models differently (Krichene and Rendle, "On Sampled Metrics for Item Recommendation", KDD
2020).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pipeline.samples.samples import UNLABELLED
from pipeline.tasks.class_figures import compare
from pipeline.tasks.classes import Classes
from pipeline.tasks.task import Column

# The usual length of a list.
FIRST = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingFigures:
    """Figures of one model on one split; None if a figure cannot be computed.

    The rank of an item is 1 plus the number of other items with at least its logit: ties count against it.

    Args:
        first: K, the length of the list.
        ndcg: mean of 1 / log2(1 + rank) where the rank is at most K, else 0: the normalised discounted
            cumulative gain with one relevant item (Jarvelin and Kekalainen, TOIS 2002).
        hr: hit rate, the share of samples with a rank of at most K.
        mrr: mean of 1 / rank.
        nll: mean negative log-likelihood of the item, in nats.
        agreement: share of samples on which the model and its teacher have the same first item.
        kl_to_teacher: mean KL(teacher || model) at temperature 1, in nats.
    """

    first: int
    ndcg: float | None = None
    hr: float | None = None
    mrr: float | None = None
    nll: float | None = None
    agreement: float | None = None
    kl_to_teacher: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """Return the figures as plain values, e.g. ndcg10 and hr10."""
        return {
            f"ndcg{self.first}": self.ndcg,
            f"hr{self.first}": self.hr,
            "mrr": self.mrr,
            "nll": self.nll,
            "agreement": self.agreement,
            "kl_to_teacher": self.kl_to_teacher,
        }

    @property
    def followed(self) -> Mapping[str, float | None]:
        """The figures against the labels that show the training's progress."""
        return {f"ndcg{self.first}": self.ndcg, "nll": self.nll}

    @property
    def headline(self) -> str:
        """NDCG in words, or nothing."""
        return "" if self.ndcg is None else f"NDCG@{self.first} {self.ndcg:.4f}"

    def __str__(self) -> str:
        return "" if self.nll is None else f"{self.headline} nll {self.nll:.4f}"

    @property
    def score(self) -> tuple[float, float] | None:
        """NDCG, then likelihood."""
        return None if self.ndcg is None or self.nll is None else (self.ndcg, -self.nll)


class NextItem(Classes):
    """The task of items, registered under the name `next_item`.

    Args:
        name: in params.yaml and in files; a task of one's own is `module:NAME`.
        first: K, the length of the list.

    Example:
        >>> task = NextItem(first=2)
        >>> logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
        >>> figures = task.compare(logits, torch.tensor([0, 2]))
        >>> figures.hr, figures.ndcg, round(figures.mrr, 3)
        (0.5, 0.5, 0.667)
    """

    # An item that nobody expected was chosen nevertheless: it is no error.
    doubts_labels = False

    def __init__(self, name: str = "next_item", first: int = FIRST) -> None:
        self.name, self._first, self.accuracy = name, first, f"HR@{first}"
        own = (
            Column(name=f"ndcg{first}", title=f"NDCG@{first}", form="share"),
            Column(name=f"hr{first}", title=f"HR@{first}", form="share"),
            Column(name="mrr", title="MRR", form="share"),
        )
        kept = ("nll", *Classes.against_teacher)
        self.columns = (*own, *(column for column in Classes.columns if column.name in kept))
        self.mended = ()

    def answers(self, outputs_BC: Tensor) -> Tensor:
        """Return the list of each row (B, K) int64, best first."""
        return outputs_BC.topk(min(self._first, outputs_BC.shape[1]), dim=1).indices

    def tally(self, answers: NDArray[Any], labels_N: NDArray[np.int64]) -> tuple[int, int]:
        """Return the numbers of labelled samples and of samples whose item is in the list (N, K)."""
        hits = (answers == labels_N[:, None]).any(1) & (labels_N != UNLABELLED)
        return int((labels_N != UNLABELLED).sum()), int(hits.sum())

    def weakness(self, quality: float, labels_N: NDArray[np.int64], where: str) -> str | None:
        """Explain how a hit rate falls short of a list of the most frequent items, or return None.

        Such a list, the same for all, is the baseline of the literature ("Pop"); it knows no history.
        """
        counts = np.sort(np.bincount(labels_N[labels_N != UNLABELLED]))[::-1]
        if len(counts) <= self._first:
            return None  # Any list has them all.
        popular = float(counts[: self._first].sum() / counts.sum())
        if quality > popular:
            return None
        return (
            f"{self.accuracy} {quality:.3f} on {where}; a list of the {self._first} most frequent items "
            f"has {popular:.3f}, so more was expected"
        )

    def compare(  # type: ignore[override]
        self, outputs_NC: Tensor, labels_N: Tensor, teacher_NC: Tensor | None = None
    ) -> RankingFigures:
        """Return NDCG, HR and MRR of outputs (N, C), and agreement with and KL to a teacher's."""
        usual = compare(outputs_NC, torch.full_like(labels_N, UNLABELLED), teacher_NC)
        figures: dict[str, float | None] = {
            "agreement": usual.agreement,
            "kl_to_teacher": usual.kl_to_teacher,
        }
        known = labels_N != UNLABELLED
        if bool(known.any()):
            scores, labels = outputs_NC[known], labels_N[known]
            rank = ranks(scores, labels).double()
            listed = (rank <= self._first).double()
            figures |= {
                "ndcg": float((listed / torch.log2(1 + rank)).mean()),
                "hr": float(listed.mean()),
                "mrr": float((1 / rank).mean()),
                "nll": float(F.cross_entropy(scores, labels, reduction="none").double().mean()),
            }
        return RankingFigures(first=self._first, **figures)

    def calibrate(
        self, validation: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]
    ) -> dict[str, float | None]:
        """Return no figures: a temperature changes no rank."""
        return {}

    def details(
        self, outputs_NC: Tensor, labels_N: Tensor, classes: Sequence[str]
    ) -> dict[str, list[dict[str, Any]]]:
        """Return no tables: most items are the next one of few users."""
        return {}


def ranks(scores_NC: Tensor, labels_N: Tensor) -> Tensor:
    """Return the rank (N,) int64 of each label among C scores, 1 for the highest; ties count against it.

    >>> ranks(torch.tensor([[1.0, 5.0, 1.0]]), torch.tensor([0])).tolist()
    [3]
    """
    return (scores_NC >= scores_NC.gather(1, labels_N[:, None])).sum(1)


NEXT_ITEM = NextItem()
