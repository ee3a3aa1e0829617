"""Temperature scaling, against answers that are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.tasks.class_figures import calibrate, compare, fit_temperature

COUNT, CLASSES = 20_000, 5


@pytest.fixture(scope="module")
def calibrated() -> tuple[Tensor, Tensor]:
    """Logits (N, C), and labels that have just the probabilities that these say."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(COUNT, CLASSES, generator=generator)
    labels = torch.multinomial(F.softmax(logits, 1), 1, generator=generator)[:, 0]
    return logits, labels


def test_logits_scaled_by_three_are_mended_by_three(calibrated):
    logits, labels = calibrated
    assert fit_temperature(logits, labels) == pytest.approx(1, abs=0.03)
    assert fit_temperature(3 * logits, labels) == pytest.approx(3, abs=0.09)
    halves = slice(COUNT // 2), slice(COUNT // 2, None)
    validation, test = ((3 * logits[half], labels[half]) for half in halves)
    before, found = compare(*test), calibrate(validation, test)
    assert before.ece > 0.1
    assert found.ece < 0.015
    assert found.nll < before.nll


@pytest.mark.parametrize("factor", [0.04, 0.5, 7, 40])
def test_a_factor_of_the_logits_is_a_factor_of_the_temperature(calibrated, factor):
    logits, labels = calibrated
    expected = factor * fit_temperature(logits, labels)
    assert fit_temperature(factor * logits.double(), labels) == pytest.approx(expected, rel=1e-6)


def test_two_classes_by_hand():
    """Four of five right at logits 1 and -1: the best has probability 0.8, so 2 / T = log(0.8 / 0.2)."""
    logits = torch.tensor([[1.0, -1.0]]).repeat(5, 1)
    assert fit_temperature(logits, torch.tensor([0, 0, 0, 0, 1])) == pytest.approx(2 / math.log(4))


def test_the_lowest_nll_is_where_it_says(calibrated):
    logits, labels = 1.7 * calibrated[0].double(), calibrated[1]
    best = fit_temperature(logits, labels)
    at = {factor: float(F.cross_entropy(logits / (best * factor), labels)) for factor in (0.99, 1, 1.01)}
    assert at[1] < min(at[0.99], at[1.01])


def test_labels_that_logits_separate_leave_nothing_to_mend():
    logits = torch.tensor([[4.0, 0.0], [0.0, 3.0]])
    temperature = fit_temperature(logits, torch.tensor([0, 1]))
    assert 0.01 <= temperature < 0.2
    assert float(F.cross_entropy(logits.double() / temperature, torch.tensor([0, 1]))) < 1e-12


def test_logits_that_are_always_wrong_have_the_highest_temperature():
    logits = torch.tensor([[4.0, 0.0], [0.0, 3.0]])
    assert fit_temperature(logits, torch.tensor([1, 0])) == pytest.approx(100, rel=1e-3)


def test_equal_logits_stay():
    assert fit_temperature(torch.zeros(3, 4), torch.tensor([0, 1, 2])) == 1


def test_unlabelled_images_choose_nothing(calibrated):
    logits, labels = calibrated[0][:500], calibrated[1][:500].clone()
    labels[::2] = -1
    alone = logits[1::2], labels[1::2]
    found = calibrate((logits, labels), alone)
    assert found == calibrate(alone, alone)
    assert calibrate((logits, torch.full_like(labels, -1)), alone) is None
    assert calibrate((logits[:0], labels[:0]), alone) is None
    unlabelled = calibrate(alone, (logits, torch.full_like(labels, -1)))
    assert (unlabelled.nll, unlabelled.ece) == (None, None)


@pytest.mark.parametrize("size", [1e4, 2e5, 1e30, 8e37])
def test_large_logits_have_finite_figures(size):
    logits = size * torch.tensor([[1.0, -1.0], [-1.0, 1.0], [1.0, -1.0]])
    for labels in ([0, 1, 0], [1, 0, 1], [0, 1, 1]):
        split = logits, torch.tensor(labels)
        fitted = calibrate(split, split)
        figures = compare(*split, -logits).to_dict()
        for value in (fitted.temperature, fitted.nll, fitted.ece, *figures.values()):
            assert value is None or math.isfinite(value)
