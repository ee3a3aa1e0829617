"""Losses of penultimate features, each added to `kd` of the logits.

Each takes a `Features` as its fourth argument, with student's and teacher's features already projected,
by the maps below where a loss needs one: these are trained with the student, and then thrown
away. D is the number of features: Ds of the student, Dt of the teacher, E of an embedding of both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core.errors import ConfigError
from pipeline.losses.logits import kd
from pipeline.losses.settings import Temperature, Weight, in_single_precision
from pipeline.losses.target_classes import named_classes
from pipeline.samples.samples import UNLABELLED

# Keeps a batch whose features are all the same from a division by zero.
_SMALL = 1e-12
# Two samples are one where their squared distance is a smaller share than this of their squared lengths.
_COINCIDENT = 1e-12


@dataclass(frozen=True, slots=True)
class Features:
    """What the networks made of a batch before their last layers.

    Args:
        student: (B, Ds), with gradients.
        teacher: (B, Dt) of the same views.
        negatives: (K, Dt), the teacher's of views of other samples, as many as one likes; None for none.
        negative_labels: (K,) int64 of those, or -1; None where they are not known.
        centres: (C, Dt), the teacher's mean of each class; None where no loss asks for them.
    """

    student: Tensor
    teacher: Tensor
    negatives: Tensor | None = None
    negative_labels: Tensor | None = None
    centres: Tensor | None = None


def crd(
    student: Tensor,
    labels: Tensor,
    teacher: Tensor,
    features: Features,
    *,
    feature_weight: Weight = 0.8,
    contrast_temperature: Temperature = 0.07,
    temperature: Temperature = 4.0,
    ce_weight: Weight = 1.0,
    kd_weight: Weight = 0.0,
) -> Tensor:
    """`kd` + feature_weight (`contrast` of the student + `contrast` of the teacher): contrastive.

    A student's embedding is told from the teacher's of other samples, those of the batch and the
    negatives; a teacher's from the students' of the others of the batch. The authors draw both from a
    memory of past embeddings; a cache has the teacher's of the current view, exact and without number.

    Args:
        student: (B, C) logits.
        labels: (B,) int64 class indices, or -1; or (B, C) shares. Samples of one class are no negatives of
            each other; where images are mixed, only a sample itself is none.
        teacher: (B, C) logits.
        features: embeddings of length 1: student and teacher (B, E), negatives (K, E) or None.
        feature_weight: of the contrasts, >= 0.
        contrast_temperature: of the similarities of embeddings, > 0.
        temperature, ce_weight, kd_weight: of `kd`.

    Source: Tian, Krishnan and Isola, arXiv 1910.10699, and the authors' code, where the defaults are from.

    """
    pairs = _negative_pairs(labels, features)
    anchors, own, scale = features.student, features.teacher, contrast_temperature
    candidates = own if features.negatives is None else torch.cat([own, features.negatives])
    contrasts = contrast(anchors, candidates, pairs, temperature=scale)
    contrasts = contrasts + contrast(own, anchors, pairs[:, : len(own)], temperature=scale)
    logits = kd(student, labels, teacher, temperature=temperature, ce_weight=ce_weight, kd_weight=kd_weight)
    return logits + feature_weight * contrasts


def rkd(
    student: Tensor,
    labels: Tensor,
    teacher: Tensor,
    features: Features,
    *,
    distance_weight: Weight = 25.0,
    angle_weight: Weight = 50.0,
    temperature: Temperature = 4.0,
    ce_weight: Weight = 1.0,
    kd_weight: Weight = 0.0,
) -> Tensor:
    """`kd` + distance_weight `distances` + angle_weight `angles`: relational distillation.

    Args:
        student: (B, C) logits.
        labels: (B,) int64 class indices, or -1; or (B, C) shares.
        teacher: (B, C) logits.
        features: student (B, Ds) and teacher (B, Dt), as they are; the widths may differ.
        distance_weight: >= 0.
        angle_weight: >= 0.
        temperature, ce_weight, kd_weight: of `kd`.

    Source: Park et al., arXiv 1904.05068, section 3.2.

    """
    logits = kd(student, labels, teacher, temperature=temperature, ce_weight=ce_weight, kd_weight=kd_weight)
    apart = distance_weight * distances(features.student, features.teacher)
    return logits + apart + angle_weight * angles(features.student, features.teacher)


def centre(
    student: Tensor,
    labels: Tensor,
    teacher: Tensor,
    features: Features,
    *,
    feature_weight: Weight = 0.003,
    temperature: Temperature = 4.0,
    ce_weight: Weight = 1.0,
    kd_weight: Weight = 0.0,
) -> Tensor:
    """`kd` + feature_weight `to_centres`: centre loss, with the teacher's class means for centres.

    Args:
        student: (B, C) logits.
        labels: (B,) int64 class indices, or -1; or (B, C) shares of at most two classes.
        teacher: (B, C) logits.
        features: student (B, Dt), projected to the teacher's width, and centres (C, Dt).
        feature_weight: >= 0; the size of the squared distance is that of the teacher's features.
        temperature, ce_weight, kd_weight: of `kd`.

    Raises:
        ConfigError: there are no centres.

    Source: Wen et al., A Discriminative Feature Learning Approach for Deep Face Recognition, ECCV 2016,
        equation 2 and the default; the teacher's class means for centres: Wang et al., arXiv 2305.17007.

    """
    if features.centres is None:
        raise ConfigError(
            "loss centre was given no centres; expected the teacher's mean features of each class (C, Dt); "
            "give them as Features(centres=...)"
        )
    logits = kd(student, labels, teacher, temperature=temperature, ce_weight=ce_weight, kd_weight=kd_weight)
    return logits + feature_weight * to_centres(features.student, labels, features.centres)


@in_single_precision
def contrast(anchors: Tensor, candidates: Tensor, negative: Tensor, *, temperature: float) -> Tensor:
    """-log h(a_i, c_i) - sum over negatives j of log(1 - h(a_i, c_j)), mean over the B anchors.

    h(a, c) = e / (e + N m) with e = exp(a . c / temperature), N the anchor's number of negatives and m the
    mean of e over all negatives, without a gradient. The paper has e / (e + N / M) for M samples; its
    authors' code first divides e by its sum over all M, estimated as M times the mean in the first batch.
    So M cancels; here each batch has its own m. An anchor without negatives has nothing to be told from: 0.

    Args:
        anchors: (B, E).
        candidates: (B + K, E), of the same samples first.
        negative: (B, B + K) whether a candidate is one.
        temperature: > 0.
    """
    scores = anchors @ candidates.T / temperature
    count = negative.sum(1).to(scores.dtype)
    with torch.no_grad():
        mean = scores.masked_fill(~negative, -torch.inf).flatten().logsumexp(0) - count.sum().log()
        noise = torch.where(count > 0, count.log() + mean, 0.0)
    own = F.logsigmoid(scores.diagonal() - noise) * (count > 0)
    others = (F.logsigmoid(noise[:, None] - scores) * negative).sum(1)
    return -(own + others).mean()


@in_single_precision
def distances(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss of the distances between samples, each network's divided by their mean.

    Mean over all B^2 ordered pairs, equal ones too, as in the authors' code, whose weight it is made for.

    Args:
        student: (B, Ds).
        teacher: (B, Dt).
    """
    return F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher))


@in_single_precision
def angles(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss of the cosines of the angles in all triangles of samples.

    Mean over all B^3 ordered triples, degenerate ones too, as in the authors' code. Takes memory for a
    few times B^3 numbers.

    Args:
        student: (B, Ds).
        teacher: (B, Dt).
    """
    return F.smooth_l1_loss(_cosines(student), _cosines(teacher))


@in_single_precision
def to_centres(features: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    """Half the squared distance of each sample's features to the centre of its class.

    Sum over the features, mean over the batch; a sample without a label adds 0 and is counted.

    Args:
        features: (B, D).
        labels: (B,) int64 class indices, or -1; or (B, C) shares of at most two classes, whose distances
            count by share.
        centres: (C, D).
    """
    each = [
        share * (features - centres[classes]).square().sum(1) for classes, share in named_classes(labels)
    ]
    return 0.5 * torch.stack(each).sum(0).mean()


def _negative_pairs(labels: Tensor, features: Features) -> Tensor:
    """Return which of the batch's samples and the negatives are others, of other classes (B, B + K)."""
    extra = 0 if features.negatives is None else len(features.negatives)
    other = ~torch.eye(len(labels), len(labels) + extra, dtype=torch.bool, device=labels.device)
    if labels.is_floating_point():
        return other
    theirs = features.negative_labels
    theirs = labels.new_full((extra,), UNLABELLED) if theirs is None else theirs
    same = labels[:, None] == torch.cat([labels, theirs])
    return other & ~(same & (labels != UNLABELLED)[:, None])


def _relative_distances(features: Tensor) -> Tensor:
    # Without matrix products, which lose the small distances to rounding.
    apart = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    pairs = max(1, len(features) * (len(features) - 1))
    return apart / (apart.sum() / pairs).clamp(min=_SMALL)


def _cosines(features: Tensor) -> Tensor:
    """Return the cosine of the angle at j between i and k, (B, B, B) of j, i, k; 0 where a side is none.

    From inner products, in float64, as differences of large ones are small; the sides themselves would take
    D times as long. Samples nearer than a millionth of their length are one.
    """
    centred = features.double() - features.detach().double().mean(0)
    inner = centred @ centred.T
    squares = inner.diagonal()
    total = squares[:, None] + squares
    apart = total - 2 * inner
    are_two = apart > _COINCIDENT * total
    scale = torch.where(are_two, torch.where(are_two, apart, 1).rsqrt(), 0)
    along = (squares[:, None] - inner)[:, :, None] - inner[:, None] + inner
    return (along * scale[:, :, None] * scale[:, None]).to(features.dtype)


class ContrastProjection(nn.Module):
    """Both networks' features to embeddings (B, E) of length 1: a linear layer each.

    Args:
        student_dim: Ds.
        teacher_dim: Dt.
        embedding_dim: E; the default is that of arXiv 1910.10699.
    """

    def __init__(self, student_dim: int, teacher_dim: int, embedding_dim: int = 128) -> None:
        super().__init__()
        self.student = nn.Linear(student_dim, embedding_dim)
        self.teacher = nn.Linear(teacher_dim, embedding_dim)

    def forward(self, features: Features) -> Features:
        """Return the features with student, teacher and negatives embedded."""
        negatives = features.negatives
        return replace(
            features,
            student=_embed(self.student, features.student),
            teacher=_embed(self.teacher, features.teacher),
            negatives=None if negatives is None else _embed(self.teacher, negatives),
        )


class CentreProjection(nn.Module):
    """The student's features to the teacher's width: a linear layer, or nothing where they are equal.

    Args:
        student_dim: Ds.
        teacher_dim: Dt.
    """

    def __init__(self, student_dim: int, teacher_dim: int) -> None:
        super().__init__()
        same = student_dim == teacher_dim
        self.student = nn.Identity() if same else nn.Linear(student_dim, teacher_dim)

    def forward(self, features: Features) -> Features:
        """Return the features with the student's (B, Dt)."""
        return replace(features, student=self.student(features.student))


def _embed(layer: nn.Linear, features: Tensor) -> Tensor:
    return F.normalize(layer(features), dim=1)
