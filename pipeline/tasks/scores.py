"""Scores: a model gives each sample one or more numbers, e.g. relevances, ratings or measurements.

Labels are (C,) float32, or NaN for an unlabelled sample. The cost of a codec is relative to the variance of
the teacher's outputs, which the pilot of a dump measures and the store keeps. All figures are computed in
float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Self

import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.codecs.fidelity import Fidelity
from pipeline.codecs.rule import Measures
from pipeline.samples.label_forms import LabelKind, is_known
from pipeline.tasks.task import Column, UsualTask, require_measures

# A decoded output agrees if it is within this share of its standard deviation.
_CLOSE = 0.1
# Below this rank correlation with the labels, a teacher is refused.
_LEAST_RHO = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreFigures:
    """Figures of one model on one split; None if one cannot be computed.

    Args:
        spearman: rank correlation with the labels, -1 to 1; mean over the outputs. Tied values have their
            mean rank. Constant outputs have 0.
        rmse: root mean square error, in the labels' unit.
        r2: 1 - squared error over variance of the labels; mean over the outputs.
        ndcg: mean over samples of the normalised discounted cumulative gain of a sample's outputs, as a
            ranking of its C items with labels of at least 0; None for one output.
        agreement: rank correlation with the teacher's outputs; mean over the outputs.
        error_to_teacher: squared difference from the teacher over its variance; mean over the outputs.
    """

    spearman: float | None = None
    rmse: float | None = None
    r2: float | None = None
    ndcg: float | None = None
    agreement: float | None = None
    error_to_teacher: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """Return the figures as plain values."""
        return asdict(self)

    @property
    def followed(self) -> Mapping[str, float | None]:
        """The figures against the labels that show the training's progress."""
        return {"spearman": self.spearman, "rmse": self.rmse}

    @property
    def headline(self) -> str:
        """The rank correlation in words, or nothing."""
        return "" if self.spearman is None else f"Spearman {self.spearman:.4f}"

    def __str__(self) -> str:
        return "" if self.rmse is None else f"{self.headline} RMSE {self.rmse:.4g}"

    @property
    def score(self) -> tuple[float, float] | None:
        """Rank correlation, then error."""
        return None if self.spearman is None or self.rmse is None else (self.spearman, -self.rmse)


class Scores(UsualTask):
    """The task of numbers, registered under the name `scores`.

    Args:
        scales: (C,) variance of each output, above 0, as a pilot or a store told it; () before.
    """

    name = "scores"
    labels: tuple[LabelKind, ...] = ("numbers",)
    supervised: str | None = "squared_error"
    needs_pilot = True
    accuracy = "Spearman"
    columns = (
        Column(name="spearman", title="Spearman", form="share"),
        Column(name="rmse", title="RMSE", form="number"),
        Column(name="r2", title="R²", form="number"),
        Column(name="ndcg", title="NDCG", form="share", is_optional=True),
        Column(name="agreement", title="Spearman with teacher", form="share"),
        Column(name="error_to_teacher", title="error to teacher", form="number"),
    )
    against_teacher = ("agreement", "error_to_teacher")
    costs = (
        Column(name="squared_error_mean", title="squared error over variance, mean", form="small"),
        Column(
            name="squared_error_p99", title="squared error over variance, 99th percentile", form="small"
        ),
        Column(name="close_agreement", title="rows within a tenth deviation", form="share"),
    )

    def __init__(self, scales: tuple[float, ...] = ()) -> None:
        # Squared error over variance, mean over the outputs; all outputs within a tenth deviation.
        self.measures = Measures(
            divergences=("squared_error",), agreement="close", link="identity", scales=scales
        )
        # Copied once per device: a copy in each batch would wait for that device.
        self._scales_on = cache(
            lambda device: torch.tensor(scales or [1.0], dtype=torch.float64).to(device)
        )

    def fitted(self, outputs_NC: Tensor) -> Self:
        """Return the task with the variances of a pilot's outputs."""
        variance = outputs_NC.double().var(0, correction=0)
        # An output that never changes has no error either, whatever its unit.
        return type(self)(tuple(torch.where(variance > 0, variance, 1.0).tolist()))

    def restored(self, measures: Measures) -> Self:
        """Return the task with the variances that a store keeps."""
        require_measures(self.measures, measures)
        return type(self)(measures.scales)

    def diverge(self, outputs_BC: Tensor, decoded_BC: Tensor) -> Tensor:
        """Return the squared error over the variance, mean over the outputs: (B, 1) float64."""
        return self._errors(outputs_BC, decoded_BC).mean(1, keepdim=True)

    def agree(self, outputs_BC: Tensor, decoded_BC: Tensor) -> Tensor:
        """Return (B,) bool: whether every output is within a tenth of its standard deviation."""
        return (self._errors(outputs_BC, decoded_BC) <= _CLOSE**2).all(1)

    def _errors(self, outputs_BC: Tensor, decoded_BC: Tensor) -> Tensor:
        errors = (outputs_BC.double() - decoded_BC.double()).square()
        return errors / self._scales_on(errors.device)

    def answers(self, outputs_BC: Tensor) -> Tensor:
        """Return nothing of a row (B, 0): a number is neither right nor wrong."""
        return outputs_BC[:, :0]

    def tally(self, answers: NDArray[Any], labels_N: NDArray[Any]) -> tuple[int, None]:
        """Return the number of labelled samples."""
        return int(is_known(labels_N).sum()), None

    def quality(self, outputs_NC: Tensor, labels_N: NDArray[Any]) -> float | None:
        """Return the rank correlation with the labels, 0 if it is negative."""
        found = self.compare(outputs_NC, torch.from_numpy(labels_N).to(outputs_NC.device)).spearman
        return None if found is None else max(0.0, found)

    def weakness(self, quality: float, labels_N: NDArray[Any], where: str) -> str | None:
        """Explain how a rank correlation falls short."""
        if quality >= _LEAST_RHO:
            return None
        return f"Spearman {quality:.3f} on {where}; at least {_LEAST_RHO} was expected"

    def compare(
        self, outputs_NC: Tensor, labels_N: Tensor, teacher_NC: Tensor | None = None
    ) -> ScoreFigures:
        """Return the figures of outputs (N, C) from labels (N, C) and a teacher's outputs (N, C)."""
        scores, known = outputs_NC.double(), labels_N.isfinite().all(1)
        figures: dict[str, float | None] = {}
        if int(known.sum()) > 1:
            ours, truth = scores[known], labels_N[known].double()
            error, variance = (ours - truth).square().mean(0), truth.var(0, correction=0)
            figures |= {
                "spearman": float(spearman(ours, truth).mean()),
                "rmse": float(error.mean().sqrt()),
                "r2": float((1 - error / variance).mean()) if bool((variance > 0).all()) else None,
                "ndcg": _ndcg(ours, truth),
            }
        if teacher_NC is not None and len(scores) > 1:
            teacher = teacher_NC.to(scores)
            error, variance = (scores - teacher).square().mean(0), teacher.var(0, correction=0)
            figures["agreement"] = float(spearman(scores, teacher).mean())
            if bool((variance > 0).all()):
                figures["error_to_teacher"] = float((error / variance).mean())
        return ScoreFigures(**figures)

    def describe(self, fidelity: Fidelity) -> str:
        """Describe a codec's cost in one line."""
        (name,) = self.measures.divergences
        return (
            f"squared error {fidelity.mean(name):.1e} of the variance (99th percentile "
            f"{fidelity.divergences[name].p99:.1e}), {fidelity.agreed:.4f} within a tenth of the deviation"
        )


SCORES = Scores()


def spearman(a_NC: Tensor, b_NC: Tensor) -> Tensor:
    """Return Spearman's rank correlation (C,) float64 of the columns; 0 for a constant column."""
    a, b = (_ranks(values) for values in (a_NC, b_NC))
    norms = torch.linalg.vector_norm(a, dim=0) * torch.linalg.vector_norm(b, dim=0)
    return torch.where(norms > 0, (a * b).sum(0) / torch.where(norms > 0, norms, 1.0), 0.0)


def _ranks(values_NC: Tensor) -> Tensor:
    """Return centred ranks (N, C) float64; tied values share the mean of their ranks."""
    ranks = []
    for column in values_NC.T:
        _, place, count = torch.unique(column, return_inverse=True, return_counts=True)
        # e.g. counts 2, 1 of sorted values: ranks 0 and 1 have the mean 0.5, rank 2 is alone.
        last = count.cumsum(0).double() - 1
        ranks.append((last - (count.double() - 1) / 2)[place] - (len(column) - 1) / 2)
    return torch.stack(ranks, 1)


def _ndcg(scores_NC: Tensor, gains_NC: Tensor) -> float | None:
    """Return the mean NDCG of the rows, a label being its gain; tied scores keep the order of the outputs.

    None for one output, negative labels, or without a row that has a gain.
    """
    if scores_NC.shape[1] < 2 or bool((gains_NC < 0).any()):
        return None
    places = torch.arange(scores_NC.shape[1], dtype=torch.float64, device=scores_NC.device)
    discount = (places + 2).log2().reciprocal()
    order = scores_NC.argsort(dim=1, descending=True, stable=True)
    gained = gains_NC.gather(1, order) @ discount
    best = gains_NC.sort(1, descending=True).values @ discount
    rows = best > 0
    return float((gained[rows] / best[rows]).mean()) if bool(rows.any()) else None
