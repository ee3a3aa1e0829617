"""Losses that divide the teacher's distribution at the label's class.

An unlabelled sample has no class to divide at. Its divided or weighted term stays whole, and the student
learns as with `kd`. A label of mixed images names two classes: each counts by its share, as in their
cross-entropy.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.core.errors import ConfigError
from pipeline.losses.logits import cross_entropy, kl_divergence, soft_cross_entropy
from pipeline.losses.settings import Temperature, Weight, in_single_precision
from pipeline.samples.samples import UNLABELLED

# Views mix at most two images.
_NAMED_AT_MOST = 2
# Avoids a division by zero if the teacher is certain of the label; the value of wsld's authors.
_SMALL = 1e-7


@in_single_precision
def dkd(
    student: Tensor,
    labels: Tensor,
    teacher: Tensor,
    *,
    temperature: Temperature = 4.0,
    alpha: Weight = 1.0,
    beta: Weight = 8.0,
    ce_weight: Weight = 1.0,
    kd_weight: Weight = 1.0,
) -> Tensor:
    """ce_weight CE(y) + kd_weight T^2 [alpha KL(b_t || b_s) + beta KL(t' || s')]: decoupled distillation.

    b = (p_y, 1 - p_y) is the label's class against all others; t' and s' are the distributions over the
    others; all at temperature T. Sum over the classes, mean over the batch. An unlabelled sample has
    kd_weight alpha T^2 KL(t_T || s_T), the value of the bracket for beta = alpha (1 - t_T,y).

    The authors' warm-up, kd_weight from 0 to 1 in the first 20 epochs, is the default of the table, not of
    this function. Their settings for ImageNet: beta 0.5, T 1, one epoch of warm-up.

    Args:
        student: (B, C) logits.
        labels: (B,) int64 class indices, or -1; or (B, C) shares of at most two classes.
        teacher: (B, C) logits.
        temperature: T > 0.
        alpha: of the label's class, >= 0.
        beta: of the other classes, >= 0.
        ce_weight: of the hard labels, >= 0.
        kd_weight: of the soft labels, >= 0.

    Source: Zhao et al., arXiv 2203.08679, equation 7; defaults from the authors' code.

    """
    softened = [F.log_softmax(logits / temperature, dim=1) for logits in (teacher, student)]

    def decoupled(target: Tensor) -> Tensor:
        (binary_t, others_t), (binary_s, others_s) = (_apart(log_p, target) for log_p in softened)
        return alpha * kl_divergence(binary_t, binary_s) + beta * kl_divergence(others_t, others_s)

    each = _by_class(labels, student, decoupled, alpha * kl_divergence(*softened))
    soft = temperature**2 * each.mean()
    return ce_weight * cross_entropy(student, labels).mean() + kd_weight * soft


@in_single_precision
def nkd(
    student: Tensor,
    labels: Tensor,
    teacher: Tensor,
    *,
    temperature: Temperature = 1.0,
    gamma: Weight = 1.5,
    ce_weight: Weight = 1.0,
    kd_weight: Weight = 1.0,
) -> Tensor:
    """ce_weight CE(y) - kd_weight [t_y log s_y + gamma T^2 sum over c != y of t'_c log s'_c]: normalised.

    t and s are the softmax of teacher and student, t' and s' those of the other classes at temperature T.
    Sum over the classes, mean over the batch. For an unlabelled sample, the undivided term replaces the
    bracket: kd_weight T^2 times the soft cross-entropy of all classes.

    Args:
        student: (B, C) logits.
        labels: (B,) int64 class indices, or -1; or (B, C) shares of at most two classes.
        teacher: (B, C) logits.
        temperature: T > 0, of the other classes.
        gamma: of the other classes, >= 0.
        ce_weight: of the hard labels, >= 0.
        kd_weight: of the soft labels, >= 0.

    Source: Yang et al., arXiv 2303.13005, section 3.1.

    """
    log_s, t = F.log_softmax(student, dim=1), F.softmax(teacher, dim=1)

    def normalised(target: Tensor) -> Tensor:
        of_target = -(t * log_s * target).sum(1)
        (_, others_t), (_, others_s) = (_apart(z / temperature, target) for z in (teacher, student))
        of_others = -(others_t.exp() * others_s).sum(1)
        return of_target + gamma * temperature**2 * of_others

    each = _by_class(labels, student, normalised, soft_cross_entropy(student, teacher, temperature))
    return ce_weight * cross_entropy(student, labels).mean() + kd_weight * each.mean()


@in_single_precision
def wsld(
    student: Tensor,
    labels: Tensor,
    teacher: Tensor,
    *,
    temperature: Temperature = 2.0,
    ce_weight: Weight = 1.0,
    kd_weight: Weight = 2.5,
) -> Tensor:
    """ce_weight CE(y) - kd_weight T^2 w sum over c of t_T,c log s_T,c: weighted soft labels.

    w = 1 - exp(-CE_s / CE_t), from the sample's cross-entropies with its label at T = 1, is a weight
    without a gradient: soft labels count less if the teacher errs more than the student. Sum over the
    classes, mean over the batch. An unlabelled sample has w = 1.

    Args:
        student: (B, C) logits.
        labels: (B,) int64 class indices, or -1; one class each, no shares: the cross-entropy with a mixed
            label measures how mixed the label is, not how well it is known.
        teacher: (B, C) logits.
        temperature: T > 0.
        ce_weight: of the hard labels, >= 0.
        kd_weight: of the soft labels, alpha in the paper, >= 0.

    Raises:
        ConfigError: labels are class shares.

    Source: Zhou et al., arXiv 2102.00650; T, alpha and 1e-7 beside CE_t from the authors' code.

    """
    if labels.is_floating_point():
        raise ConfigError(
            "loss 'wsld' got class shares, as for mixed samples; expected one class per sample; choose "
            "views without mixup and cutmix, or a different loss"
        )
    supervised = cross_entropy(student, labels)
    ratio = supervised.detach() / (cross_entropy(teacher, labels) + _SMALL)
    weight = torch.where(labels == UNLABELLED, 1.0, -torch.expm1(-ratio))
    soft = weight * soft_cross_entropy(student, teacher, temperature)
    return ce_weight * supervised.mean() + kd_weight * soft.mean()


def named_classes(labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the classes that labels name, and their shares: pairs of (B,) int64 and (B,).

    Args:
        labels: (B,) int64 class indices, or -1, whose share is 0; or (B, C) shares of at most two classes.
    """
    if not labels.is_floating_point():
        return [(labels.clamp(min=0), labels != UNLABELLED)]
    shares, classes = labels.topk(min(_NAMED_AT_MOST, labels.shape[1]), dim=1)
    return list(zip(classes.unbind(1), shares.unbind(1), strict=True))


def _by_class(
    labels: Tensor, student: Tensor, divided: Callable[[Tensor], Tensor], whole: Tensor
) -> Tensor:
    """Return each sample's loss (B,): `divided` per class that its label names, by share; else `whole`.

    Args:
        labels: (B,) int64 or (B, C) shares.
        student: (B, C) logits.
        divided: function from the target class (B, C), True at one class per row, to losses (B,).
        whole: (B,) losses without a target class.
    """
    every_class = torch.arange(student.shape[1], device=student.device)
    each, unlabelled = torch.zeros_like(whole), torch.ones_like(whole)
    for classes, share in named_classes(labels):
        each = each + share * divided(every_class == classes[:, None])
        unlabelled = unlabelled - share.to(whole.dtype)
    return each + unlabelled * whole


def _apart(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of the target or not (B, 2), and of the others (B, C), 0 at the target."""
    without = logits.masked_fill(target, -math.inf)
    sides = torch.stack([(logits * target).sum(1), without.logsumexp(1)], dim=1)
    return F.log_softmax(sides, dim=1), F.log_softmax(without, dim=1).masked_fill(target, 0.0)
