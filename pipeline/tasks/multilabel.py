"""Many labels: a model gives each of C tags a probability of its own, a sigmoid of its output.

A sample's labels are (C,) int8: 1 where the tag applies, 0 where it does not, -1 where nobody said. Unknown
entries count nowhere. This module owns the rule of codecs, the gate for poor teachers, and the figures, all
in float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pipeline.codecs.fidelity import Fidelity
from pipeline.codecs.rule import Measures
from pipeline.samples.label_forms import LabelKind, is_known
from pipeline.samples.samples import UNLABELLED
from pipeline.tasks.class_figures import ClassFigures
from pipeline.tasks.classes import least_top1
from pipeline.tasks.task import Column, UsualTask

# Thresholds of a probability that `calibrate` tries.
_THRESHOLDS = tuple(n / 100 for n in range(1, 100))


@dataclass(frozen=True, slots=True, kw_only=True)
class TagFigures:
    """Figures of one model on one split; None if one cannot be computed.

    Args:
        map: mean over tags of the average precision: of a tag's ranking of the samples, the mean precision
            at its positives. Tags without a positive sample do not count.
        auroc_macro: mean over tags of the probability that a positive sample ranks above a negative one;
            ties count half. Tags without both do not count.
        auroc_micro: the same for the ranking of all (sample, tag) pairs together.
        f1: 2 TP / (2 TP + FP + FN) of all pairs, at the threshold 0.5.
        nll: mean binary cross-entropy of the known labels, in nats.
        agreement: share of pairs on which the model and its teacher are on the same side of 0.5.
        kl_to_teacher: KL(teacher || model) in nats, the sum over tags of the Bernoulli KL; mean over the
            samples.
    """

    map: float | None = None
    auroc_macro: float | None = None
    auroc_micro: float | None = None
    f1: float | None = None
    nll: float | None = None
    agreement: float | None = None
    kl_to_teacher: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """Return the figures as plain values."""
        return asdict(self)

    @property
    def followed(self) -> Mapping[str, float | None]:
        """The figures against the labels that show the training's progress."""
        return {"map": self.map, "nll": self.nll}

    @property
    def headline(self) -> str:
        """The mean average precision in words, or nothing."""
        return "" if self.map is None else f"mAP {self.map:.4f}"

    def __str__(self) -> str:
        return "" if self.nll is None else f"{self.headline} nll {self.nll:.4f}".lstrip()

    @property
    def score(self) -> tuple[float, float] | None:
        """Mean average precision, then likelihood."""
        return None if self.map is None or self.nll is None else (self.map, -self.nll)


class Multilabel(UsualTask):
    """The task of one sigmoid per tag, registered under the name `multilabel`."""

    name = "multilabel"
    labels: tuple[LabelKind, ...] = ("tags",)
    supervised: str | None = "bce"
    # KL(teacher || decoded) in nats of all tags together, and whether every tag stays on its side of 0.5.
    measures = Measures(divergences=("kl_bernoulli",), agreement="tags", link="sigmoid")
    accuracy = "mAP"
    columns = (
        Column(name="map", title="mAP", form="share"),
        Column(name="auroc_macro", title="AUROC, macro", form="share"),
        Column(name="auroc_micro", title="AUROC, micro", form="share"),
        Column(name="f1", title="F1 at 0.5", form="share"),
        Column(name="nll", title="NLL", form="nats"),
        Column(name="agreement", title="agreement with teacher", form="share"),
        Column(name="kl_to_teacher", title="KL to teacher", form="nats"),
    )
    mended: tuple[Column, ...] = (
        Column(name="threshold", title="threshold", form="number"),
        Column(name="f1_calibrated", title="F1 at the threshold", form="share"),
    )
    against_teacher = ("agreement", "kl_to_teacher")
    costs = (
        Column(name="kl_bernoulli_mean", title="KL over all tags, mean", form="small"),
        Column(name="kl_bernoulli_p99", title="KL over all tags, 99th percentile", form="small"),
        Column(name="tags_agreement", title="rows with the same tags", form="share"),
    )

    def diverge(self, outputs_BC: Tensor, decoded_BC: Tensor) -> Tensor:
        """Return KL(teacher || decoded) in nats: (B, 1) float64, the sum over tags of the Bernoulli KL."""
        return bernoulli_kl(outputs_BC.double(), decoded_BC.double()).sum(1, keepdim=True)

    def agree(self, outputs_BC: Tensor, decoded_BC: Tensor) -> Tensor:
        """Return (B,) bool: whether every tag is on the same side of 0.5."""
        return ((outputs_BC > 0) == (decoded_BC > 0)).all(1)

    def answers(self, outputs_BC: Tensor) -> Tensor:
        """Return nothing of a row (B, 0): a ranking of samples has no right answer per sample."""
        return outputs_BC[:, :0]

    def tally(self, answers: NDArray[Any], labels_N: NDArray[Any]) -> tuple[int, None]:
        """Return the number of samples with a known tag."""
        return int(is_known(labels_N).sum()), None

    def quality(self, outputs_NC: Tensor, labels_N: NDArray[Any]) -> float | None:
        """Return the mean average precision."""
        return self.compare(outputs_NC, torch.from_numpy(labels_N).to(outputs_NC.device)).map

    def weakness(self, quality: float, labels_N: NDArray[Any], where: str) -> str | None:
        """Explain how a mean average precision falls short; a random ranking has the share of positives."""
        known, positive = (labels_N != UNLABELLED).sum(0), (labels_N == 1).sum(0)
        chance = float((positive[positive > 0] / known[positive > 0]).mean())
        expected = least_top1(chance)
        if quality >= expected:
            return None
        return (
            f"mAP {quality:.3f} on {where}; a random ranking has {chance:.3f}, so at least {expected:.3f} "
            "was expected"
        )

    def compare(self, outputs_NC: Tensor, labels_N: Tensor, teacher_NC: Tensor | None = None) -> TagFigures:
        """Return the figures of logits (N, C) from labels (N, C) and teacher logits (N, C)."""
        scores, known = outputs_NC.double(), labels_N != UNLABELLED
        figures: dict[str, float | None] = {}
        if bool(known.any()):
            positive = labels_N == 1
            each = [_ranked(scores[k, c], positive[k, c]) for c, k in enumerate(known.T)]
            figures |= {
                "map": _mean([precision for precision, _ in each]),
                "auroc_macro": _mean([area for _, area in each]),
                "auroc_micro": _ranked(scores[known], positive[known])[1],
                "f1": _f1(scores[known] > 0, positive[known]),
                "nll": float(F.binary_cross_entropy_with_logits(scores[known], positive[known].double())),
            }
        if teacher_NC is not None and len(scores):
            teacher = teacher_NC.to(scores)
            figures |= {
                "agreement": float(((teacher > 0) == (scores > 0)).double().mean()),
                "kl_to_teacher": float(bernoulli_kl(teacher, scores).sum(1).mean()),
            }
        return TagFigures(**figures)

    def calibrate(
        self, validation: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]
    ) -> dict[str, float | None]:
        """Return the threshold with the best F1 on validation logits, and the test logits' F1 at it."""
        (scores, positive), (others, truth) = (_known_pairs(*split) for split in (validation, test))
        if not bool(positive.any()):
            return dict.fromkeys(column.name for column in self.mended)
        found = [(_f1(scores.sigmoid() > t, positive) or 0.0, -abs(t - 0.5), t) for t in _THRESHOLDS]
        best = max(found)[2]
        return {"threshold": best, "f1_calibrated": _f1(others.sigmoid() > best, truth)}

    def details(
        self, outputs_NC: Tensor, labels_N: Tensor, classes: Sequence[str]
    ) -> dict[str, list[dict[str, Any]]]:
        """Return recall and precision of each tag at the threshold 0.5; empty without labels."""
        if not bool((labels_N != UNLABELLED).any()):
            return {"classes": [], "confusions": []}
        said, truth = (outputs_NC > 0) & (labels_N != UNLABELLED), labels_N == 1
        counts = [values.sum(0).tolist() for values in (said & truth, truth, said)]
        figures = [
            ClassFigures(
                name=name, support=n, recall=hits / n if n else None, precision=hits / k if k else None
            )
            for name, hits, n, k in zip(classes, *counts, strict=True)
        ]
        return {"classes": [asdict(one) for one in figures], "confusions": []}

    def describe(self, fidelity: Fidelity) -> str:
        """Describe a codec's cost in one line."""
        (name,) = self.measures.divergences
        return (
            f"KL(teacher || cached) {fidelity.mean(name):.1e} over all tags (99th percentile "
            f"{fidelity.divergences[name].p99:.1e}), every tag kept in {fidelity.agreed:.4f} of the rows"
        )


MULTILABEL = Multilabel()


def bernoulli_kl(teacher: Tensor, model: Tensor) -> Tensor:
    """Return KL(Bernoulli of teacher || Bernoulli of model) in nats of each pair of logits, at least 0."""
    # sigmoid(t) (log sigmoid(t) - log sigmoid(m)) + sigmoid(-t) (log sigmoid(-t) - log sigmoid(-m))
    sides = ((teacher, model), (-teacher, -model))
    terms = [t.sigmoid() * (F.logsigmoid(t) - F.logsigmoid(m)) for t, m in sides]
    return torch.stack(terms).sum(0).clamp(min=0)


def _ranked(scores_N: Tensor, positive_N: Tensor) -> tuple[float | None, float | None]:
    """Return average precision and AUROC of scores; None where positives, or negatives, lack.

    Tied scores are one step of the ranking, so the order of the samples changes nothing.
    """
    n_positive = int(positive_N.sum())
    if not n_positive:
        return None, None
    _, rank, count = torch.unique(scores_N, return_inverse=True, return_counts=True)
    # (R,) for each distinct score, from the highest: its positives, and the sums up to it.
    hits = torch.zeros(len(count), dtype=torch.float64, device=rank.device)
    hits.index_add_(0, rank, positive_N.double())
    hits, count = hits.flip(0), count.flip(0).double()
    found, seen = hits.cumsum(0), count.cumsum(0)
    precision = float((hits * found / seen).sum() / n_positive)
    n_negative = len(scores_N) - n_positive
    if not n_negative:
        return precision, None
    # A negative loses against the positives above it, and half against those tied with it.
    lost = ((count - hits) * (found - hits / 2)).sum()
    return precision, float(lost / (n_positive * n_negative))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _f1(said: Tensor, truth: Tensor) -> float | None:
    hits, total = int((said & truth).sum()), int(said.sum()) + int(truth.sum())
    return 2 * hits / total if total else None


def _known_pairs(outputs_NC: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    known = labels_N != UNLABELLED
    return outputs_NC.double()[known], labels_N[known] == 1


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
