"""Each loss against its formula, written down once more in numpy, sample by sample, with the defaults."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.pipeline.losses.batches import (
    CLASSES,
    HALF,
    LABELS,
    NONE,
    OF_LOGITS,
    STUDENT,
    TEACHER,
    logits,
    loss_of,
)


def softmax(z, temperature=1.0):
    powers = np.exp(z / temperature)
    return powers / powers.sum()


def ce(s, y):
    return 0.0 if y == -1 else -np.log(softmax(s)[y])


def kl(p, q):
    return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True))


def scratch(s, y, t):
    return ce(s, y)


def label_smoothing(s, y, t, smoothing=0.1):
    if y == -1:
        return 0.0
    softened = np.full(len(s), smoothing / len(s))
    softened[y] += 1 - smoothing
    return -(softened * np.log(softmax(s))).sum()


def kd(s, y, t, temperature=4, ce_weight=0.1, kd_weight=0.9):
    divergence = kl(softmax(t, temperature), softmax(s, temperature))
    return ce_weight * ce(s, y) + kd_weight * temperature**2 * divergence


def soft_ce(s, y, t, temperature=1):
    return -(temperature**2) * (softmax(t, temperature) * np.log(softmax(s, temperature))).sum()


def hard(s, y, t, ce_weight=0.5, kd_weight=0.5):
    return ce_weight * ce(s, y) + kd_weight * ce(s, int(np.argmax(t)))


def mse(s, y, t, ce_weight=0, kd_weight=1):
    s_centred, t_centred = s - s.mean(), t - t.mean()
    return ce_weight * ce(s, y) + kd_weight * ((s_centred - t_centred) ** 2).mean()


def kd_ls(s, y, t, temperature=2, ce_weight=0.1, kd_weight=9):
    s_standard, t_standard = ((z - z.mean()) / np.std(z, ddof=1) for z in (s, t))
    divergence = kl(softmax(t_standard, temperature), softmax(s_standard, temperature))
    return ce_weight * ce(s, y) + kd_weight * temperature**2 * divergence


def wttm(s, y, t, gamma=0.2, ce_weight=1, kd_weight=4):
    powers = softmax(t) ** gamma
    return ce_weight * ce(s, y) + kd_weight * powers.sum() * kl(powers / powers.sum(), softmax(s))


def dkd(s, y, t, temperature=4, alpha=1, beta=8, ce_weight=1, kd_weight=1):
    p_s, p_t = softmax(s, temperature), softmax(t, temperature)
    if y == -1:
        return kd_weight * alpha * temperature**2 * kl(p_t, p_s)
    binary = kl([p_t[y], 1 - p_t[y]], [p_s[y], 1 - p_s[y]])
    others_s, others_t = (np.delete(p, y) / (1 - p[y]) for p in (p_s, p_t))
    decoupled = alpha * binary + beta * kl(others_t, others_s)
    return ce_weight * ce(s, y) + kd_weight * temperature**2 * decoupled


def nkd(s, y, t, temperature=1, gamma=1.5, ce_weight=1, kd_weight=1):
    if y == -1:
        return kd_weight * soft_ce(s, y, t, temperature)
    others_s, others_t = (softmax(np.delete(z, y), temperature) for z in (s, t))
    target = -softmax(t)[y] * np.log(softmax(s)[y])
    others = -gamma * temperature**2 * (others_t * np.log(others_s)).sum()
    return ce_weight * ce(s, y) + kd_weight * (target + others)


def wsld(s, y, t, temperature=2, ce_weight=1, kd_weight=2.5):
    weight = 1.0 if y == -1 else 1 - np.exp(-ce(s, y) / ce(t, y))
    return ce_weight * ce(s, y) + kd_weight * weight * soft_ce(s, y, t, temperature)


SAMPLES = {
    function.__name__: function
    for function in (scratch, label_smoothing, kd, soft_ce, hard, mse, kd_ls, wttm, dkd, nkd, wsld)
}


def dist(s, y, t, temperature=4, ce_weight=1, inter_weight=2, intra_weight=2):
    p_s, p_t = (np.array([softmax(row, temperature) for row in z]) for z in (s, t))
    rows = [np.corrcoef(a, b)[0, 1] for a, b in zip(p_s, p_t, strict=True)]
    columns = [np.corrcoef(a, b)[0, 1] for a, b in zip(p_s.T, p_t.T, strict=True)]
    relations = inter_weight * (1 - np.mean(rows)) + intra_weight * (1 - np.mean(columns))
    return ce_weight * np.mean(list(map(ce, s, y))) + temperature**2 * relations


def evaluate(name, student, labels, teacher, **settings):
    s, y, t = student.numpy(), labels.numpy(), teacher.numpy()
    if name == "dist":
        return dist(s, y, t, **settings)
    assert name in SAMPLES, f"write the formula of {name} for one sample here, and name it in SAMPLES"
    return np.mean([SAMPLES[name](*sample, **settings) for sample in zip(s, y, t, strict=True)])


CASES = [
    *((name, {}) for name in OF_LOGITS),
    ("label_smoothing", {"smoothing": 0.5}),
    *(("kd", {"temperature": t, "ce_weight": 2, "kd_weight": 3}) for t in (0.5, 1, 20)),
    ("soft_ce", {"temperature": 3}),
    ("hard", {"ce_weight": 0.2, "kd_weight": 0.7}),
    ("mse", {"ce_weight": 0.2, "kd_weight": 0.7}),
    ("dkd", {"temperature": 1, "alpha": 0.7, "beta": 0.5, "ce_weight": 0.3, "kd_weight": 2}),
    ("nkd", {"temperature": 3, "gamma": 0.7, "ce_weight": 0.3, "kd_weight": 2}),
    ("wsld", {"temperature": 5, "ce_weight": 0.3, "kd_weight": 2}),
    ("dist", {"temperature": 1, "ce_weight": 0.3, "inter_weight": 0.5, "intra_weight": 3}),
    ("kd_ls", {"temperature": 5, "ce_weight": 0.3, "kd_weight": 2}),
    ("wttm", {"gamma": 0.6, "ce_weight": 0.3, "kd_weight": 2}),
]


def test_every_loss_of_logits_has_a_formula_here():
    assert {*SAMPLES, "dist"} == set(OF_LOGITS)


@pytest.mark.parametrize("labels", [LABELS, HALF, NONE], ids=["all", "half", "none"])
@pytest.mark.parametrize(("name", "settings"), CASES)
def test_a_loss_is_its_formula(name, settings, labels):
    found = loss_of(name, **settings)(STUDENT, labels, TEACHER)
    assert found.dtype == torch.float64
    assert float(found) == pytest.approx(evaluate(name, STUDENT, labels, TEACHER, **settings), rel=1e-6)


@pytest.mark.parametrize("name", OF_LOGITS)
def test_a_loss_of_two_classes_is_its_formula(name):
    student, teacher = logits(3, classes=2), logits(4, classes=2)
    found = loss_of(name)(student, HALF.clamp(max=1), teacher)
    assert float(found) == pytest.approx(evaluate(name, student, HALF.clamp(max=1), teacher), rel=1e-5)


@pytest.mark.parametrize("name", [name for name in OF_LOGITS if name not in ("dist", "wsld")])
def test_mixed_labels_weigh_what_their_classes_would_be(name):
    """Loss by loss of the formula: three quarters of one class and a quarter of another."""
    first, second = LABELS, (LABELS + 2) % CLASSES
    shares = 0.75 * torch.eye(CLASSES)[first] + 0.25 * torch.eye(CLASSES)[second]
    expected = 0.75 * evaluate(name, STUDENT, first, TEACHER)
    expected += 0.25 * evaluate(name, STUDENT, second, TEACHER)
    assert float(loss_of(name)(STUDENT, shares, TEACHER)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("labels", [LABELS, HALF], ids=["all", "half"])
def test_the_weights_of_wsld_have_no_gradient(labels):
    """Finite differences of the formula with the weights of the student as it is."""
    s, t, y = STUDENT.numpy(), TEACHER.numpy(), labels.numpy()
    weights = [
        1.0 if label == -1 else 1 - np.exp(-ce(a, label) / ce(b, label))
        for a, b, label in zip(s, t, y, strict=True)
    ]

    def frozen(z):
        soft = [w * soft_ce(a, -1, b, 2) for w, a, b in zip(weights, z, t, strict=True)]
        return np.mean([ce(a, label) for a, label in zip(z, y, strict=True)]) + 2.5 * np.mean(soft)

    student = STUDENT.clone().requires_grad_()
    loss_of("wsld")(student, labels, TEACHER).backward()
    for place in np.ndindex(s.shape):
        step = np.zeros_like(s)
        step[place] = 1e-5
        slope = (frozen(s + step) - frozen(s - step)) / 2e-5
        assert float(student.grad[place]) == pytest.approx(slope, rel=1e-5, abs=1e-8)
