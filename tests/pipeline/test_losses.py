"""Losses: against formulas written down once more in numpy, in double precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.losses import LOSSES, kd, label_smoothing, make_loss, scratch

BATCH, CLASSES = 16, 7


def _logits(seed: int, scale: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(BATCH, CLASSES, generator=generator)


STUDENT, TEACHER = _logits(0), _logits(1)
LABELS = torch.arange(BATCH) % CLASSES
HALF_LABELLED = torch.where(torch.arange(BATCH) % 2 == 0, LABELS, -1)


def _log_softmax(logits: torch.Tensor, temperature: float = 1.0) -> np.ndarray:
    scaled = logits.double().numpy() / temperature
    scaled = scaled - scaled.max(1, keepdims=True)
    return scaled - np.log(np.exp(scaled).sum(1, keepdims=True))


def _hard(student: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0) -> float:
    """Mean over the whole batch; an unlabelled sample adds nothing."""
    log_p = _log_softmax(student)
    target = (1 - smoothing) * np.eye(CLASSES)[labels.numpy()] + smoothing / CLASSES
    each = -(target * log_p).sum(1)
    return float(np.where(labels.numpy() == -1, 0, each).mean())


def _soft(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> float:
    log_p, log_q = _log_softmax(teacher, temperature), _log_softmax(student, temperature)
    return float((np.exp(log_p) * (log_p - log_q)).sum(1).mean() * temperature**2)


@pytest.mark.parametrize("labels", [LABELS, HALF_LABELLED], ids=["all", "half"])
def test_scratch_is_the_cross_entropy(labels):
    assert float(scratch(STUDENT, labels)) == pytest.approx(_hard(STUDENT, labels), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("labels", [LABELS, HALF_LABELLED], ids=["all", "half"])
def test_label_smoothing_is_the_cross_entropy_with_softened_labels(labels, smoothing):
    expected = _hard(STUDENT, labels, smoothing)
    found = label_smoothing(STUDENT, labels, smoothing=smoothing)
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize(("ce_weight", "kd_weight"), [(0.1, 0.9), (0.0, 1.0), (1.0, 0.0), (2, 3)])
@pytest.mark.parametrize("labels", [LABELS, HALF_LABELLED], ids=["all", "half"])
def test_kd_is_its_formula(labels, temperature, ce_weight, kd_weight):
    expected = ce_weight * _hard(STUDENT, labels)
    expected += kd_weight * _soft(STUDENT, TEACHER, temperature)
    found = kd(
        STUDENT, labels, TEACHER,
        temperature=temperature, ce_weight=ce_weight, kd_weight=kd_weight,
    )  # fmt: skip
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("labels", [LABELS, HALF_LABELLED], ids=["all", "half"])
def test_nkd_is_its_formula(labels, temperature):
    found = make_loss("nkd", {"temperature": temperature, "gamma": 1.5})(STUDENT, labels, TEACHER)
    each = []
    for student, teacher, label in zip(STUDENT.double(), TEACHER.double(), labels.tolist(), strict=True):
        if label == -1:
            each.append(0.0)
            continue
        log_s, t = (_log_softmax(x[None])[0] for x in (student, teacher))
        t = np.exp(t)
        others = [c for c in range(CLASSES) if c != label]
        log_s_others, log_t_others = (
            _log_softmax(x[None, others], temperature)[0] for x in (student, teacher)
        )
        rest = (np.exp(log_t_others) * log_s_others).sum()
        each.append(-log_s[label] - t[label] * log_s[label] - 1.5 * temperature**2 * rest)
    assert float(found) == pytest.approx(np.mean(each), rel=1e-5)


# Labels of mixed images: shares of two classes; of the third row a half is of an unlabelled image.
SHARES = torch.zeros(BATCH, CLASSES)
SHARES[torch.arange(BATCH), LABELS] += 0.7
SHARES[torch.arange(BATCH), (LABELS + 2) % CLASSES] += 0.3
SHARES[2] = 0.5 * torch.eye(CLASSES)[4]
MIXABLE = [name for name, loss in LOSSES.items() if not loss.one_target]


@pytest.mark.parametrize("name", MIXABLE)
def test_a_mixed_label_weighs_the_losses_of_its_classes(name):
    loss = make_loss(name, {})
    soft = loss(STUDENT, torch.full((BATCH,), -1), TEACHER)
    parts = [
        (loss(STUDENT[row : row + 1], torch.tensor([label]), TEACHER[row : row + 1]) - alone) * share
        for row in range(BATCH)
        for alone in [loss(STUDENT[row : row + 1], torch.tensor([-1]), TEACHER[row : row + 1])]
        for label, share in enumerate(SHARES[row].tolist())
        if share
    ]
    expected = float(soft) + float(sum(parts)) / BATCH
    assert float(loss(STUDENT, SHARES, TEACHER)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", MIXABLE)
def test_shares_of_one_class_are_its_index(name):
    loss = make_loss(name, {})
    found, expected = (loss(STUDENT, labels, TEACHER) for labels in (torch.eye(CLASSES)[LABELS], LABELS))
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_the_gradient_of_scratch_is_the_error_of_the_probabilities():
    student = STUDENT.clone().requires_grad_()
    scratch(student, HALF_LABELLED).backward()
    error = np.exp(_log_softmax(STUDENT)) - np.eye(CLASSES)[HALF_LABELLED.numpy()]
    error[HALF_LABELLED.numpy() == -1] = 0
    np.testing.assert_allclose(student.grad.numpy(), error / BATCH, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_gradient_of_kd_is_the_error_of_the_softened_probabilities(temperature):
    student = STUDENT.clone().requires_grad_()
    kd(student, LABELS, TEACHER, temperature=temperature, ce_weight=0, kd_weight=1).backward()
    error = np.exp(_log_softmax(STUDENT, temperature)) - np.exp(_log_softmax(TEACHER, temperature))
    np.testing.assert_allclose(student.grad.numpy(), error * temperature / BATCH, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("labels", [LABELS, HALF_LABELLED], ids=["all", "half"])
def test_gradients_agree_with_finite_differences(name, labels):
    """Losses compute in single precision, so steps and tolerances are those of single precision."""
    loss = make_loss(name, {})
    inputs = STUDENT.double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda student: loss(student, labels, TEACHER).double(), (inputs,), eps=0.03, atol=2e-3
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_a_student_that_is_its_teacher_has_no_kd_term(temperature):
    student = TEACHER.clone().requires_grad_()
    loss = kd(student, LABELS, TEACHER, temperature=temperature, ce_weight=0.0, kd_weight=1.0)
    loss.backward()
    assert float(loss.detach()) == 0
    assert float(student.grad.abs().max()) < 1e-7


def test_kd_does_not_change_with_a_constant_added_to_the_logits():
    shifted = kd(STUDENT + 30, LABELS, TEACHER - 20)
    assert float(shifted) == pytest.approx(float(kd(STUDENT, LABELS, TEACHER)), rel=1e-4)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_extreme_logits_give_finite_losses_and_gradients(name, scale):
    student = (scale * torch.sign(STUDENT)).requires_grad_()
    loss = make_loss(name, {})(student, LABELS, scale * torch.sign(TEACHER))
    loss.backward()
    assert bool(loss.isfinite())
    assert bool(student.grad.isfinite().all())


@pytest.mark.parametrize("name", LOSSES)
def test_an_unlabelled_sample_has_no_hard_label_term(name):
    settings = {"kd_weight": 0.0, "ce_weight": 1.0} if name == "kd" else {}
    student = STUDENT.clone().requires_grad_()
    make_loss(name, settings)(student, HALF_LABELLED, TEACHER).backward()
    unlabelled = HALF_LABELLED == -1
    assert not student.grad[unlabelled].any()
    assert student.grad[~unlabelled].any(1).all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_without_labels_gives_no_nan(name):
    student = STUDENT.clone().requires_grad_()
    loss = make_loss(name, {})(student, torch.full((BATCH,), -1), TEACHER)
    loss.backward()
    expected = 0.9 * _soft(STUDENT, TEACHER, 4.0) if name == "kd" else 0.0
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert bool(student.grad.isfinite().all())


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_losses_are_computed_in_single_precision(name, dtype):
    student, teacher = STUDENT.to(dtype), TEACHER.to(dtype)
    loss = make_loss(name, {})
    found = loss(student, LABELS, teacher)
    assert found.dtype == torch.float32
    assert torch.equal(found, loss(student.float(), LABELS, teacher.float()))


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_of_a_batch_is_the_mean_of_its_halves(name):
    loss = make_loss(name, {})
    half = BATCH // 2
    halves = [
        loss(STUDENT[part], HALF_LABELLED[part], TEACHER[part]) for part in (slice(half), slice(half, None))
    ]
    whole = float(loss(STUDENT, HALF_LABELLED, TEACHER))
    assert whole == pytest.approx(float(sum(halves)) / 2, rel=1e-5)


@pytest.mark.parametrize("name", ["scratch", "label_smoothing"])
def test_baselines_need_no_teacher(name):
    assert not LOSSES[name].needs_teacher
    loss = make_loss(name, {})
    assert torch.equal(loss(STUDENT, LABELS, None), loss(STUDENT, LABELS, TEACHER))


def test_kd_needs_a_teacher():
    assert LOSSES["kd"].needs_teacher


def test_settings_are_filled_in():
    loss = make_loss("kd", {"temperature": 2, "ce_weight": 0.3, "kd_weight": 0.7})
    expected = kd(STUDENT, LABELS, TEACHER, temperature=2, ce_weight=0.3, kd_weight=0.7)
    assert torch.equal(loss(STUDENT, LABELS, TEACHER), expected)


def test_an_unknown_loss_gets_a_suggestion():
    message = r"loss is 'scrach'; expected one of scratch, label_smoothing, kd, nkd; did you mean 'scratch'"
    with pytest.raises(ConfigError, match=message):
        make_loss("scrach", {})


@pytest.mark.parametrize(
    ("name", "key", "expected"),
    [
        ("kd", "temprature", "temperature, ce_weight, kd_weight"),
        ("kd", "smoothing", "temperature, ce_weight, kd_weight"),
        ("label_smoothing", "temperature", "smoothing"),
        ("scratch", "smoothing", "none"),
        ("kd", "teacher", "temperature, ce_weight, kd_weight"),
    ],
)
def test_a_setting_that_a_loss_does_not_have_is_refused_with_those_it_has(name, key, expected):
    with pytest.raises(ConfigError, match=rf"loss {name} has the setting '{key}'; expected {expected}"):
        make_loss(name, {key: 1})


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("kd", "temperature", 0),
        ("kd", "temperature", -1.0),
        ("kd", "temperature", math.nan),
        ("kd", "temperature", math.inf),
        ("kd", "temperature", "hot"),
        ("kd", "temperature", None),
        ("kd", "ce_weight", -0.1),
        ("kd", "ce_weight", True),
        ("kd", "kd_weight", -1),
        ("kd", "kd_weight", math.inf),
        ("label_smoothing", "smoothing", 1.0),
        ("label_smoothing", "smoothing", -0.1),
        ("label_smoothing", "smoothing", [0.1]),
    ],
)
def test_a_value_out_of_range_is_refused_with_what_was_found(name, key, value):
    with pytest.raises(ConfigError, match=rf"loss {name}: {key} is .*; expected a number"):
        make_loss(name, {key: value})
