"""Multiply-accumulates, against torchvision's published figures and by hand."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from pipeline.evaluation.assessment import count_macs, measure_cost
from pipeline.modalities.images.preprocessing import Preprocessing


@pytest.mark.parametrize(
    ("name", "billions"),
    [("resnet18", 1.814), ("mobilenet_v2", 0.301), ("shufflenet_v2_x0_5", 0.04), ("vit_b_32", 4.409)],
)
def test_macs_are_those_that_torchvision_publishes(name, billions):
    assert torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].meta["_ops"] == billions
    with torch.device("meta"):
        network = torchvision.models.get_model_builder(name)().eval()
        assert count_macs(network, torch.zeros(1, 3, 224, 224)) / 1e9 == pytest.approx(billions, abs=5e-4)


def test_macs_by_hand():
    """A convolution of 2 x 3 x 3 weights an output pixel and channel, and a linear layer of 4 x 5."""
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    assert count_macs(network, torch.zeros(1, 2, 6, 7)) == 2 * 9 * 4 * 6 * 7 + 20


def test_attention_counts_on_the_cpu_as_it_does_anywhere():
    """The fused operation that torch takes on a processor would count as nothing."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    tokens, width = 5, 8
    linear = tokens * (4 * width * width + 2 * width * 16)
    assert count_macs(layer, torch.zeros(1, tokens, width)) == linear + 2 * tokens * tokens * width
    assert torch.backends.mha.get_fastpath_enabled()


class _Counting(nn.Module):
    """Notes the threads, mode and device of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 3)
        self.calls: list[tuple[int, bool, torch.dtype]] = []

    def __deepcopy__(self, memo: object) -> _Counting:
        copy = _Counting()
        copy.calls = self.calls
        return copy.to(self.layer.weight.dtype).train(self.training)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls.append((torch.get_num_threads(), self.training, self.layer.weight.dtype))
        return self.layer(images.flatten(1))


def test_cost_is_of_a_copy_on_one_thread_in_evaluation_mode():
    network = _Counting().double().train()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        cost = measure_cost(network, Preprocessing(size=2, mean=(0.5,) * 3, std=(0.2,) * 3))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert cost.macs == 36
    assert cost.cpu_latency_ms > 0
    assert set(network.calls[1:]) == {(1, False, torch.float32)}
    assert len(network.calls) > 5
    assert network.training
    assert network.layer.weight.dtype == torch.float64
