"""Losses of logits: from labels, from the teacher's whole distribution, and from relations between samples.

Losses of labels alone are the baselines, and the hard-label term of all others. Losses of relations compare
not each probability, but the correlations over classes and samples. s and t are the softmax of student and
teacher, s_T and t_T the softmax of logits divided by T.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.losses.settings import Exponent, Smoothing, Temperature, Weight, in_single_precision
from pipeline.samples.samples import UNLABELLED

# Avoids a division by zero for rows of equal logits; the value of kd_ls's authors.
_SMALL = 1e-7
# Avoids a division by zero for constant rows and columns; the value of dist's authors.
_LEAST_NORM = 1e-8


@in_single_precision
def scratch(student: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Tensor:
    """Cross-entropy with the labels, -log s_y: the baseline without a teacher.

    Sum over the classes, mean over the batch; an unlabelled sample adds 0 and counts in the mean.

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

    Sum over the classes, mean over the batch; an unlabelled sample adds 0 and counts in the mean.

    Args:
        student: (B, C) logits.
        labels: (B,) int64 class indices, or -1; or (B, C) shares.
        teacher: not used.
        smoothing: in [0, 1).

    Source: Szegedy et al., arXiv 1512.00567, section 7.

    """
    return cross_entropy(student, labels, smoothing).mean()


def cross_entropy(student: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return each sample's cross-entropy (B,) with its label; 0 without a label.

    Args:
        student: (B, C) logits.
        labels: (B,) int64 class indices, or -1; or (B, C) shares, with the remainder to 1 unlabelled.
        smoothing: share that is spread evenly over all classes.
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

    Sum over the classes, mean over the batch: torch's `batchmean`. T^2 keeps the gradient's size. The
    defaults suit small images; for ImageNet, T = 1 and both weights 0.5 are usual.

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
    """-T^2 sum over c of t_T,c log s_T,c: only the teacher's labels, as in function matching.

    Sum over the classes, mean over the batch. It equals `kd` without hard labels, plus the teacher's
    entropy, which has no gradient.

    Args:
        student: (B, C) logits.
        labels: not used: there is no hard-label term.
        teacher: (B, C) logits.
        temperature: T > 0.

    Source: Beyer et al., arXiv 2106.05237, with aggressive mixing of images.

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
        teacher: (B, C) logits; the first of equal classes counts.
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

    Mean over the classes, unlike the other losses here, as in the authors' code; mean over the batch. Rows
    are centred because a cached logit is known only up to a constant per row, which a softmax ignores. With
    centring, cached and online labels give the same loss. It is twice the limit of T^2 KL(t_T || s_T) for T
    to infinity.

    Args:
        student: (B, C) logits.
        labels: (B,) int64 class indices, or -1; or (B, C) shares.
        teacher: (B, C) logits.
        ce_weight: of the hard labels, >= 0.
        kd_weight: of the difference of the logits, >= 0.

    Source: Kim et al., arXiv 2105.08919; their best students have no hard-label term.

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

    Sum over the classes, mean over the batch. The hard-label term uses the original logits. The deviation
    is the sample's (C - 1), plus 1e-7, as in the authors' code. The scale of the logits is free; the nearer
    a student's logits are to equal, the steeper the gradient. A last layer that starts at zero gets about
    10^7 times the gradient of `kd`.

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

    Weighted transformed teacher matching. The teacher's distribution is raised to a power, i.e. a
    temperature of 1 / gamma; the student's is not. Samples with a smooth teacher count more. No T^2. Sum
    over the classes, mean over the batch.

    Args:
        student: (B, C) logits.
        labels: (B,) int64 class indices, or -1; or (B, C) shares.
        teacher: (B, C) logits.
        gamma: the power, in (0, 1].
        ce_weight: of the hard labels, >= 0.
        kd_weight: of the soft labels, beta in the paper, >= 0.

    Source: Zheng and Yang, arXiv 2402.11148, section 4. Its authors choose gamma 0.1 or 0.2, and beta, for
        each pair of models. The defaults are from the example in their code.

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

    r is Pearson's correlation of the student's probabilities s_T with the teacher's t_T: of a row, over a
    sample's classes; of a column, over the batch for one class. The loss of a batch is therefore not the
    mean of its parts: `accumulate` changes it. In a batch of one, columns are constant: r = 0, no gradient.
    As with `kd_ls`, students with nearly equal logits have steep gradients.

    Args:
        student: (B, C) logits.
        labels: (B,) int64 class indices, or -1; or (B, C) shares.
        teacher: (B, C) logits.
        temperature: T > 0; 1 for ImageNet.
        ce_weight: of the hard labels, >= 0.
        inter_weight: of the relations between classes, beta in the paper, >= 0.
        intra_weight: of the relations within a class, gamma in the paper, >= 0.

    Source: Huang et al., arXiv 2205.10536, section 3; T^2 and 1e-8 as in the authors' code.

    """
    s, t = (F.softmax(logits / temperature, dim=1) for logits in (student, teacher))
    inter, intra = 1 - _correlation(s, t, dim=1).mean(), 1 - _correlation(s, t, dim=0).mean()
    supervised = ce_weight * cross_entropy(student, labels).mean()
    return supervised + temperature**2 * (inter_weight * inter + intra_weight * intra)


def _correlation(a: Tensor, b: Tensor, *, dim: int) -> Tensor:
    """Return Pearson's correlations of two matrices along `dim`."""
    a, b = (values - values.mean(dim, keepdim=True) for values in (a, b))
    norms = torch.linalg.vector_norm(a, dim=dim) * torch.linalg.vector_norm(b, dim=dim)
    correlations: Tensor = (a * b).sum(dim) / (norms + _LEAST_NORM)
    return correlations
