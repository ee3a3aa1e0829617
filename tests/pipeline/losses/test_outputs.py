"""Losses of absolute outputs: their formulas, and what holds for each of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from pipeline.core.errors import ConfigError
from pipeline.losses import (
    LOSSES,
    bce,
    binary_kd,
    cosine,
    l2,
    make_loss,
    relational,
    smooth_l1,
    squared_error,
)
from pipeline.losses.table import fill, require_outputs
from pipeline.tasks.classes import CLASSES
from pipeline.tasks.embedding import EMBEDDING
from pipeline.tasks.multilabel import MULTILABEL
from pipeline.tasks.scores import SCORES
from tests.pipeline.losses.batches import BATCH, STUDENT, TEACHER
from tests.pipeline.losses.batches import CLASSES as WIDTH

# Codewords take the place of outputs in the last one: see test_codes.py.
NAMES = [name for name, one in LOSSES.items() if "softmax" not in one.links and not one.reads_codes]
EVERY = pytest.mark.parametrize("name", NAMES)
TAGS = (torch.arange(BATCH * WIDTH).reshape(BATCH, WIDTH) % 3 - 1).to(torch.int8)
NUMBERS = torch.arange(BATCH * WIDTH, dtype=torch.float64).reshape(BATCH, WIDTH) / 10
NUMBERS[3] = math.nan


def loss_of(name: str):
    """Return a function of student and teacher, with labels that count where the loss has any."""
    weighs = {"label_weight": 0.5} if name in ("l2", "smooth_l1") else {}
    loss = fill(name, LOSSES[name], weighs)
    labels = TAGS if name in ("bce", "binary_kd") else NUMBERS
    return lambda student, teacher, rows=slice(None): loss(student, labels[rows], teacher)


def test_bce_is_torchs_where_all_tags_are_known():
    labels = (TAGS == 1).to(torch.int8)
    expected = F.binary_cross_entropy_with_logits(
        STUDENT, labels.double(), pos_weight=torch.full((WIDTH,), 3.0, dtype=torch.float64)
    )
    torch.testing.assert_close(bce(STUDENT, labels, pos_weight=3), expected)


def test_an_unknown_tag_adds_nothing_and_counts_in_the_mean():
    known = TAGS != -1
    terms = F.binary_cross_entropy_with_logits(STUDENT, (TAGS == 1).double(), reduction="none")
    torch.testing.assert_close(bce(STUDENT, TAGS), (terms * known).sum() / TAGS.numel())
    student = STUDENT.clone().requires_grad_()
    bce(student, TAGS).backward()
    assert torch.equal(student.grad != 0, known)


def test_binary_kd_is_the_divergence_of_bernoullis():
    found = binary_kd(STUDENT, TAGS, TEACHER, temperature=2, ce_weight=0, kd_weight=1)
    p, q = (TEACHER / 2).sigmoid(), (STUDENT / 2).sigmoid()
    kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    torch.testing.assert_close(found, 4 * kl.mean())
    both = binary_kd(STUDENT, TAGS, TEACHER, temperature=2, ce_weight=0.3, kd_weight=1)
    torch.testing.assert_close(both, found + 0.3 * bce(STUDENT, TAGS))


def test_differences_of_outputs():
    torch.testing.assert_close(l2(STUDENT, TAGS, TEACHER), F.mse_loss(STUDENT, TEACHER))
    found, expected = smooth_l1(STUDENT, TAGS, TEACHER, beta=2), F.smooth_l1_loss(STUDENT, TEACHER, beta=2)
    torch.testing.assert_close(found, expected)
    known = NUMBERS[:3], STUDENT[:3]
    torch.testing.assert_close(squared_error(known[1], known[0]), F.mse_loss(*known))
    # One of four samples has no label.
    torch.testing.assert_close(squared_error(STUDENT[:4], NUMBERS[:4]), F.mse_loss(*known) * 3 / 4)


def test_cosine_and_relations_ignore_lengths():
    expected = (1 - F.cosine_similarity(STUDENT, TEACHER, dim=1)).mean()
    torch.testing.assert_close(cosine(STUDENT, TAGS, TEACHER), expected)
    s, t = (F.normalize(x, dim=1) for x in (STUDENT, TEACHER[:, :3]))
    apart = [(s[i] @ s[j] - t[i] @ t[j]) ** 2 for i in range(BATCH) for j in range(BATCH) if i != j]
    found = relational(5 * STUDENT, TAGS, TEACHER[:, :3])
    torch.testing.assert_close(found, torch.stack(apart).mean())


@EVERY
def test_gradients_agree_with_finite_differences(name):
    student = STUDENT.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss_of(name)(z, TEACHER), (student,))


@EVERY
@pytest.mark.parametrize("scale", [1e4, 65504.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_extreme_outputs_give_finite_losses_and_gradients(name, scale, dtype):
    student = (scale * torch.sign(STUDENT)).to(dtype).requires_grad_()
    loss = loss_of(name)(student, (scale * torch.sign(TEACHER)).to(dtype))
    loss.backward()
    assert bool(loss.isfinite())
    assert not bool(student.grad.isnan().any())


@EVERY
def test_rows_of_zeros_and_a_batch_of_one_give_finite_losses_and_gradients(name):
    for count in (1, BATCH):
        student = torch.zeros(count, WIDTH, requires_grad=True)
        loss = loss_of(name)(student, torch.zeros(count, WIDTH), slice(count))
        loss.backward()
        assert bool(loss.isfinite())
        assert bool(student.grad.isfinite().all())


@EVERY
def test_the_order_of_the_batch_does_not_matter(name):
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(0))
    shuffled = loss_of(name)(STUDENT[order], TEACHER[order], order)
    assert float(shuffled) == pytest.approx(float(loss_of(name)(STUDENT, TEACHER)), rel=1e-12)


@EVERY
def test_losses_are_computed_in_single_precision(name):
    with torch.autocast("cpu", torch.bfloat16):
        low = loss_of(name)(STUDENT.bfloat16(), TEACHER.bfloat16())
    assert low.dtype == torch.float32
    expected = loss_of(name)(STUDENT.bfloat16().double(), TEACHER.bfloat16().double())
    assert float(low) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("name", [name for name in NAMES if LOSSES[name].needs_teacher])
def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it(name):
    student = TEACHER.clone().requires_grad_()
    settings = {"ce_weight": 0} if name == "binary_kd" else {}
    loss = make_loss(name, settings)(student, TAGS, TEACHER)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-12)
    assert float(student.grad.abs().max()) < 1e-9


def test_labels_of_another_form_are_refused():
    with pytest.raises(ConfigError, match=r"many labels was given labels \(8,\) for outputs \(8, 5\)"):
        bce(STUDENT, torch.zeros(BATCH, dtype=torch.int64))
    with pytest.raises(ConfigError, match=r"expected one number per output"):
        l2(STUDENT, torch.zeros(BATCH, dtype=torch.int64), TEACHER, label_weight=1)


@pytest.mark.parametrize(
    ("loss", "task", "fitting"),
    [
        ("kd", EMBEDDING, "squared_error, l2, smooth_l1, cosine, relational, codes"),
        ("cosine", CLASSES, "scratch, label_smoothing, kd"),
        ("kd", MULTILABEL, "bce, binary_kd, l2, smooth_l1"),
        ("scratch", SCORES, "squared_error"),
    ],
)
def test_a_loss_of_another_task_is_refused_with_those_that_fit(loss, task, fitting):
    with pytest.raises(ConfigError, match=rf"loss {loss} is of a .* task {task.name} .* one of {fitting}"):
        require_outputs(loss, task.measures, 4, task.name)


@pytest.mark.parametrize("task", [CLASSES, MULTILABEL, SCORES])
def test_the_loss_that_trains_a_teacher_is_of_its_task(task):
    require_outputs(task.supervised, task.measures, 4, task.name)
    assert not LOSSES[task.supervised].needs_teacher


def test_with_two_classes_blind_losses_are_refused_or_told(capsys):
    require_outputs("kd", CLASSES.measures, 2, "classes")
    with pytest.raises(ConfigError, match="two standardised logits are 1 and -1"):
        require_outputs("kd_ls", CLASSES.measures, 2, "classes")
    for name in ("dist", "dkd"):
        require_outputs(name, CLASSES.measures, 2, "classes")
        assert f"loss {name} has two classes" in capsys.readouterr().err
        require_outputs(name, CLASSES.measures, 3, "classes")
        assert capsys.readouterr().err == ""
