"""Losses of penultimate features, each added to `kd` of the logits.

The fourth argument of each loss is a `Features`. If the loss needs a projection, the features are already
projected by the modules below, which are trained with the student and then discarded. D is the number of
features: Ds of the student, Dt of the teacher, E of a common embedding.
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

# Avoids a division by zero if all features of a batch are equal.
_SMALL = 1e-12
# Two samples coincide if their squared distance is below this share of the sum of their squared lengths.
_COINCIDENT = 1e-12


@dataclass(frozen=True, slots=True)
class Features:
    """The inputs of both networks' last layers for a batch.

    Args:
        student: (B, Ds), with gradients.
        teacher: (B, Dt) of the same views.
        negatives: (K, Dt), the teacher's features of other samples' views, any number; None for none.
        negative_labels: (K,) int64 labels of the negatives, or -1; None if unknown.
        centres: (C, Dt), the teacher's mean features per class; None if no loss needs them.
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

    The student's embedding of a sample is contrasted with the teacher's of other samples, from the batch
    and the negatives. The teacher's is contrasted with the student's of other samples in the batch. The
    authors draw both from a memory of past embeddings; a cache has the teacher's of the current view, exact
    and in any number.

    Args:
        student: (B, C) logits.
        labels: (B,) int64 class indices, or -1; or (B, C) shares. Samples of one class are no negatives of
            each other; if images are mixed, only the sample itself is no negative.
        teacher: (B, C) logits.
        features: embeddings of length 1: student and teacher (B, E), negatives (K, E) or None.
        feature_weight: of the contrasts, >= 0.
        contrast_temperature: of the similarities of embeddings, > 0.
        temperature, ce_weight, kd_weight: of `kd`.

    Source: Tian, Krishnan and Isola, arXiv 1910.10699; the defaults are from the authors' code.

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
        features: student (B, Ds) and teacher (B, Dt), unprojected; the widths may differ.
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
    """`kd` + feature_weight `to_centres`: centre loss with the teacher's class means as centres.

    Args:
        student: (B, C) logits.
        labels: (B,) int64 class indices, or -1; or (B, C) shares of at most two classes.
        teacher: (B, C) logits.
        features: student (B, Dt), projected to the teacher's width, and centres (C, Dt).
        feature_weight: >= 0; the squared distance has the scale of the teacher's features.
        temperature, ce_weight, kd_weight: of `kd`.

    Raises:
        ConfigError: there are no centres.

    Source: Wen et al., A Discriminative Feature Learning Approach for Deep Face Recognition, ECCV 2016,
        equation 2 and the default; the teacher's class means as centres: Wang et al., arXiv 2305.17007.

    """
    if features.centres is None:
        raise ConfigError(
            "loss 'centre' needs centres, the teacher's mean features per class (C, Dt); pass them as "
            "Features(centres=...)"
        )
    logits = kd(student, labels, teacher, temperature=temperature, ce_weight=ce_weight, kd_weight=kd_weight)
    return logits + feature_weight * to_centres(features.student, labels, features.centres)


@in_single_precision
def contrast(anchors: Tensor, candidates: Tensor, negative: Tensor, *, temperature: float) -> Tensor:
    """-log h(a_i, c_i) - sum over negatives j of log(1 - h(a_i, c_j)), mean over the B anchors.

    h(a, c) = e / (e + N m) with e = exp(a . c / temperature), N the anchor's number of negatives and m the
    mean of e over all negatives, without a gradient. The paper has e / (e + N / M) for M samples. Its
    authors' code first divides e by its sum over all M, estimated as M times the mean in the first batch.
    So M cancels; here each batch has its own m. An anchor without negatives adds 0.

    Args:
        anchors: (B, E).
        candidates: (B + K, E), the anchors' samples first.
        negative: (B, B + K) bool, whether a candidate is a negative of the anchor.
        temperature: > 0.
    """
    # (B, B + K); the diagonal of the first B columns has the positive pairs.
    scores = anchors @ candidates.T / temperature
    # In logs, with noise = log (N m): h = e / (e + N m) = sigmoid(score - noise), and 1 - h is the sigmoid
    # of its negative. exp(score) alone overflows at a temperature of 0.01.
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

    Mean over all B^2 ordered pairs, including equal ones, as in the authors' code, whose weight assumes it.

    Args:
        student: (B, Ds).
        teacher: (B, Dt).
    """
    return F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher))


@in_single_precision
def angles(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss of the cosines of the angles in all triangles of samples.

    Mean over all B^3 ordered triples, including degenerate ones, as in the authors' code. Memory: a few
    times B^3 numbers.

    Args:
        student: (B, Ds).
        teacher: (B, Dt).
    """
    return F.smooth_l1_loss(_cosines(student), _cosines(teacher))


@in_single_precision
def to_centres(features: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    """Half the squared distance of each sample's features to its class centre.

    Sum over the features, mean over the batch; an unlabelled sample adds 0 and counts in the mean.

    Args:
        features: (B, D).
        labels: (B,) int64 class indices, or -1; or (B, C) shares of at most two classes, which weigh the
            distances.
        centres: (C, D).
    """
    each = [
        share * (features - centres[classes]).square().sum(1) for classes, share in named_classes(labels)
    ]
    return 0.5 * torch.stack(each).sum(0).mean()


def _negative_pairs(labels: Tensor, features: Features) -> Tensor:
    """Return (B, B + K) bool: whether a candidate is a different sample of a different class."""
    # B = 3 with labels [0, 1, -1], K = 2 with labels [0, -1]; 1 is a negative pair:
    #   0 1 1 | 0 1     sample 0: not itself, nor the negative of its class
    #   1 0 1 | 1 1
    #   1 1 0 | 1 1     unlabelled: any other sample
    extra = 0 if features.negatives is None else len(features.negatives)
    other = ~torch.eye(len(labels), len(labels) + extra, dtype=torch.bool, device=labels.device)
    if labels.is_floating_point():
        return other
    theirs = features.negative_labels
    theirs = labels.new_full((extra,), UNLABELLED) if theirs is None else theirs
    same = labels[:, None] == torch.cat([labels, theirs])
    return other & ~(same & (labels != UNLABELLED)[:, None])


def _relative_distances(features: Tensor) -> Tensor:
    # Places 0, 1 and 3 on a line: distances 1, 2 and 3, whose mean over the 6 ordered pairs is 2. So
    # the row of the first sample is [0, 0.5, 1.5].
    # Not by matrix products, which lose small distances to rounding.
    apart = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    pairs = max(1, len(features) * (len(features) - 1))
    return apart / (apart.sum() / pairs).clamp(min=_SMALL)


def _cosines(features: Tensor) -> Tensor:
    """Return the cosine of the angle at j between i and k, (B, B, B) of j, i, k; 0 if a side has length 0.

    Computed from inner products, because the side vectors would take D times as long. In float64, because
    small results are differences of large products. Samples nearer than a millionth of their length are
    taken as one.
    """
    centred = features.double() - features.detach().double().mean(0)
    inner = centred @ centred.T
    squares = inner.diagonal()
    total = squares[:, None] + squares
    apart = total - 2 * inner
    are_two = apart > _COINCIDENT * total
    scale = torch.where(are_two, torch.where(are_two, apart, 1).rsqrt(), 0)
    # (x_i - x_j) . (x_k - x_j) = (|x_j|^2 - x_i x_j) - x_j x_k + x_i x_k, at [j, i, k].
    along = (squares[:, None] - inner)[:, :, None] - inner[:, None] + inner
    return (along * scale[:, :, None] * scale[:, None]).to(features.dtype)


class ContrastProjection(nn.Module):
    """Map both networks' features to embeddings (B, E) of length 1, by one linear layer each.

    Args:
        student_dim: Ds.
        teacher_dim: Dt.
        embedding_dim: E; the default is from arXiv 1910.10699.
    """

    def __init__(self, student_dim: int, teacher_dim: int, embedding_dim: int = 128) -> None:
        super().__init__()
        self.student = nn.Linear(student_dim, embedding_dim)
        self.teacher = nn.Linear(teacher_dim, embedding_dim)

    def forward(self, features: Features) -> Features:
        """Return the features with embeddings of student, teacher and negatives."""
        negatives = features.negatives
        return replace(
            features,
            student=_embed(self.student, features.student),
            teacher=_embed(self.teacher, features.teacher),
            negatives=None if negatives is None else _embed(self.teacher, negatives),
        )


class CentreProjection(nn.Module):
    """Map the student's features to the teacher's width: a linear layer, or the identity if equal.

    Args:
        student_dim: Ds.
        teacher_dim: Dt.
    """

    def __init__(self, student_dim: int, teacher_dim: int) -> None:
        super().__init__()
        same = student_dim == teacher_dim
        self.student = nn.Identity() if same else nn.Linear(student_dim, teacher_dim)

    def forward(self, features: Features) -> Features:
        """Return the features with the student's as (B, Dt)."""
        return replace(features, student=self.student(features.student))


def _embed(layer: nn.Linear, features: Tensor) -> Tensor:
    return F.normalize(layer(features), dim=1)
