"""Embeddings: a model gives each sample a vector; its direction and its length count, no class does.

Labels are optional. Where samples have one class each, nearest neighbours and a linear probe say how well
the vectors tell the classes apart. A student may have a width of its own. All figures are computed in
float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pipeline.codecs.fidelity import Fidelity
from pipeline.codecs.rule import Measures
from pipeline.samples.label_forms import LabelKind, is_known
from pipeline.samples.samples import UNLABELLED
from pipeline.tasks.classes import CLASSES
from pipeline.tasks.task import Column, UsualTask

# A decoded vector agrees if the cosine of its angle to the original is at least this.
_SAME_DIRECTION = 0.99
# Weighted nearest neighbours, as in Wu et al., arXiv 1805.01978, section 3.4.
_NEIGHBOURS, _VOTE_TEMPERATURE = 20, 0.07
# Of the probe's penalty, per sample, for features of variance 1.
_RIDGE = 0.1
# All pairs are compared: at most this many samples.
_MOST_COMPARED = 10_000
_AT_ONCE = 1024
_SMALL = 1e-30


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingFigures:
    """Figures of one model on one split; None if one cannot be computed.

    Args:
        knn: share of labelled samples whose class the 20 nearest others have, by cosine: their votes are
            weighted by exp(cosine / 0.07). Of more than 10,000 samples, at most that many are compared,
            evenly spread.
        cosine: mean cosine between the model's and its teacher's vectors; None if their widths differ.
        cka: linear centred kernel alignment of both, 0 to 1, of any widths (Kornblith et al., arXiv
            1905.00414).
    """

    knn: float | None = None
    cosine: float | None = None
    cka: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """Return the figures as plain values."""
        return asdict(self)

    @property
    def followed(self) -> Mapping[str, float | None]:
        """The figure against the labels that shows the training's progress."""
        return {"knn": self.knn}

    @property
    def headline(self) -> str:
        """The share of right neighbours in words, or nothing."""
        return "" if self.knn is None else f"kNN {self.knn:.4f}"

    def __str__(self) -> str:
        return self.headline

    @property
    def score(self) -> tuple[float, float] | None:
        """The share of right neighbours."""
        return None if self.knn is None else (self.knn, 0.0)


class Embedding(UsualTask):
    """The task of one vector per sample, registered under the name `embedding`."""

    name = "embedding"
    labels: tuple[LabelKind, ...] = ("index", "tags", "numbers")
    names_outputs = False
    supervised: str | None = None
    # 1 - cosine and squared length of the error over that of the vector; a cosine of at least 0.99.
    measures = Measures(
        divergences=("cosine_distance", "squared_error"), agreement="direction", link="identity"
    )
    accuracy = "kNN"
    columns = (
        Column(name="knn", title="kNN", form="share"),
        Column(name="cka", title="CKA with teacher", form="share"),
        Column(name="cosine", title="cosine to teacher", form="share", is_optional=True),
    )
    mended: tuple[Column, ...] = (Column(name="probe", title="linear probe", form="share"),)
    against_teacher = ("cka", "cosine")
    costs = (
        Column(name="cosine_distance_mean", title="1 − cosine, mean", form="small"),
        Column(name="cosine_distance_p99", title="1 − cosine, 99th percentile", form="small"),
        Column(name="squared_error_mean", title="squared relative error, mean", form="small"),
        Column(name="direction_agreement", title="rows with a cosine of 0.99", form="share"),
    )

    def diverge(self, outputs_BC: Tensor, decoded_BC: Tensor) -> Tensor:
        """Return (B, 2) float64: 1 - cosine, and squared error over squared length."""
        vector, decoded = outputs_BC.double(), decoded_BC.double()
        length = vector.square().sum(1).clamp(min=_SMALL)
        error = (vector - decoded).square().sum(1) / length
        return torch.stack([(1 - F.cosine_similarity(vector, decoded, dim=1)).clamp(min=0), error], 1)

    def agree(self, outputs_BC: Tensor, decoded_BC: Tensor) -> Tensor:
        """Return (B,) bool: whether both have nearly the same direction."""
        cosine = F.cosine_similarity(outputs_BC.double(), decoded_BC.double(), dim=1)
        return cosine >= _SAME_DIRECTION

    def answers(self, outputs_BC: Tensor) -> Tensor:
        """Return nothing of a row (B, 0): a vector is neither right nor wrong."""
        return outputs_BC[:, :0]

    def tally(self, answers: NDArray[Any], labels_N: NDArray[Any]) -> tuple[int, None]:
        """Return the number of labelled samples."""
        return int(is_known(labels_N).sum()), None

    def quality(self, outputs_NC: Tensor, labels_N: NDArray[Any]) -> float | None:
        """Return the share of samples whose neighbours have their class."""
        return self.compare(outputs_NC, torch.from_numpy(labels_N).to(outputs_NC.device)).knn

    def weakness(self, quality: float, labels_N: NDArray[Any], where: str) -> str | None:
        """Explain how the neighbours fall short of the largest class; see `Classes.weakness`."""
        found = CLASSES.weakness(quality, labels_N, where)
        return None if found is None else found.replace("top-1", self.accuracy)

    def compare(
        self, outputs_NC: Tensor, labels_N: Tensor, teacher_NC: Tensor | None = None
    ) -> EmbeddingFigures:
        """Return the figures of vectors (N, D) from labels, and a teacher's vectors (N, D')."""
        vectors, figures = outputs_NC.double(), dict[str, float | None]()
        known, classes = _classes(labels_N)
        if int(known.sum()) > 1:
            rows = torch.nonzero(known)[:, 0]
            some = rows[:: -(-len(rows) // _MOST_COMPARED)]
            figures["knn"] = _neighbours(vectors[some], classes[some])
        if teacher_NC is not None and len(vectors) > 1:
            teacher = teacher_NC.to(vectors)
            figures["cka"] = linear_cka(vectors, teacher)
            if teacher.shape == vectors.shape:
                figures["cosine"] = float(F.cosine_similarity(vectors, teacher, dim=1).mean())
        return EmbeddingFigures(**figures)

    def calibrate(
        self, validation: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]
    ) -> dict[str, float | None]:
        """Return the share of test samples that a linear probe of the validation vectors names rightly."""
        (seen, taught), (unseen, asked) = ((x.double(), *_classes(y)[1:]) for x, y in (validation, test))
        if not bool((taught != UNLABELLED).any()) or not bool((asked != UNLABELLED).any()):
            return {"probe": None}
        seen, unseen = seen[taught != UNLABELLED], unseen[asked != UNLABELLED]
        said = _probe(seen, taught[taught != UNLABELLED], unseen)
        return {"probe": float((said == asked[asked != UNLABELLED]).double().mean())}

    def describe(self, fidelity: Fidelity) -> str:
        """Describe a codec's cost in one line."""
        cosine, error = self.measures.divergences
        return (
            f"1 - cosine {fidelity.mean(cosine):.1e} (99th percentile "
            f"{fidelity.divergences[cosine].p99:.1e}), squared error {fidelity.mean(error):.1e} of the "
            f"squared length, cosine at least 0.99 in {fidelity.agreed:.4f} of the rows"
        )


EMBEDDING = Embedding()


def linear_cka(a_ND: Tensor, b_NE: Tensor) -> float:
    """Return the linear centred kernel alignment of two sets of vectors; 0 if one is constant."""
    a, b = (values - values.mean(0) for values in (a_ND, b_NE))
    norms = torch.linalg.matrix_norm(a.T @ a) * torch.linalg.matrix_norm(b.T @ b)
    return float(torch.linalg.matrix_norm(a.T @ b).square() / norms) if bool(norms > 0) else 0.0


def _classes(labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return (N,) bool, whether a sample has a class, and the classes (N,); tags and numbers are none."""
    if labels_N.ndim > 1:
        labels_N = torch.full_like(labels_N[:, 0], UNLABELLED, dtype=torch.int64)
    return labels_N != UNLABELLED, labels_N


def _neighbours(vectors_ND: Tensor, classes_N: Tensor) -> float:
    """Return the share of samples that the vote of their nearest others names rightly."""
    unit, count = F.normalize(vectors_ND, dim=1), min(_NEIGHBOURS, len(vectors_ND) - 1)
    right, n_classes = 0, int(classes_N.max()) + 1
    for start in range(0, len(unit), _AT_ONCE):
        rows = torch.arange(start, min(start + _AT_ONCE, len(unit)), device=unit.device)
        cosines = unit[rows] @ unit.T
        cosines[torch.arange(len(rows), device=unit.device), rows] = -torch.inf
        near = cosines.topk(count, 1)
        # exp(cosine - highest): the same vote without overflow.
        votes = ((near.values - near.values[:, :1]) / _VOTE_TEMPERATURE).exp()
        total = votes.new_zeros(len(rows), n_classes).scatter_add_(1, classes_N[near.indices], votes)
        right += int((total.argmax(1) == classes_N[rows]).sum())
    return right / len(unit)


def _probe(seen_ND: Tensor, classes_N: Tensor, unseen_MD: Tensor) -> Tensor:
    """Return the classes (M,) that a ridge regression onto one-hot labels gives other vectors."""
    mean, deviation = seen_ND.mean(0), seen_ND.std(0, correction=0)
    seen, unseen = ((x - mean) / torch.where(deviation > 0, deviation, 1.0) for x in (seen_ND, unseen_MD))
    target = F.one_hot(classes_N).to(seen)
    target_mean = target.mean(0)
    identity = torch.eye(seen.shape[1], dtype=seen.dtype, device=seen.device)
    gram = seen.T @ seen / len(seen) + _RIDGE * identity
    weight = torch.linalg.solve(gram, seen.T @ (target - target_mean) / len(seen))
    said: Tensor = unseen @ weight + target_mean
    return said.argmax(1)
