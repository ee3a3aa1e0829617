"""Figures of the next item, against a ranking computed by sorting."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipeline.tasks.next_item import NEXT_ITEM, NextItem, ranks
from pipeline.tasks.table import TASKS

N, C = 60, 40


@pytest.fixture
def scores() -> torch.Tensor:
    return torch.randn(N, C, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.randint(C, (N,), generator=torch.Generator().manual_seed(1))


def test_figures_are_those_of_a_sorted_list(scores, labels):
    found = [scores[n].argsort(descending=True).tolist().index(int(labels[n])) + 1 for n in range(N)]
    assert ranks(scores, labels).tolist() == found
    figures = NEXT_ITEM.compare(scores, labels).to_dict()
    gains = [1 / math.log2(1 + rank) if rank <= 10 else 0 for rank in found]
    assert figures["ndcg10"] == pytest.approx(np.mean(gains))
    assert figures["hr10"] == pytest.approx(np.mean([rank <= 10 for rank in found]))
    assert figures["mrr"] == pytest.approx(np.mean([1 / rank for rank in found]))
    assert figures["nll"] == pytest.approx(
        float(torch.nn.functional.cross_entropy(scores, labels)), rel=1e-5
    )


def test_ties_count_against_a_model(labels):
    constant = NEXT_ITEM.compare(torch.zeros(N, C), labels)
    assert (constant.ndcg, constant.hr, constant.mrr) == (0, 0, pytest.approx(1 / C))


def test_unlabelled_samples_count_for_the_teacher_alone(scores, labels):
    some = labels.clone()
    some[::2] = -1
    figures, kept = NEXT_ITEM.compare(scores, some, scores), NEXT_ITEM.compare(scores[1::2], labels[1::2])
    assert figures.ndcg == pytest.approx(kept.ndcg)
    assert (figures.agreement, figures.kl_to_teacher) == (1, 0)
    nothing = NEXT_ITEM.compare(scores, torch.full((N,), -1))
    assert (nothing.score, str(nothing), nothing.headline) == (None, "", "")


def test_a_teacher_is_rated_by_its_hits(scores, labels):
    hits = NEXT_ITEM.compare(scores, labels).hr
    assert NEXT_ITEM.quality(scores, labels.numpy()) == pytest.approx(hits)
    counted = NEXT_ITEM.tally(NEXT_ITEM.answers(scores).numpy(), np.full(N, -1))
    assert counted == (0, 0)


def test_a_list_of_frequent_items_is_no_teacher():
    labels = np.repeat(np.arange(20), np.arange(20, 0, -1))
    popular = sum(range(11, 21)) / len(labels)
    assert "a list of the 10 most frequent items has" in str(NEXT_ITEM.weakness(popular, labels, "test"))
    assert NEXT_ITEM.weakness(0.99, labels, "test") is None
    assert NEXT_ITEM.weakness(0.1, np.arange(5), "test") is None


def test_columns_name_the_figures(scores, labels):
    for task in (NEXT_ITEM, NextItem("mine:AT_5", first=5)):
        figures = task.compare(scores, labels, scores)
        assert tuple(figures.to_dict()) == tuple(column.name for column in task.columns)
        assert next(iter(figures.followed)) == task.columns[0].name
    assert [column.title for column in NextItem(first=5).columns[:3]] == ["NDCG@5", "HR@5", "MRR"]
    assert TASKS.find("next_item") is NEXT_ITEM
