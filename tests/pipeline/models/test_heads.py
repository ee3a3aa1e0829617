"""A network that gives its penultimate features beside its logits."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

from pipeline.core.errors import ModelError
from pipeline.models.architecture import Architecture, build
from pipeline.models.heads import WithFeatures, feature_dim, head_of

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "squeezenet1_1"])
def test_logits_are_made_of_the_features(name):
    torch.manual_seed(0)
    network = build(Architecture(name=name, num_classes=5, channels=3)).eval()
    _, head = head_of(network)
    outputs, features = WithFeatures(network)(IMAGES)
    assert features.shape == (2, feature_dim(head))
    assert torch.equal(outputs, network(IMAGES))
    if isinstance(head, nn.Linear):
        torch.testing.assert_close(F.linear(features, head.weight, head.bias), outputs)


def test_a_network_with_auxiliary_heads_gives_the_features_of_its_own_head():
    torch.manual_seed(0)
    network = build(Architecture(name="googlenet", num_classes=5, channels=3)).train()
    outputs, features = WithFeatures(network)(IMAGES)
    assert outputs.aux_logits1.shape == outputs.logits.shape == (2, 5)
    assert features.shape == (2, 1024)


def test_gradients_reach_the_network_and_nothing_is_held_between_calls():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 3))
    wrapped = WithFeatures(network)
    _, features = wrapped(torch.randn(2, 3, 2, 2))
    features.sum().backward()
    assert network[1].weight.grad.any()
    assert network[3].weight.grad is None


def test_called_alone_the_network_keeps_nothing_and_closed_it_is_as_it_was():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    wrapped, images = WithFeatures(network), torch.randn(2, 3, 2, 2)
    expected, features = wrapped(images)
    for _ in range(3):
        assert torch.equal(network(images), expected)
    assert not wrapped._given
    assert torch.equal(wrapped(images)[1], features)
    wrapped.close()
    assert not network[1]._forward_pre_hooks


@pytest.mark.filterwarnings("error")
def test_compiled_it_gives_the_same():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 3))
    wrapped, images = WithFeatures(network), torch.randn(2, 3, 2, 2)
    counted = CompileCounter()
    compiled = torch.compile(wrapped, fullgraph=True, backend=counted)
    for _ in range(3):
        network(images)  # as an evaluation does between
        found, expected = compiled(images), wrapped(images)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        sum(values.sum() for values in found).backward()
    assert counted.frame_count == 1


def test_a_network_without_a_last_layer_is_refused():
    with pytest.raises(ModelError, match="has no linear layer"):
        WithFeatures(nn.Flatten())
