"""What a teacher gives: logits, and the features that they are made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.models.architecture import Architecture, build
from pipeline.models.teacher import Teacher


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 1, 12, 12, generator=torch.Generator().manual_seed(0))


def of(teacher: Teacher, network: nn.Module) -> Teacher:
    return replace(teacher, network=network.eval())


def test_logits_are_the_networks_own(teacher, images):
    assert torch.equal(teacher.logits(images), teacher.network(images))


def test_features_times_the_head_are_the_logits(teacher, images):
    output = teacher.output(images)
    assert output.features is not None
    again = F.linear(output.features, teacher.head.weight, teacher.head.bias)
    assert torch.equal(again, output.logits)


@pytest.mark.parametrize(
    ("name", "width"),
    [("resnet18", 512), ("mobilenet_v3_small", 1024), ("efficientnet_b0", 1280), ("vit_b_16", 768)],
)
def test_torchvisions_classifiers_have_features(teacher, name, width):
    options = {"image_size": 32} if name.startswith("vit") else {}
    network = build(Architecture(name=name, num_classes=3, options=options))
    output = of(teacher, network).output(torch.randn(2, 3, 32, 32))
    assert output.features is not None
    assert output.features.shape == (2, width)


@pytest.mark.parametrize("after", [nn.LogSoftmax(1), nn.Sequential(nn.ReLU())])
def test_what_follows_the_last_layer_leaves_no_features(teacher, images, after):
    network = nn.Sequential(nn.Flatten(), nn.Linear(144, 3), after)
    output = of(teacher, network).output(images)
    assert output.features is None
    assert torch.equal(output.logits, network(images))


def test_a_network_without_a_linear_layer_has_no_features(teacher, images):
    network = nn.Sequential(nn.Conv2d(1, 3, 12), nn.Flatten())
    assert of(teacher, network).output(images).features is None


def test_under_autocast_logits_keep_their_precision(teacher, images):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(144, 64), nn.ReLU(), nn.Linear(64, 3))
    output = replace(of(teacher, network), precision="bf16").output(images)
    assert output.logits.dtype == torch.float32
    assert not torch.equal(output.logits, output.logits.bfloat16().float())
    assert torch.equal(F.linear(output.features, network[3].weight, network[3].bias), output.logits)
