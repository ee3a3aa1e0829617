"""Losses where their values are known otherwise: limits, identities, torch's own."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from pipeline.losses import dist, dkd, hard, kd, kd_ls, make_loss, mse, nkd, scratch, soft_ce, wttm
from tests.pipeline.losses.batches import (
    BATCH,
    CLASSES,
    HALF,
    LABELS,
    NONE,
    STUDENT,
    TEACHER,
    loss_of,
)

SURE = torch.arange(BATCH) % 3
# Its softmax is one-hot in double precision.
ONE_HOT = 1e4 * torch.eye(CLASSES, dtype=torch.float64)[SURE]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_is_torchs_divergence(temperature):
    log_student, teacher = (
        F.log_softmax(STUDENT / temperature, dim=1),
        F.softmax(TEACHER / temperature, dim=1),
    )
    soft = torch.nn.KLDivLoss(reduction="batchmean")(log_student, teacher) * temperature**2
    expected = 0.1 * F.cross_entropy(STUDENT, LABELS) + 0.9 * soft
    torch.testing.assert_close(kd(STUDENT, LABELS, TEACHER, temperature=temperature), expected)


def test_scratch_is_torchs_cross_entropy():
    torch.testing.assert_close(scratch(STUDENT, LABELS), F.cross_entropy(STUDENT, LABELS))


@pytest.mark.parametrize("name", ["kd", "soft_ce", "mse", "dkd", "dist", "kd_ls", "wsld"])
@pytest.mark.parametrize("labels", [LABELS, HALF], ids=["all", "half"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it(name, labels):
    student = TEACHER.clone().requires_grad_()
    settings = {} if name == "soft_ce" else {"ce_weight": 0}
    loss = loss_of(name, **settings)(student, labels, TEACHER)
    loss.backward()
    # The 1e-8 in the denominator of dist counts where columns hardly deviate.
    near = 1e-4 if name == "dist" else 1e-9
    assert float(student.grad.abs().max()) < near
    # Soft cross-entropies keep the teacher's entropy.
    assert name in ("soft_ce", "wsld") or float(loss.detach()) == pytest.approx(0, abs=near)


def test_wttm_wants_the_teachers_distribution_raised_to_the_power():
    student = (0.2 * TEACHER).requires_grad_()
    loss = wttm(student, LABELS, TEACHER, gamma=0.2, ce_weight=0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-12)
    assert float(student.grad.abs().max()) < 1e-12


def test_wttm_without_a_power_is_kd_at_temperature_one():
    found = wttm(STUDENT, LABELS, TEACHER, gamma=1, kd_weight=3)
    expected = kd(STUDENT, LABELS, TEACHER, temperature=1, ce_weight=1, kd_weight=3)
    torch.testing.assert_close(found, expected)


def test_the_limit_of_high_temperatures_is_half_the_squared_difference_of_logits():
    hot = kd(STUDENT, LABELS, TEACHER, temperature=1e4, ce_weight=0, kd_weight=1)
    assert float(hot) == pytest.approx(0.5 * float(mse(STUDENT, LABELS, TEACHER)), rel=1e-3)


def test_soft_ce_is_kd_but_for_the_teachers_entropy():
    student = STUDENT.clone().requires_grad_()
    (soft,) = torch.autograd.grad(soft_ce(student, LABELS, TEACHER, temperature=3), student)
    divergence = kd(student, LABELS, TEACHER, temperature=3, ce_weight=0, kd_weight=1)
    torch.testing.assert_close(soft, *torch.autograd.grad(divergence, student))


@pytest.mark.parametrize(
    "loss",
    [
        lambda s, y, t: kd(s, y, t, temperature=1, ce_weight=0, kd_weight=1),
        lambda s, y, t: hard(s, y, t, ce_weight=0, kd_weight=1),
        lambda s, y, t: wttm(s, y, t, ce_weight=0, kd_weight=1),
        lambda s, y, t: dkd(s, SURE, t, temperature=1, beta=0, ce_weight=0),
        lambda s, y, t: nkd(s, SURE, t, gamma=0, ce_weight=0),
        soft_ce,
    ],
    ids=["kd", "hard", "wttm", "dkd", "nkd", "soft_ce"],
)
def test_a_teacher_that_is_sure_is_a_label(loss):
    torch.testing.assert_close(loss(STUDENT, NONE, ONE_HOT), scratch(STUDENT, SURE))


def test_kd_comes_apart_into_target_and_others():
    """What dkd starts from: KL = KL(b_t || b_s) + (1 - t_y) KL(t' || s')."""
    for row in range(BATCH):
        sample = STUDENT[row : row + 1], LABELS[row : row + 1], TEACHER[row : row + 1]
        rest = 1 - float(F.softmax(sample[2] / 4, dim=1)[0, sample[1]])
        whole = kd(*sample, ce_weight=0, kd_weight=1)
        torch.testing.assert_close(dkd(*sample, alpha=1, beta=rest, ce_weight=0), whole)


def test_dkd_keeps_the_others_of_a_teacher_that_is_sure():
    """1 - p_y is 1e-44 here; taken from 1, nothing would be left of it."""
    teacher = torch.tensor([[101.0, 0.0, 1.0, 2.0]])
    student = torch.tensor([[100.0, 2.0, 1.0, 0.0]])
    others = kd(student[:, 1:], NONE[:1], teacher[:, 1:], temperature=1, ce_weight=0, kd_weight=1)
    found = dkd(student, LABELS[:1], teacher, temperature=1, alpha=0, beta=1, ce_weight=0)
    torch.testing.assert_close(found, others)


@pytest.mark.parametrize("loss", [kd_ls, dist], ids=["kd_ls", "dist"])
def test_scale_and_shift_that_the_student_may_choose_for_itself(loss):
    """kd_ls standardises logits; dist correlates probabilities."""
    if loss is kd_ls:
        found = kd_ls(3 * STUDENT + 2, NONE, 0.5 * TEACHER - 1)
        torch.testing.assert_close(found, kd_ls(STUDENT, NONE, TEACHER), rtol=1e-6, atol=0)
        return
    uncertain = 0.5 * F.softmax(TEACHER, dim=1) + 0.5 / CLASSES
    found = dist(uncertain.log(), NONE, TEACHER, temperature=1)
    assert float(found) == pytest.approx(0, abs=1e-6)


def test_the_columns_of_a_batch_of_one_are_not_correlated():
    one = STUDENT[:1].clone().requires_grad_()
    columns = dist(one, LABELS[:1], TEACHER[:1], temperature=1, ce_weight=0, inter_weight=0)
    columns.backward()
    assert float(columns.detach()) == pytest.approx(2)
    assert not one.grad.any()


def test_the_gradient_of_kd_is_the_error_of_the_softened_probabilities():
    student = STUDENT.clone().requires_grad_()
    kd(student, LABELS, TEACHER, temperature=4, ce_weight=0, kd_weight=1).backward()
    error = F.softmax(STUDENT / 4, dim=1) - F.softmax(TEACHER / 4, dim=1)
    torch.testing.assert_close(student.grad, error * 4 / BATCH)


def test_uniform_students_cost_the_logarithm_of_the_number_of_classes():
    assert float(scratch(torch.zeros(BATCH, CLASSES), LABELS)) == pytest.approx(math.log(CLASSES))


@pytest.mark.parametrize("name", ["kd", "soft_ce", "dkd", "nkd", "wsld", "dist", "kd_ls"])
@pytest.mark.parametrize("temperature", [1e-3, 0.05, 21, 1000])
def test_at_the_ends_of_the_range_single_precision_gives_what_double_gives(name, temperature):
    loss = make_loss(name, {"temperature": temperature})
    found, gradients = [], []
    for dtype in (torch.float32, torch.float64):
        student = STUDENT.to(dtype, copy=True).requires_grad_()
        value = loss(student, LABELS, TEACHER.to(dtype))
        (gradient,) = torch.autograd.grad(value, student)
        assert value.dtype == gradient.dtype == dtype
        found.append(value.detach().double())
        gradients.append(gradient.double())
    torch.testing.assert_close(*found, rtol=1e-4, atol=0)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3 * float(gradients[1].abs().max()))
