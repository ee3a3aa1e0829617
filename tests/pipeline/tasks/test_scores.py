"""The task of numbers: its figures against brute force, and costs in units of the teacher's variance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipeline.codecs.rule import SOFTMAX
from pipeline.core.errors import MismatchError
from pipeline.tasks.scores import SCORES, spearman

GENERATOR = np.random.default_rng(0)
OUTPUTS = torch.from_numpy(GENERATOR.normal(size=(40, 3)).round(1)).float()
LABELS = torch.from_numpy(GENERATOR.integers(0, 5, (40, 3))).float()


def _ranks(values: np.ndarray) -> np.ndarray:
    """The mean place of each value among the sorted ones."""
    return np.array([np.flatnonzero(np.sort(values) == value).mean() for value in values])


def test_spearman_is_the_correlation_of_mean_ranks():
    columns = zip(OUTPUTS.T.numpy(), LABELS.T.numpy(), strict=True)
    expected = [np.corrcoef(_ranks(a), _ranks(b))[0, 1] for a, b in columns]
    assert spearman(OUTPUTS, LABELS).tolist() == pytest.approx(expected)
    assert spearman(OUTPUTS, OUTPUTS.exp()).tolist() == pytest.approx([1] * 3)
    assert spearman(torch.ones(4, 1), OUTPUTS[:4, :1]).tolist() == [0]


def test_figures_are_their_definitions():
    found = SCORES.compare(OUTPUTS, LABELS)
    x, y = OUTPUTS.double().numpy(), LABELS.double().numpy()
    assert found.rmse == pytest.approx(math.sqrt(((x - y) ** 2).mean()))
    assert found.r2 == pytest.approx((1 - ((x - y) ** 2).mean(0) / y.var(0)).mean())
    discount, gains = 1 / np.log2(np.arange(3) + 2), []
    for scores, truth in zip(x, y, strict=True):
        order = sorted(range(3), key=lambda place: (-scores[place], place))
        best = sorted(truth, reverse=True) @ discount
        gains += [truth[order] @ discount / best] if best else []
    assert found.ndcg == pytest.approx(np.mean(gains))


def test_one_output_has_no_ranking_of_its_own_and_unlabelled_samples_do_not_count():
    labels = LABELS[:, :1].clone()
    assert SCORES.compare(OUTPUTS[:, :1], labels).ndcg is None
    labels[5] = math.nan
    rest = torch.arange(40) != 5
    found, expected = (
        SCORES.compare(OUTPUTS[:, :1], labels),
        SCORES.compare(OUTPUTS[rest, :1], labels[rest]),
    )
    assert found == expected
    nothing = SCORES.compare(OUTPUTS, torch.full_like(LABELS, math.nan))
    assert (nothing.score, nothing.headline, str(nothing)) == (None, "", "")
    assert SCORES.tally(SCORES.answers(OUTPUTS).numpy(), labels.numpy()) == (39, None)


def test_the_teacher_is_compared_with_by_rank_and_error():
    teacher = 2 * OUTPUTS + 1
    found = SCORES.compare(OUTPUTS, LABELS, teacher)
    assert found.agreement == pytest.approx(1)
    error = (OUTPUTS - teacher).double().square().mean(0) / teacher.double().var(0, correction=0)
    assert found.error_to_teacher == pytest.approx(float(error.mean()))


def test_costs_are_in_units_of_the_variance_that_a_pilot_measured():
    task, decoded = SCORES.fitted(1000 * OUTPUTS), 1000 * OUTPUTS + 1
    assert SCORES.measures.scales == ()
    variance = (1000 * OUTPUTS).double().var(0, correction=0)
    found = task.diverge(1000 * OUTPUTS, decoded)
    torch.testing.assert_close(found[:, 0], (1 / variance).mean().expand(40), rtol=1e-4, atol=0)
    assert task.agree(1000 * OUTPUTS, decoded).all()
    assert not task.agree(1000 * OUTPUTS, 1000 * OUTPUTS + 200).any()
    again = SCORES.restored(task.measures)
    assert torch.equal(again.diverge(1000 * OUTPUTS, decoded), found)


def test_an_output_that_never_changes_has_a_scale():
    assert SCORES.fitted(torch.ones(5, 2)).measures.scales == (1, 1)


def test_a_store_of_another_task_is_refused():
    with pytest.raises(MismatchError, match=r"kl_t1 and kl_t4 of a softmax, the data's task squared_error"):
        SCORES.restored(SOFTMAX)


def test_a_teacher_that_ranks_at_random_is_refused():
    assert SCORES.quality(-LABELS, LABELS.numpy()) == 0
    assert "at least 0.1" in str(SCORES.weakness(0.05, LABELS.numpy(), "test"))
    assert SCORES.weakness(SCORES.quality(LABELS, LABELS.numpy()), LABELS.numpy(), "test") is None
