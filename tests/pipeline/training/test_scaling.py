"""Half precision: a step that is skipped leaves nothing behind, and is counted."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from pipeline.core.errors import TrainingError
from pipeline.losses import scratch
from pipeline.training.optimizer import LossScale, WeightAverage, make_optimizer
from tests.pipeline.training.runs import make_network, make_settings

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
    assert f"3 of {4 * run.steps} steps were skipped" in told


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
    with pytest.raises(TrainingError, match=rf"nothing was learnt: .* each of the run's {2 * run.steps} s"):
        run(settings, loss=loss)
    # The same command tries it again and does not end where the first one did.
    assert run(settings).skipped_steps == run.steps


def test_gradients_that_overflow_without_end_are_an_error(run):
    settings = make_settings(precision="fp16", epochs=20)
    with pytest.raises(TrainingError, match=r"not finite at loss scale 3.1e-05.*lower learning_rate"):
        run(settings, loss=_overflowing(range(20 * run.steps)))


def test_a_frozen_network_in_half_precision_learns(run):
    result = run(make_settings(precision="fp16", freeze=True), network=make_network())
    assert result.history[-1].loss < result.history[0].loss
