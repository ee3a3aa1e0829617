"""Schedule, weight decay and the average of the weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pipeline.core.errors import ModelError
from pipeline.training.optimizer import WeightAverage, freeze, learning_rate, make_optimizer
from pipeline.training.settings import TrainingSettings

STEPS = 20  # an epoch


def _settings(**values) -> TrainingSettings:
    return TrainingSettings(**{"epochs": 10, "learning_rate": 0.4, "warmup_epochs": 2, **values})


def _rates(settings: TrainingSettings) -> list[float]:
    return [learning_rate(settings, step, STEPS) for step in range(settings.epochs * STEPS)]


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


# Schedule


def test_warm_up_rises_in_equal_steps_from_one_step_to_the_peak():
    rates = _rates(_settings())
    for step in range(2 * STEPS):
        assert rates[step] == pytest.approx(0.4 * (step + 1) / (2 * STEPS))


def test_the_peak_is_reached_once_at_the_end_of_warm_up():
    rates = _rates(_settings())
    assert rates[2 * STEPS - 1] == pytest.approx(0.4)
    assert rates.index(max(rates)) == 2 * STEPS - 1


def test_half_way_down_the_cosine_the_rate_is_half():
    assert _rates(_settings())[6 * STEPS - 1] == pytest.approx(0.2)


def test_a_quarter_down_the_cosine_the_rate_is_that_of_the_cosine():
    expected = 0.2 * (1 + math.cos(math.pi / 4))
    assert _rates(_settings())[4 * STEPS - 1] == pytest.approx(expected)


@pytest.mark.parametrize("warmup", [0, 0.01, 0.5, 2, 9.9])
def test_the_rate_ends_at_zero_and_falls_all_the_way_after_warm_up(warmup):
    rates = _rates(_settings(warmup_epochs=warmup))
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    down = rates[math.ceil(warmup * STEPS) :]
    assert down == sorted(down, reverse=True)
    assert min(rates) >= 0
    assert max(rates) <= 0.4


def test_without_warm_up_the_first_step_is_near_the_peak():
    assert _rates(_settings(warmup_epochs=0))[0] == pytest.approx(0.4, rel=1e-3)


def test_warm_up_may_be_part_of_an_epoch():
    rates = _rates(_settings(warmup_epochs=0.25))
    assert rates[:5] == pytest.approx([0.08, 0.16, 0.24, 0.32, 0.4])
    assert rates[5] < 0.4


def test_a_training_that_is_all_warm_up_ends_at_the_peak():
    rates = _rates(_settings(epochs=1, warmup_epochs=1))
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.4)


def test_a_step_schedule_steps_down_at_its_milestones():
    rates = _rates(
        _settings(warmup_epochs=1, epochs=5, schedule="step", milestones=(2, 3.5), step_factor=0.5)
    )
    steps = len(rates) // 5
    assert rates[steps : 2 * steps] == pytest.approx([0.4] * steps)
    assert rates[2 * steps : 7 * steps // 2] == pytest.approx([0.2] * (7 * steps // 2 - 2 * steps))
    assert rates[7 * steps // 2 :] == pytest.approx([0.1] * (5 * steps - 7 * steps // 2))


# Weight decay


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_only_matrices_and_filters_decay(name):
    network = _network()
    optimizer = make_optimizer(network, _settings(optimizer=name, weight_decay=0.01))
    decays = {
        id(parameter): group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    found = {key: decays[id(parameter)] for key, parameter in network.named_parameters()}
    assert found == {
        "0.weight": 0.01, "0.bias": 0, "1.weight": 0, "1.bias": 0, "3.weight": 0.01, "3.bias": 0,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_step_without_gradient_shrinks_only_what_decays(name):
    network = _network()
    before = {key: p.detach().clone() for key, p in network.named_parameters()}
    optimizer = make_optimizer(
        network, _settings(optimizer=name, weight_decay=0.1, momentum=0, learning_rate=0.5)
    )
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for key, parameter in network.named_parameters():
        factor = 0.95 if before[key].ndim > 1 else 1
        torch.testing.assert_close(parameter.detach(), before[key] * factor)


def test_sgd_has_nesterov_momentum():
    optimizer = make_optimizer(_network(), _settings(momentum=0.8))
    assert isinstance(optimizer, torch.optim.SGD)
    assert [(g["momentum"], g["nesterov"]) for g in optimizer.param_groups] == [(0.8, True)] * 2


def test_sgd_without_momentum_is_plain():
    optimizer = make_optimizer(_network(), _settings(momentum=0))
    assert not any(group["nesterov"] for group in optimizer.param_groups)


def test_adamw_is_adamw():
    assert isinstance(make_optimizer(_network(), _settings(optimizer="adamw")), torch.optim.AdamW)


# Rates of layers


def _rates_of(network: nn.Module, settings: TrainingSettings) -> dict[str, float]:
    scales = {
        id(parameter): group["scale"]
        for group in make_optimizer(network, settings).param_groups
        for parameter in group["params"]
    }
    return {name: scales[id(parameter)] for name, parameter in network.named_parameters()}


def test_all_layers_have_the_rate_unless_told_otherwise():
    assert set(_rates_of(_network(), _settings()).values()) == {1.0}


def test_the_rate_decays_from_the_last_layer_down():
    """The norm is of the convolution's layer."""
    network = _deep_network()
    rates = _rates_of(network, _settings(layer_decay=0.75))
    assert rates == {
        "0.weight": 0.75**2, "0.bias": 0.75**2, "1.weight": 0.75**2, "1.bias": 0.75**2,
        "2.weight": 0.75, "2.bias": 0.75, "4.weight": 1.0, "4.bias": 1.0,
    }  # fmt: skip


def test_the_last_layer_may_have_a_rate_of_its_own():
    rates = _rates_of(_deep_network(), _settings(layer_decay=0.5, head_rate_factor=10))
    assert (rates["0.weight"], rates["2.bias"], rates["4.weight"]) == (0.25, 0.5, 10)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_groups_of_all_rates_keep_decay_to_matrices_and_filters(name):
    settings = _settings(optimizer=name, layer_decay=0.5, weight_decay=0.01)
    groups = make_optimizer(_deep_network(), settings).param_groups
    assert len(groups) == 6
    for group in groups:
        assert {parameter.ndim > 1 for parameter in group["params"]} == {group["weight_decay"] > 0}


def _deep_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 2), nn.Flatten(), nn.Linear(4, 2)
    )


# Freezing


def test_a_frozen_network_trains_its_last_layer_alone():
    network = _deep_network()
    freeze(network)
    learning = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert learning == {"4.weight", "4.bias"}
    held = [p for group in make_optimizer(network, _settings()).param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(network[4].weight), id(network[4].bias)}


def test_a_network_without_a_last_layer_cannot_be_frozen():
    with pytest.raises(ModelError, match="has no linear layer"):
        freeze(nn.Sequential(nn.ReLU()))


# Average


def _shift(network: nn.Module, amount: float) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += amount


def test_the_average_is_an_exponential_one_whose_decay_ramps_up():
    network = _network()
    average = WeightAverage(network, decay=0.5)
    expected = network[0].weight.detach().clone()
    for step in range(20):
        _shift(network, 1.0)
        average.update(network, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * network[0].weight.detach()
        torch.testing.assert_close(average.network[0].weight, expected)


def test_the_average_of_constant_weights_is_these_weights():
    network = _network()
    average = WeightAverage(network, decay=0.9)
    for step in range(5):
        average.update(network, step)
    assert torch.equal(average.network[3].weight, network[3].weight)


def test_buffers_are_copied():
    network = _network()
    average = WeightAverage(network, decay=0.999)
    network(torch.randn(8, 1, 4, 4))
    average.update(network, 0)
    for mine, theirs in zip(average.network.buffers(), network.buffers(), strict=True):
        assert torch.equal(mine, theirs)
    assert int(average.network[1].num_batches_tracked) == 1


def test_the_average_is_a_copy_in_evaluation_mode_that_does_not_learn():
    network = _network().train()
    average = WeightAverage(network, decay=0.9)
    assert not average.network.training
    assert not any(parameter.requires_grad for parameter in average.network.parameters())
    _shift(network, 1.0)
    assert not torch.equal(average.network[0].weight, network[0].weight)
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
