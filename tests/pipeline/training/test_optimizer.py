"""Schedule, weight decay, the average of the weights, layers in order, and half precision."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from pipeline.core.errors import ModelError, TrainingError
from pipeline.losses import scratch
from pipeline.models.architecture import Architecture, build
from pipeline.training.optimizer import (
    LossScale,
    WeightAverage,
    depths,
    freeze,
    learning_rate,
    make_optimizer,
)
from pipeline.training.settings import TrainingSettings
from tests.pipeline.training.runs import make_network, make_settings

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


def test_a_constant_schedule_stays_at_the_peak():
    rates = _rates(_settings(warmup_epochs=1, schedule="constant"))
    assert rates[STEPS - 1 :] == [0.4] * (len(rates) - STEPS + 1)
    assert rates[0] < 0.4


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


# Half precision


CPU = torch.device("cpu")
OPTIMIZERS = [{"optimizer": "sgd"}, {"optimizer": "adamw"}, {"momentum": 0}, {"clip_norm": 0.1}]


class _Interrupted(Exception):
    pass


def _overflowing(steps):
    """Cross-entropy whose gradients overflow under the scale in some of its calls; it is finite itself."""
    calls = iter(range(1_000_000))

    def loss(student, labels, teacher):
        value = scratch(student, labels)
        if next(calls) not in steps:
            return value
        student.register_hook(lambda gradient: gradient * math.inf)
        return value

    return loss


def _scaled(network, settings):
    optimizer = make_optimizer(network, settings)
    return optimizer, LossScale(optimizer, [network], device=CPU, enabled=True)


@pytest.mark.parametrize("changed", OPTIMIZERS, ids=["sgd", "adamw", "no-momentum", "clipped"])
def test_after_skipped_steps_the_first_that_counts_is_that_of_a_fresh_optimiser(changed):
    settings = make_settings(precision="fp16", **changed)
    network = nn.Linear(3, 2)
    plain = copy.deepcopy(network)
    optimizer, scale = _scaled(network, settings)
    images = torch.randn(4, 3)

    def step(factor):
        optimizer.zero_grad()
        scale.begin()
        scale.backward(network(images).square().sum() * factor)
        if settings.clip_norm:
            scale.clip(network.parameters(), settings.clip_norm)
        return scale.step()

    assert [step(1e35), step(1e35)] == [False, False]
    assert not optimizer.state
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), plain.parameters(), strict=True))
    assert step(1.0)
    reference = make_optimizer(plain, make_settings(**changed))
    plain(images).square().sum().backward()
    if settings.clip_norm:
        nn.utils.clip_grad_norm_(plain.parameters(), settings.clip_norm)
    reference.step()
    for mine, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_no_fused_optimiser_is_used_under_a_loss_scale(optimizer):
    settings = make_settings(optimizer=optimizer, precision="fp16")
    assert not any(group["fused"] for group in make_optimizer(nn.Linear(3, 2), settings).param_groups)


def test_a_skipped_step_leaves_the_statistics_of_norms_alone():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    before = copy.deepcopy(network.state_dict())
    _, scale = _scaled(network, make_settings(precision="fp16"))
    scale.begin()
    outputs = network(torch.tensor([[math.inf, 0, 0], [1.0, 2.0, 3.0]]))
    assert not network[1].running_mean.isfinite().all()
    scale.backward(outputs.sum())
    assert not scale.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_skipped_steps_are_counted_and_told(run, capsys):
    skipped = {0, 1, run.steps}
    result = run(make_settings(precision="fp16"), loss=_overflowing(skipped))
    assert [record.skipped_steps for record in result.history] == [2, 1, 0, 0]
    assert result.skipped_steps == 3
    told = capsys.readouterr().err
    assert "steps skipped by fp16's loss scale: 2" in told
    assert f"skipped 3 of {4 * run.steps} steps" in told


def test_a_run_that_begins_with_skipped_steps_learns(run):
    result = run(make_settings(precision="fp16", epochs=8), loss=_overflowing({0, 1}))
    assert result.history[-1].loss < 0.7 * result.history[0].loss
    assert result.history[-1].validation["top1"] > 0.7


def test_in_other_precisions_no_step_is_skipped(run):
    assert run(make_settings(precision="bf16", epochs=1)).skipped_steps == 0


def test_the_average_counts_only_steps_that_count(run, monkeypatch):
    steps = []
    update = WeightAverage.update

    def recorded(self, network, step):
        steps.append(step)
        update(self, network, step)

    monkeypatch.setattr(WeightAverage, "update", recorded)
    settings = make_settings(precision="fp16", ema_decay=0.9, epochs=2)
    run(settings, loss=_overflowing({0, 1, run.steps}))
    assert steps == list(range(2 * run.steps - 3))


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_run_with_skipped_steps_goes_on_to_the_same_bits(run, tmp_path, ema_decay):
    settings = make_settings(precision="fp16", epochs=2, ema_decay=ema_decay)
    whole = run(settings, loss=_overflowing({0, 2}), state_path=tmp_path / "whole.pt")
    begun = _overflowing({0, 2})
    calls = iter(range(3))

    def interrupted(student, labels, teacher):
        if next(calls, None) is None:
            raise _Interrupted
        return begun(student, labels, teacher)

    with pytest.raises(_Interrupted):
        run(settings, loss=interrupted, save_seconds=0)
    resumed = run(settings)
    assert [record.skipped_steps for record in resumed.history] == [2, 0]
    assert all(torch.equal(resumed.last[name], whole.last[name]) for name in whole.last)


def test_a_run_in_which_no_step_counted_is_an_error(run):
    settings = make_settings(precision="fp16", epochs=2)
    loss = _overflowing(range(2 * run.steps))
    with pytest.raises(TrainingError, match=rf"nothing was learnt: .* in all {2 * run.steps} steps"):
        run(settings, loss=loss)
    # The same command tries it again and does not end where the first one did.
    assert run(settings).skipped_steps == run.steps


def test_gradients_that_overflow_without_end_are_an_error(run):
    settings = make_settings(precision="fp16", epochs=20)
    with pytest.raises(TrainingError, match=r"not finite even at loss scale 3.1e-05.*lower learning_rate"):
        run(settings, loss=_overflowing(range(20 * run.steps)))


def test_a_frozen_network_in_half_precision_learns(run):
    result = run(make_settings(precision="fp16", freeze=True), network=make_network())
    assert result.history[-1].loss < result.history[0].loss


# Layers in order


def _hollow(name: str) -> nn.Module:
    stride = 1 if name == "resnet20" else 4
    with torch.device("meta"):
        return build(Architecture(name=name, num_classes=5, stem_stride=stride))


# How many layers there are, and parameters of which it is clear how deep they lie.
NETWORKS = {
    "resnet18": (
        10,
        {"conv1.weight": 9, "bn1.bias": 9, "layer1.0.conv2.weight": 8, "layer4.1.bn2.bias": 1},
    ),
    "resnet20": (11, {"stem.weight": 10, "norm.weight": 10, "groups.1.0.shortcut.0.weight": 6}),
    "mobilenet_v2": (20, {"features.0.0.weight": 19, "features.17.conv.1.0.weight": 2}),
    "shufflenet_v2_x0_5": (19, {"conv1.0.weight": 18, "stage4.3.branch2.0.weight": 2, "conv5.1.bias": 1}),
    "convnext_tiny": (
        23,
        {"features.0.0.weight": 22, "features.7.2.layer_scale": 1, "classifier.0.bias": 1},
    ),
    "swin_t": (17, {"features.0.0.weight": 16, "features.7.1.attn.qkv.weight": 1, "norm.weight": 1}),
    "densenet121": (9, {"features.conv0.weight": 8, "features.denseblock4.denselayer16.conv2.weight": 1}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_layer_is_a_block(name):
    count, known = NETWORKS[name]
    network = _hollow(name)
    found = depths(network)
    assert set(found) == {key for key, _ in network.named_parameters()}
    assert set(found.values()) == set(range(count))
    assert {key: found[key] for key in known} == known


def test_depth_falls_from_the_images_to_the_logits():
    for name in NETWORKS:
        found = list(depths(_hollow(name)).values())
        assert found == sorted(found, reverse=True)


def test_the_layers_of_a_transformer_are_those_of_beit():
    """Embeddings, twelve blocks, and the head: rates of 0.75^13 to 1, arXiv 2106.08254."""
    found = depths(_hollow("vit_b_16"))
    for name in ("class_token", "conv_proj.weight", "encoder.pos_embedding"):
        assert found[name] == 13
    for block in range(12):
        assert found[f"encoder.layers.encoder_layer_{block}.mlp.0.weight"] == 12 - block
    assert (found["encoder.ln.weight"], found["heads.head.weight"]) == (1, 0)


def test_timms_networks_have_timms_layers():
    found = depths(_hollow("timm:test_vit"))
    assert found["cls_token"] == found["patch_embed.proj.weight"] == max(found.values())
    assert found["blocks.0.mlp.fc1.weight"] == max(found.values()) - 1
    assert found["head.weight"] == 0


def test_a_network_in_a_wrapper_has_the_same_layers():
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = _hollow("resnet18")
            self.scale = nn.Parameter(torch.ones(1, device="meta"))

    plain, wrapped = depths(_hollow("resnet18")), depths(Wrapper())
    assert {name: wrapped[f"backbone.{name}"] for name in plain} == plain


def test_a_single_layer_is_the_last():
    assert depths(nn.Sequential(nn.Flatten(), nn.Linear(3, 2))) == {"1.weight": 0, "1.bias": 0}
