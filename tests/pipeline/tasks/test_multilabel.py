"""The task of many labels: its figures against brute force, its rule, and the gate for poor teachers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from pipeline.tasks.multilabel import MULTILABEL, bernoulli_kl

GENERATOR = np.random.default_rng(0)
# Rounded, so that scores tie; one tag without positives, one without negatives.
LOGITS = torch.from_numpy(GENERATOR.normal(size=(60, 6)).round(1)).float()
LABELS = torch.from_numpy(GENERATOR.integers(-1, 2, (60, 6))).to(torch.int8)
LABELS[:, 4] = LABELS[:, 4].clamp(max=0)
LABELS[:, 5] = 1


def _average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """By definition: mean over positives of the precision among all that score at least as high."""
    return float(np.mean([positive[scores >= scores[p]].mean() for p in np.flatnonzero(positive)]))


def _auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    pairs = list(itertools.product(scores[positive], scores[~positive]))
    return float(np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs]))


def _known(tag: int) -> tuple[np.ndarray, np.ndarray]:
    known = (LABELS[:, tag] >= 0).numpy()
    return LOGITS[:, tag].double().numpy()[known], LABELS[:, tag].numpy()[known] == 1


def test_figures_are_their_definitions():
    found = MULTILABEL.compare(LOGITS, LABELS)
    precisions = [_average_precision(*_known(tag)) for tag in (0, 1, 2, 3, 5)]
    assert found.map == pytest.approx(np.mean(precisions))
    assert found.auroc_macro == pytest.approx(np.mean([_auroc(*_known(tag)) for tag in range(4)]))
    known = (LABELS >= 0).numpy()
    scores, positive = LOGITS.double().numpy()[known], LABELS.numpy()[known] == 1
    assert found.auroc_micro == pytest.approx(_auroc(scores, positive))
    said = scores > 0
    expected = 2 * (said & positive).sum() / (said.sum() + positive.sum())
    assert found.f1 == pytest.approx(expected)
    p = 1 / (1 + np.exp(-scores))
    assert found.nll == pytest.approx(-np.log(np.where(positive, p, 1 - p)).mean())


def test_a_perfect_and_a_reversed_ranking():
    truth = (LABELS[:, :4] == 1).to(torch.int8)
    perfect, reversed_ = (MULTILABEL.compare(s * truth.float(), truth) for s in (5.0, -5.0))
    assert (perfect.map, perfect.auroc_macro, perfect.f1) == (1, 1, 1)
    assert (reversed_.auroc_macro, reversed_.f1) == (0, 0)


def test_the_order_of_the_samples_does_not_matter():
    order = torch.randperm(len(LOGITS), generator=torch.Generator().manual_seed(1))
    shuffled = MULTILABEL.compare(LOGITS[order], LABELS[order]).to_dict()
    assert shuffled == pytest.approx(MULTILABEL.compare(LOGITS, LABELS).to_dict())


def test_without_known_tags_there_are_no_figures():
    found = MULTILABEL.compare(LOGITS, torch.full_like(LABELS, -1))
    assert (found.score, found.headline, str(found), found.map) == (None, "", "", None)
    assert MULTILABEL.details(LOGITS, torch.full_like(LABELS, -1), "abcdef")["classes"] == []


def test_the_teacher_is_compared_with_by_divergence_and_by_side():
    teacher = LOGITS.roll(1, 0)
    found = MULTILABEL.compare(LOGITS, LABELS, teacher)
    p, q = (x.double().sigmoid() for x in (teacher, LOGITS))
    kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert found.kl_to_teacher == pytest.approx(float(kl.sum(1).mean()))
    assert found.agreement == pytest.approx(float(((p > 0.5) == (q > 0.5)).double().mean()))


def test_the_rule_drops_nothing_and_measures_all_tags_together():
    decoded = LOGITS + 0.1
    assert torch.equal(MULTILABEL.kept(LOGITS), LOGITS)
    found = MULTILABEL.diverge(LOGITS, decoded)
    assert found.shape == (60, 1)
    assert torch.equal(found[:, 0], bernoulli_kl(LOGITS.double(), decoded.double()).sum(1))
    assert float(found.min()) > 0
    assert MULTILABEL.agree(LOGITS, LOGITS).all()
    assert not MULTILABEL.agree(LOGITS, -LOGITS - 0.01).any()


def test_extreme_logits_have_finite_divergences():
    far = torch.tensor([[6e4, -6e4]])
    assert bernoulli_kl(far, far).tolist() == [[0, 0]]
    assert bool(bernoulli_kl(far, -far).isfinite().all())


def test_a_threshold_is_chosen_on_other_samples():
    scores = torch.linspace(-3, 3, 50)[:, None]
    truth = (scores > 1.2).to(torch.int8)
    found = MULTILABEL.calibrate((scores, truth), (scores, truth))
    assert found["threshold"] == pytest.approx(1 / (1 + np.exp(-1.2)), abs=0.02)
    assert found["f1_calibrated"] == pytest.approx(1)
    unknown = torch.full_like(truth, -1)
    assert set(MULTILABEL.calibrate((scores, unknown), (scores, truth)).values()) == {None}


def test_a_random_teacher_is_refused_and_a_good_one_is_not():
    labels = (LABELS[:, :4] == 1).to(torch.int8)
    random, good = MULTILABEL.quality(LOGITS[:, :4], labels.numpy()), 0.9
    assert random is not None
    weakness = MULTILABEL.weakness(random, labels.numpy(), "test")
    assert "a random ranking has 0.3" in str(weakness)
    assert MULTILABEL.weakness(good, labels.numpy(), "test") is None
    assert MULTILABEL.tally(MULTILABEL.answers(LOGITS).numpy(), LABELS.numpy()) == (60, None)


def test_each_tag_has_recall_and_precision():
    tags = MULTILABEL.details(LOGITS, LABELS, list("abcdef"))["classes"]
    scores, positive = _known(0)
    said = scores > 0
    assert tags[0]["recall"] == pytest.approx((said & positive).sum() / positive.sum())
    assert tags[0]["precision"] == pytest.approx((said & positive).sum() / said.sum())
    assert (tags[4]["support"], tags[4]["recall"]) == (0, None)
