"""Losses of absolute outputs: sigmoids of many labels, embeddings, and scores.

Unlike a softmax's logits, these outputs have no free constant per row. Each loss is a mean over the outputs
and over the batch, so the number of outputs changes no weight. Where student and teacher have different
widths, the training loop maps the student's outputs by a linear layer. It is trained with the student and
then discarded.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.core.errors import ConfigError
from pipeline.losses.settings import Positive, Temperature, Weight, in_single_precision

# (student, target) to the terms of each output, (B, C).
Apart = Callable[[Tensor, Tensor], Tensor]


@in_single_precision
def bce(
    student: Tensor, labels: Tensor, teacher: Tensor | None = None, *, pos_weight: Positive = 1.0
) -> Tensor:
    """Binary cross-entropy with each tag: the baseline of many labels.

    Mean over the tags, mean over the batch; an unknown tag adds 0 and counts in both.

    Args:
        student: (B, C) logits.
        labels: (B, C) int8, 1, 0 or -1 for unknown; or float32 shares of mixed images, -1 for unknown.
        teacher: not used.
        pos_weight: factor on the term of tags that apply, more than 0; e.g. the ratio of absent to present
            tags of an unbalanced set.
    """
    return _binary_cross_entropy(student, labels, pos_weight).mean()


@in_single_precision
def binary_kd(
    student: Tensor,
    labels: Tensor,
    teacher: Tensor,
    *,
    temperature: Temperature = 1.0,
    ce_weight: Weight = 0.1,
    kd_weight: Weight = 0.9,
    pos_weight: Positive = 1.0,
) -> Tensor:
    """ce_weight BCE(y) + kd_weight T^2 KL(t_T || s_T) of each tag's Bernoulli distribution.

    Mean over the tags, mean over the batch. t_T and s_T are the sigmoids of the logits divided by T. With
    the teacher's entropy added, it is the binary cross-entropy with the teacher's probabilities.

    Args:
        student: (B, C) logits.
        labels: (B, C) int8, 1, 0 or -1 for unknown; or float32 shares of mixed images, -1 for unknown.
        teacher: (B, C) logits.
        temperature: T > 0.
        ce_weight: of the labels, >= 0.
        kd_weight: of the teacher, >= 0.
        pos_weight: of `bce`.

    Source: Schmid, Koutini and Widmer, arXiv 2211.04772: audio tagging, with T = 1 and these weights.
    """
    # KL of two Bernoulli distributions: p (log p - log q) of the tag, and the same of its absence, whose
    # logit is the negative one. logsigmoid is exact where log(sigmoid) would be log 0.
    s, t = student / temperature, teacher / temperature
    sides = ((t, s), (-t, -s))
    soft = torch.stack([a.sigmoid() * (F.logsigmoid(a) - F.logsigmoid(b)) for a, b in sides]).sum(0)
    supervised = _binary_cross_entropy(student, labels, pos_weight).mean() if ce_weight else 0.0
    return ce_weight * supervised + kd_weight * temperature**2 * soft.mean()


@in_single_precision
def squared_error(student: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Tensor:
    """Squared difference from the labels: the baseline of scores.

    Mean over the outputs, mean over the batch; an unlabelled sample adds 0 and counts in the mean.

    Args:
        student: (B, C) outputs.
        labels: (B, C) float32, NaN for unlabelled.
        teacher: not used.
    """
    return _to_labels(student, labels, lambda a, b: (a - b).square())


@in_single_precision
def l2(
    student: Tensor,
    labels: Tensor,
    teacher: Tensor,
    *,
    label_weight: Weight = 0.0,
    kd_weight: Weight = 1.0,
) -> Tensor:
    """label_weight (s - y)^2 + kd_weight (s - t)^2: squared differences of outputs.

    Mean over the outputs, mean over the batch.

    Args:
        student: (B, C) outputs.
        labels: (B, C) float32, NaN for unlabelled; anything if label_weight is 0.
        teacher: (B, C) outputs.
        label_weight: of the labels of scores, >= 0.
        kd_weight: of the teacher, >= 0.

    Source: Romero et al., arXiv 1412.6550, equation 3, with a linear layer where widths differ.
    """
    soft = kd_weight * (student - teacher).square().mean()
    if not label_weight:
        return soft
    return soft + label_weight * _to_labels(student, labels, lambda a, b: (a - b).square())


@in_single_precision
def smooth_l1(
    student: Tensor,
    labels: Tensor,
    teacher: Tensor,
    *,
    beta: Positive = 1.0,
    label_weight: Weight = 0.0,
    kd_weight: Weight = 1.0,
) -> Tensor:
    """`l2` with a Huber loss: d^2 / (2 beta) below beta, and |d| - beta / 2 above.

    Args:
        student: (B, C) outputs.
        labels: (B, C) float32, NaN for unlabelled; anything if label_weight is 0.
        teacher: (B, C) outputs.
        beta: the difference at which the loss becomes linear, more than 0.
        label_weight: of the labels of scores, >= 0.
        kd_weight: of the teacher, >= 0.

    Source: Ranzinger et al., arXiv 2312.06709, section 3.4, for features of foundation models.
    """
    soft = kd_weight * F.smooth_l1_loss(student, teacher, beta=beta)
    if not label_weight:
        return soft
    return soft + label_weight * _to_labels(
        student, labels, lambda a, b: F.smooth_l1_loss(a, b, beta=beta, reduction="none")
    )


@in_single_precision
def cosine(student: Tensor, labels: Tensor, teacher: Tensor, *, kd_weight: Weight = 1.0) -> Tensor:
    """kd_weight (1 - cos(s, t)): the angle between the vectors, whatever their lengths.

    Mean over the batch.

    Args:
        student: (B, D) vectors.
        labels: not used.
        teacher: (B, D) vectors.
        kd_weight: >= 0.

    Source: Ranzinger et al., arXiv 2312.06709, section 3.4.
    """
    return kd_weight * (1 - (_unit(student) * _unit(teacher)).sum(1)).mean()


@in_single_precision
def relational(student: Tensor, labels: Tensor, teacher: Tensor, *, kd_weight: Weight = 1.0) -> Tensor:
    """kd_weight mean over pairs i != j of (cos(s_i, s_j) - cos(t_i, t_j))^2: similarities between samples.

    The widths may differ, so it needs no projection. Samples of a batch are compared with each other:
    `accumulate` changes it. A batch of one has no pair and gives 0.

    Args:
        student: (B, Ds) vectors.
        labels: not used.
        teacher: (B, Dt) vectors.
        kd_weight: >= 0.

    Source: Tung and Mori, arXiv 1907.09682, with vectors of length 1 and without the diagonal.
    """
    # (B, B) cosines of each network; the widths Ds and Dt are gone.
    grams = [unit @ unit.T for unit in (_unit(student), _unit(teacher))]
    # The diagonal holds 1 in both, but for rounding and vectors of length 0, and is no pair.
    pairs = max(1, len(student) * (len(student) - 1))
    apart = (grams[0] - grams[1]).square()
    return kd_weight * (apart.sum() - apart.diagonal().sum()) / pairs


@in_single_precision
def codes(student: Tensor, labels: Tensor, teacher: Tensor, *, kd_weight: Weight = 1.0) -> Tensor:
    """kd_weight cross-entropy with the codewords of the teacher's vector, mean over its M codebooks.

    Mean over the batch. The student's vector is mapped to a logit for each codeword by the linear layer
    that is trained beside it, so its own width is free.

    Args:
        student: (B, M L) logits of the L codewords of each of M codebooks, codebook by codebook.
        labels: not used.
        teacher: (B, M) int64, the number of a codeword in each codebook, as `pq-M` and `rvq-M` store them.
        kd_weight: >= 0.

    Source: Guo et al., arXiv 2211.00508, section 3.2.
    """
    # (B, M L) -> (B, L, M): the classes of a cross-entropy are on axis 1.
    logits = student.view(len(student), teacher.shape[1], -1).transpose(1, 2)
    return kd_weight * F.cross_entropy(logits, teacher)


def _binary_cross_entropy(student: Tensor, labels: Tensor, pos_weight: float) -> Tensor:
    """Return the terms (B, C) of each tag; 0 for an unknown one."""
    if labels.shape != student.shape:
        raise ConfigError(
            f"a loss of many labels was given labels {tuple(labels.shape)} for outputs "
            f"{tuple(student.shape)}; expected one of 1, 0, -1 per tag; use task multilabel"
        )
    # Labels [1, 0, -1]: the terms are -w log p, -log (1 - p) and 0. Shares of mixed samples, e.g. 0.7, take
    # both terms in these shares.
    known, target = labels >= 0, labels.clamp(min=0).to(student.dtype)
    terms = -pos_weight * target * F.logsigmoid(student) - (1 - target) * F.logsigmoid(-student)
    return torch.where(known, terms, 0.0)


def _to_labels(student: Tensor, labels: Tensor, apart: Apart) -> Tensor:
    """Return the mean over outputs and batch of a difference from the labels; 0 for unlabelled samples."""
    if labels.shape != student.shape or not labels.is_floating_point():
        raise ConfigError(
            f"a loss of scores was given labels {tuple(labels.shape)} for outputs {tuple(student.shape)}; "
            "expected one number per output; use task scores, or set label_weight: 0"
        )
    # NaN is replaced before the difference, too: 0 * NaN in the backward pass would be NaN.
    known = labels.isfinite()
    return torch.where(known, apart(student, torch.where(known, labels, 0.0)), 0.0).mean()


def _unit(vectors_BD: Tensor) -> Tensor:
    """Return vectors of length 1, or 0; scaled first, so that no square overflows."""
    # E.g. (3e30, 4e30) is (0.75, 1) after scaling and (0.6, 0.8) at last; its squares would be infinite.
    largest = vectors_BD.detach().abs().amax(1, keepdim=True)
    return F.normalize(vectors_BD / torch.where(largest > 0, largest, 1.0), dim=1)
