"""Losses of logits: of labels, of the teacher's whole distribution, and of relations between samples.

Those of the labels alone are the baselines, and the hard-label term of all others. For those of relations
not each probability matters, but how they go together over classes and samples. s and t are the softmax of
student and teacher, s_T and t_T those of logits divided by T.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.losses.settings import Exponent, Smoothing, Temperature, Weight, in_single_precision
from pipeline.samples.samples import UNLABELLED

# Keeps rows of equal logits from a division by zero; the value of the authors of kd_ls.
_SMALL = 1e-7
# Keeps constant rows and columns from a division by zero; the value of the authors.
_LEAST_NORM = 1e-8


@in_single_precision
def scratch(student: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Tensor:
    """Cross-entropy with the labels, -log s_y: the baseline without a teacher.

    Sum over the classes, mean over the batch; a sample without a label adds 0 and is counted.

    Args:
        student: (B, C) logits.
        labels: (B,) int64 class indices, or -1; or (B, C) shares.
        teacher: not used.

    """
    return cross_entropy(student, labels).mean()


@in_single_precision
def label_smoothing(
    student: Tensor, labels: Tensor, teacher: Tensor | None = None, *, smoothing: Smoothing = 0.1
) -> Tensor:
    """Cross-entropy with (1 - smoothing) on the label and smoothing / C on every class.

    Sum over the classes, mean over the batch; a sample without a label adds 0 and is counted.

    Args:
        student: (B, C) logits.
        labels: (B,) int64 class indices, or -1; or (B, C) shares.
        teacher: not used.
        smoothing: in [0, 1).

    Source: Szegedy et al., arXiv 1512.00567, section 7.

    """
    return cross_entropy(student, labels, smoothing).mean()


def cross_entropy(student: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return each sample's cross-entropy (B,) with its label, 0 where it has none.

    Args:
        student: (B, C) logits.
        labels: (B,) int64 class indices, or -1; or (B, C) shares, what is missing to 1 being unlabelled.
        smoothing: share that all classes have evenly.
    """
    if not labels.is_floating_point():
        return F.cross_entropy(
            student, labels, ignore_index=UNLABELLED, label_smoothing=smoothing, reduction="none"
        )
    known = labels.sum(1, keepdim=True)
    shares = labels * (1 - smoothing) + known * smoothing / labels.shape[1]
    return -(shares * F.log_softmax(student, dim=1)).sum(1)


@in_single_precision
def kd(
    student: Tensor,
    labels: Tensor,
    teacher: Tensor,
    *,
    temperature: Temperature = 4.0,
    ce_weight: Weight = 0.1,
    kd_weight: Weight = 0.9,
) -> Tensor:
    """ce_weight CE(y) + kd_weight T^2 KL(t_T || s_T): knowledge distillation.

    Sum over the classes, mean over the batch: torch's `batchmean`. T^2 keeps the size of the gradient.
    The defaults are those of small images; for ImageNet T = 1 and 0.5 each are usual.

    Args:
        student: (B, C) logits.
        labels: (B,) int64 class indices, or -1; or (B, C) shares.
        teacher: (B, C) logits.
        temperature: T > 0.
        ce_weight: of the hard labels, >= 0.
        kd_weight: of the soft labels, >= 0.

    Source: Hinton, Vinyals and Dean, arXiv 1503.02531, section 2.

    """
    soft = _softened_divergence(student, teacher, temperature)
    return ce_weight * cross_entropy(student, labels).mean() + kd_weight * soft.mean()


@in_single_precision
def soft_ce(student: Tensor, labels: Tensor, teacher: Tensor, *, temperature: Temperature = 1.0) -> Tensor:
    """-T^2 sum over c of t_T,c log s_T,c: the teacher's labels alone, as in function matching.

    Sum over the classes, mean over the batch. It is `kd` without hard labels but for the entropy of the
    teacher, which has no gradient.

    Args:
        student: (B, C) logits.
        labels: not used: there is no hard-label term.
        teacher: (B, C) logits.
        temperature: T > 0.

    Source: Beyer et al., arXiv 2106.05237, who mix images aggressively.

    """
    return soft_cross_entropy(student, teacher, temperature).mean()


@in_single_precision
def hard(
    student: Tensor,
    labels: Tensor,
    teacher: Tensor,
    *,
    ce_weight: Weight = 0.5,
    kd_weight: Weight = 0.5,
) -> Tensor:
    """ce_weight CE(y) + kd_weight CE(argmax of the teacher): hard-label distillation.

    Sum over the classes, mean over the batch.

    Args:
        student: (B, C) logits.
        labels: (B,) int64 class indices, or -1; or (B, C) shares.
        teacher: (B, C) logits; among equal ones the first class counts.
        ce_weight: of the labels, >= 0.
        kd_weight: of the teacher's decisions, >= 0.

    Source: Touvron et al., arXiv 2012.12877, equation 3.

    """
    decided = cross_entropy(student, teacher.argmax(1))
    return ce_weight * cross_entropy(student, labels).mean() + kd_weight * decided.mean()


@in_single_precision
def mse(
    student: Tensor,
    labels: Tensor,
    teacher: Tensor,
    *,
    ce_weight: Weight = 0.0,
    kd_weight: Weight = 1.0,
) -> Tensor:
    """ce_weight CE(y) + kd_weight mean over c of (z_s,c - z_t,c)^2 of logits z centred in each row.

    Mean over the classes, other than all else here, as in the authors' code, and over the batch. Rows are
    centred since a cached logit is known up to a constant a row, which no softmax sees; with it, cached and
    online labels give the same loss. It is twice the limit of T^2 KL(t_T || s_T) for T to infinity.

    Args:
        student: (B, C) logits.
        labels: (B,) int64 class indices, or -1; or (B, C) shares.
        teacher: (B, C) logits.
        ce_weight: of the hard labels, >= 0.
        kd_weight: of the difference of the logits, >= 0.

    Source: Kim et al., arXiv 2105.08919, whose best students have no hard-label term.

    """
    apart = (student - teacher) - (student - teacher).mean(1, keepdim=True)
    return ce_weight * cross_entropy(student, labels).mean() + kd_weight * apart.square().mean()


@in_single_precision
def kd_ls(
    student: Tensor,
    labels: Tensor,
    teacher: Tensor,
    *,
    temperature: Temperature = 2.0,
    ce_weight: Weight = 0.1,
    kd_weight: Weight = 9.0,
) -> Tensor:
    """`kd` of standardised logits: each row minus its mean, divided by its standard deviation.

    Sum over the classes, mean over the batch. The hard-label term sees the logits as they are. The
    deviation is the sample's (C - 1), with 1e-7 added, as in the authors' code. The scale of the logits is
    free, and the nearer a student's are to equal ones, the steeper is the gradient: a last layer that
    starts at zero gets some 10^7 times that of `kd`.

    Args:
        student: (B, C) logits.
        labels: (B,) int64 class indices, or -1; or (B, C) shares.
        teacher: (B, C) logits.
        temperature: T > 0 of the standardised logits.
        ce_weight: of the hard labels, >= 0.
        kd_weight: of the soft labels, >= 0.

    Source: Sun et al., arXiv 2403.01427, and the authors' code.

    """
    soft = _softened_divergence(_standardised(student), _standardised(teacher), temperature)
    return ce_weight * cross_entropy(student, labels).mean() + kd_weight * soft.mean()


@in_single_precision
def wttm(
    student: Tensor,
    labels: Tensor,
    teacher: Tensor,
    *,
    gamma: Exponent = 0.2,
    ce_weight: Weight = 1.0,
    kd_weight: Weight = 4.0,
) -> Tensor:
    """ce_weight CE(y) + kd_weight U KL(q || s), q = t^gamma / U, U = sum over c of t_c^gamma.

    Weighted transformed teacher matching: the teacher's distribution is raised to a power, which is a
    temperature of 1 / gamma, the student's is not, and samples of a smooth teacher count more. No T^2.
    Sum over the classes, mean over the batch.

    Args:
        student: (B, C) logits.
        labels: (B,) int64 class indices, or -1; or (B, C) shares.
        teacher: (B, C) logits.
        gamma: the power, in (0, 1].
        ce_weight: of the hard labels, >= 0.
        kd_weight: of the soft labels, beta in the paper, >= 0.

    Source: Zheng and Yang, arXiv 2402.11148, section 4; its authors choose gamma 0.1 or 0.2 and beta for
        each pair of models. The defaults are those of the example in their code.

    """
    powers = gamma * F.log_softmax(teacher, dim=1)
    log_total = powers.logsumexp(1, keepdim=True)
    divergence = kl_divergence(powers - log_total, F.log_softmax(student, dim=1))
    soft = log_total[:, 0].exp() * divergence
    return ce_weight * cross_entropy(student, labels).mean() + kd_weight * soft.mean()


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p || q) of each row (B,) in nats, from log-probabilities (B, C)."""
    return F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(1)


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return -T^2 sum over c of t_T,c log s_T,c of each row (B,), from logits (B, C)."""
    log_student = F.log_softmax(student / temperature, dim=1)
    return -(temperature**2) * (F.softmax(teacher / temperature, dim=1) * log_student).sum(1)


def _softened_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    log_student, log_teacher = (F.log_softmax(z / temperature, dim=1) for z in (student, teacher))
    return temperature**2 * kl_divergence(log_teacher, log_student)


def _standardised(logits: Tensor) -> Tensor:
    return (logits - logits.mean(1, keepdim=True)) / (logits.std(1, keepdim=True) + _SMALL)


@in_single_precision
def dist(
    student: Tensor,
    labels: Tensor,
    teacher: Tensor,
    *,
    temperature: Temperature = 4.0,
    ce_weight: Weight = 1.0,
    inter_weight: Weight = 2.0,
    intra_weight: Weight = 2.0,
) -> Tensor:
    """ce_weight CE(y) + T^2 [inter_weight (1 - mean r of rows) + intra_weight (1 - mean r of columns)].

    r is Pearson's correlation of the student's probabilities s_T with the teacher's t_T: of a row, over the
    classes of a sample; of a column, over the batch for a class. So the loss of a batch is not the mean of
    its parts: `accumulate` changes it. The columns of a batch of one are constant: r = 0, no gradient. As
    with `kd_ls`, students whose logits are nearly equal have steep gradients.

    Args:
        student: (B, C) logits.
        labels: (B,) int64 class indices, or -1; or (B, C) shares.
        teacher: (B, C) logits.
        temperature: T > 0; 1 for ImageNet.
        ce_weight: of the hard labels, >= 0.
        inter_weight: of the relations between classes, beta in the paper, >= 0.
        intra_weight: of those within a class, gamma in the paper, >= 0.

    Source: Huang et al., arXiv 2205.10536, section 3; T^2 and 1e-8 as in the authors' code.

    """
    s, t = (F.softmax(logits / temperature, dim=1) for logits in (student, teacher))
    inter, intra = 1 - _correlation(s, t, dim=1).mean(), 1 - _correlation(s, t, dim=0).mean()
    supervised = ce_weight * cross_entropy(student, labels).mean()
    return supervised + temperature**2 * (inter_weight * inter + intra_weight * intra)


def _correlation(a: Tensor, b: Tensor, *, dim: int) -> Tensor:
    """Return Pearson's correlations of two matrices along a dimension."""
    a, b = (values - values.mean(dim, keepdim=True) for values in (a, b))
    norms = torch.linalg.vector_norm(a, dim=dim) * torch.linalg.vector_norm(b, dim=dim)
    correlations: Tensor = (a * b).sum(dim) / (norms + _LEAST_NORM)
    return correlations
