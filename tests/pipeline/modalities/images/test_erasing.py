"""Erased boxes: area, aspect, position and probability are drawn as torchvision draws them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision import transforms as v1

from pipeline.core.random import Draws
from pipeline.modalities.images.augmentations import RandomErasing
from pipeline.modalities.images.geometry import UNIT, erased_boxes
from tests.pipeline.modalities.images.distributions import COUNT, KEYS, differ, far_from


def _erased(**settings) -> np.ndarray:
    return erased_boxes(RandomErasing(**settings), Draws(2, 0, KEYS)) / UNIT


def _torchvision_erased(scale, ratio) -> np.ndarray:
    """Boxes (N, 4) in sides of an image of `UNIT` pixels; where none fits, torchvision gives the whole."""
    image = torch.empty(1, 1, 1).expand(1, UNIT, UNIT)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [v1.RandomErasing.get_params(image, scale, ratio, [0.0])[:4] for _ in range(COUNT)]
    boxes = np.array(drawn) / UNIT
    boxes[(boxes[:, 2:] == 1).all(1)] = 0
    return boxes


@pytest.mark.parametrize(
    ("scale", "ratio"), [((0.02, 0.33), (0.3, 3.3)), ((0.3, 0.9), (0.2, 8.0)), ((0.9, 1.0), (3.0, 9.0))]
)
def test_erased_boxes_are_distributed_as_torchvisions(scale, ratio):
    ours, theirs = _erased(probability=1.0, scale=scale, ratio=ratio), _torchvision_erased(scale, ratio)
    for figure in (_top, _left, _area, _aspect):
        assert not differ(figure(ours), figure(theirs)), figure.__name__


@pytest.mark.parametrize("probability", [0.25, 0.75])
def test_erased_boxes_do_not_depend_on_how_seldom_they_are(probability):
    ours, theirs = _erased(probability=probability), _torchvision_erased((0.02, 0.33), (0.3, 3.3))
    for figure in (_top, _left, _area, _aspect):
        assert not differ(figure(ours[ours.any(1)]), figure(theirs)), figure.__name__


def _top(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, 0]


def _left(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, 1]


def _area(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, 2] * boxes[:, 3]


def _aspect(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, 2] / np.maximum(boxes[:, 3], 1e-9)


def test_erased_boxes_lie_inside_and_within_the_spec():
    boxes = _erased(probability=1.0, scale=(0.1, 0.2), ratio=(0.5, 3.0))
    assert boxes.min() >= 0
    assert (boxes[:, :2] + boxes[:, 2:]).max() <= 1
    area, aspect = _area(boxes), _aspect(boxes)
    assert 0.0999 < area.min() < area.max() < 0.2001
    assert 0.4999 < aspect.min() < aspect.max() < 3.0001


@pytest.mark.parametrize("probability", [0.1, 0.5, 1.0])
def test_erasing_happens_as_often_as_it_should(probability):
    boxes = _erased(probability=probability)
    assert not far_from(boxes.any(1), probability)
    assert np.array_equal(boxes.any(1), (boxes[:, 2:] > 0).all(1))
