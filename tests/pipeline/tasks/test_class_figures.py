"""Figures of a classifier, against numpy and examples computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.tasks.class_figures import Metrics, compare

COUNT, CLASSES = 500, 12


def _random(seed: int, scale: float = 2.0) -> np.ndarray:
    return scale * np.random.default_rng(seed).standard_normal((COUNT, CLASSES))


LOGITS, TEACHER = _random(0), _random(1)
LABELS = np.random.default_rng(2).integers(0, CLASSES, COUNT)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def _compare(logits, labels, teacher=None) -> Metrics:
    """With everything as the float32 and int64 tensors that it will be."""
    return compare(
        torch.tensor(np.asarray(logits), dtype=torch.float32),
        torch.tensor(np.asarray(labels), dtype=torch.int64),
        None if teacher is None else torch.tensor(np.asarray(teacher), dtype=torch.float32),
    )


def _two_classes(*probabilities: float) -> np.ndarray:
    """Logits of two classes, the first of which has these probabilities."""
    p = np.array(probabilities)
    return np.log(np.stack([p, 1 - p], axis=1))


@pytest.mark.parametrize(("name", "k"), [("top1", 1), ("top5", 5)])
def test_accuracy_is_the_share_of_labels_among_the_first_logits(name, k):
    first = np.argsort(-LOGITS, axis=1)[:, :k]
    expected = (first == LABELS[:, None]).any(1).mean()
    assert getattr(_compare(LOGITS, LABELS), name) == pytest.approx(expected)


def test_nll_is_the_mean_of_minus_the_log_probability_of_the_label():
    expected = -_log_softmax(LOGITS)[np.arange(COUNT), LABELS].mean()
    assert _compare(LOGITS, LABELS).nll == pytest.approx(expected, rel=1e-5)


def test_ece_is_the_weighted_gap_of_fifteen_bins():
    probabilities = np.exp(_log_softmax(LOGITS))
    confidence, hit = probabilities.max(1), probabilities.argmax(1) == LABELS
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence >= low) & (confidence < low + 1 / 15)
        if inside.any():
            expected += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
    assert _compare(LOGITS, LABELS).ece == pytest.approx(expected, abs=1e-5)


def test_ece_by_hand():
    """Bin 12 (0.80 to 0.87): two, one right; bin 13 (to 0.93): one right; bin 9: two right."""
    logits = _two_classes(0.82, 0.84, 0.88, 0.62, 0.38)
    labels = [0, 1, 0, 0, 1]
    gaps = [2 * abs(0.5 - 0.83), abs(1.0 - 0.88), 2 * abs(1.0 - 0.62)]
    assert _compare(logits, labels).ece == pytest.approx(sum(gaps) / 5, abs=1e-6)


def test_ece_has_fifteen_bins():
    """0.81 and 0.88 are neighbours in fifteen bins, and in one bin of ten: gaps do not cancel."""
    logits = _two_classes(0.81, 0.88)
    assert _compare(logits, [1, 0]).ece == pytest.approx((0.81 + 0.12) / 2, abs=1e-6)


def test_ece_of_certainty_that_is_right_is_zero_and_of_certainty_that_is_wrong_is_one():
    logits = 100 * np.eye(4)
    assert _compare(logits, range(4)).ece == pytest.approx(0)
    assert _compare(logits, [1, 2, 3, 0]).ece == pytest.approx(1)


@pytest.mark.parametrize("classes", [2, 3, 4, 5])
def test_five_classes_or_fewer_have_no_top5(classes):
    figures = _compare(LOGITS[:, :classes], LABELS % classes)
    assert figures.top5 is None
    assert figures.top1 < 1


def test_agreement_is_the_share_of_equal_first_classes():
    expected = (LOGITS.argmax(1) == TEACHER.argmax(1)).mean()
    assert _compare(LOGITS, LABELS, TEACHER).agreement == pytest.approx(expected)


def test_kl_is_that_of_the_model_from_the_teacher():
    log_p, log_q = _log_softmax(TEACHER), _log_softmax(LOGITS)
    expected = (np.exp(log_p) * (log_p - log_q)).sum(1).mean()
    assert _compare(LOGITS, LABELS, TEACHER).kl_to_teacher == pytest.approx(expected, rel=1e-5)


def test_a_model_agrees_with_itself():
    figures = _compare(LOGITS, LABELS, LOGITS)
    assert (figures.agreement, figures.kl_to_teacher) == (1, 0)


def test_without_a_teacher_there_is_nothing_to_agree_with():
    figures = _compare(LOGITS, LABELS)
    assert figures.agreement is None
    assert figures.kl_to_teacher is None


def test_unlabelled_samples_count_for_the_teachers_figures_only():
    labels = np.where(np.arange(COUNT) % 3 == 0, -1, LABELS)
    mixed = _compare(LOGITS, labels, TEACHER).to_dict()
    labelled = _compare(LOGITS[labels >= 0], labels[labels >= 0]).to_dict()
    everyone = _compare(LOGITS, LABELS, TEACHER).to_dict()
    for name in ("top1", "top5", "nll", "ece"):
        assert mixed[name] == pytest.approx(labelled[name])
    for name in ("agreement", "kl_to_teacher"):
        assert mixed[name] == pytest.approx(everyone[name])


def test_unlabelled_samples_alone_have_the_teachers_figures_alone():
    figures = _compare(LOGITS, np.full(COUNT, -1), TEACHER).to_dict()
    assert {name for name, value in figures.items() if value is not None} == {
        "agreement",
        "kl_to_teacher",
    }


def test_unlabelled_samples_without_a_teacher_have_no_figures():
    assert _compare(LOGITS, np.full(COUNT, -1)) == Metrics()


def test_no_samples_have_no_figures():
    empty = np.zeros((0, CLASSES))
    assert _compare(empty, np.zeros(0), empty) == Metrics()


def test_extreme_logits_have_finite_figures():
    figures = _compare(1e4 * np.sign(LOGITS), LABELS, 1e4 * np.sign(TEACHER)).to_dict()
    assert all(np.isfinite(value) for value in figures.values())
