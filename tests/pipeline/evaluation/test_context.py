"""A network over every sample of a split."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from pipeline.evaluation.context import evaluate, predict
from pipeline.loading.feed import Feed
from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.tasks.class_figures import compare
from pipeline.tasks.classes import CLASSES


class _Sums(nn.Module):
    """Logits (B, 2): the sum of the pixels and its negative."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: list[bool] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.modes.append(self.training)
        total = x.sum((1, 2, 3))
        return torch.stack([total, -total], dim=1)


@pytest.fixture
def feed(tiny_data) -> Feed:
    preprocessing = Preprocessing(size=8, **tiny_data.statistics)
    return Feed(tiny_data.test, None, preprocessing, device=torch.device("cpu"))


@pytest.mark.parametrize("batch_size", [1, 7, 30, 1000])
def test_logits_are_of_every_image_in_order_for_any_batch_size(feed, tiny_data, batch_size):
    pixels = torch.from_numpy(tiny_data.test.uniform[0] / 255).float()
    mean, std = (tiny_data.statistics[name][0] for name in ("mean", "std"))
    expected = ((pixels - mean) / std).sum((1, 2, 3))
    found = predict(_Sums(), feed, batch_size=batch_size)
    torch.testing.assert_close(found, torch.stack([expected, -expected], 1), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("training", [True, False])
def test_a_network_is_judged_in_evaluation_mode_and_its_mode_restored(feed, training):
    network = _Sums().train(training)
    predict(network, feed, batch_size=10)
    assert network.modes == [False] * 3
    assert network.training is training


def test_evaluate_compares_the_predictions_with_the_splits_labels(feed):
    labels = feed.images.labels % 2
    feed.images = dataclasses.replace(feed.images, labels=labels)
    network = _Sums()
    logits = predict(network, feed, batch_size=8)
    teacher = logits.roll(1, 0)
    found = evaluate(network, feed, CLASSES, batch_size=8, teacher_logits=teacher)
    assert found == compare(logits, torch.from_numpy(labels), teacher)
    assert found.agreement < 1
