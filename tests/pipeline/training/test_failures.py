"""Training that cannot go on: one line that says why, and a state that is no trap."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pipeline.core.errors import ConfigError, ModelError, TrainingError
from pipeline.core.failures import require_finite_logits
from pipeline.loading.loader import Loader
from pipeline.tasks.class_figures import Metrics
from tests.pipeline.training.runs import BATCH, make_network, make_settings


class _Interrupted(Exception):
    pass


class _BadInEvaluation(nn.Module):
    """Gives numbers in training, and in evaluation something else, from an epoch on."""

    def __init__(self, value: float, healthy_evaluations: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(64, 3)
        self.value, self.healthy = value, healthy_evaluations

    def forward(self, images):
        logits = self.layer(images.flatten(1))
        if self.training:
            return logits
        self.healthy -= 1
        return logits if self.healthy >= 0 else logits * self.value


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e38])
def test_logits_that_are_not_finite_end_the_run_at_their_first_evaluation(run, value):
    with pytest.raises(
        TrainingError,
        match=r"after epoch 1: logits of \d+ of 22 held-out samples \([\d.]+%\) are not finite.*learn",
    ):
        run(network=_BadInEvaluation(value))


def test_the_epoch_of_bad_logits_is_named_and_the_one_before_is_resumed(run, tmp_path):
    whole = run(network=_BadInEvaluation(1.0), state_path=tmp_path / "whole.pt")
    with pytest.raises(TrainingError, match="after epoch 3: "):
        run(network=_BadInEvaluation(math.nan, healthy_evaluations=2))
    assert torch.load(tmp_path / "state.pt", weights_only=True)["epoch"] == 2
    # Mended code goes on from there.
    mended = run(network=_BadInEvaluation(1.0))
    assert all(torch.equal(mended.last[name], whole.last[name]) for name in whole.last)


def test_a_share_of_bad_rows_is_told():
    logits = torch.zeros(8, 3)
    logits[2, 1] = math.nan
    with pytest.raises(ModelError, match=r"logits of 1 of 8 test samples \(12.5%\) are not finite"):
        require_finite_logits(logits, "test")


class _Overflowing(nn.Module):
    """A norm whose statistics overflow in a step, which no loss shows."""

    def __init__(self, step: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.norm, self.left = nn.Linear(64, 3), nn.BatchNorm1d(64), step

    def forward(self, images):
        pixels = images.flatten(1)
        if self.training:
            self.left -= 1
            if self.left == -1:
                self.norm(pixels * 1e38)
        return self.layer(pixels)


@pytest.mark.parametrize("validates", [True, False])
def test_weights_that_are_not_finite_are_never_saved(run, tmp_path, validates):
    changed = {} if validates else {"evaluate": lambda _: Metrics()}
    # The network's logits stay finite: it does not use its norm.
    with pytest.raises(
        TrainingError, match=r"in epoch 2: the network's norm.running_mean, norm.running_var became"
    ):
        run(network=_Overflowing(run.steps + 1), **changed)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["epoch"] == 1
    assert state["network"]["norm.running_var"].isfinite().all()


def test_weights_that_are_not_finite_are_not_saved_inside_an_epoch(run, tmp_path):
    with pytest.raises(
        TrainingError, match=r"in epoch 1: the network's norm.running_mean, norm.running_var"
    ):
        run(network=_Overflowing(1), save_seconds=0)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["current"]["step"] == 1


def test_bad_logits_name_the_weights_that_made_them(run):
    network = make_network()

    def poisoned(student, labels, teacher):
        network[1].running_var.data.fill_(math.inf)
        network[1].running_mean.data.fill_(math.inf)
        return nn.functional.cross_entropy(student, labels)

    with pytest.raises(
        TrainingError, match=r"not finite.*, because the network's 1.running_mean, 1.running_var"
    ):
        run(network=network, loss=poisoned)


def _with_one_value_a_channel() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))


@pytest.mark.parametrize(
    ("accumulate", "most"), [(BATCH, BATCH // 2), (BATCH - 1, BATCH // 2)], ids=["ones", "uneven"]
)
def test_parts_of_one_image_are_refused_with_the_arithmetic(run, accumulate, most):
    with pytest.raises(
        TrainingError,
        match=rf"16 samples in {accumulate} parts feeds .* 1 sample at a time.*accumulate to {most} ",
    ):
        run(make_settings(accumulate=accumulate), network=_with_one_value_a_channel())
    run(make_settings(accumulate=most, epochs=1), network=_with_one_value_a_channel())


def test_parts_of_one_image_are_refused_when_compiled(run, monkeypatch):
    compile_it = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network: compile_it(network, backend="eager"))
    with pytest.raises(TrainingError, match="1 sample at a time"):
        run(make_settings(accumulate=BATCH, compile=True), network=_with_one_value_a_channel())


def test_parts_of_one_image_train_a_network_that_can_take_them(run):
    network = nn.Sequential(nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 3))
    assert len(run(make_settings(accumulate=BATCH, epochs=1), network=network).history) == 1


def test_one_image_to_train_on_is_refused(run, tiny_data):
    feed = run.feed(tiny_data.train.subset(torch.tensor([0]).numpy()))
    loader = Loader(feed, None, batch_size=BATCH, seed=3)
    with pytest.raises(TrainingError, match=r"a step of 1 sample in 1 part feeds.*add samples to train on"):
        run(network=_with_one_value_a_channel(), loader=loader)


def test_more_parts_than_images_of_a_step_are_refused():
    with pytest.raises(ConfigError, match=r"accumulate is 17; expected 1 to batch_size \(16\)"):
        make_settings(accumulate=17)


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, TypeError, KeyError, AssertionError])
@pytest.mark.parametrize("trains", [True, False])
def test_a_network_that_fails_is_told_in_one_line(run, kind, trains):
    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 3)

        def forward(self, images):
            if self.training == trains:
                raise kind("two\nlines")
            return self.layer(images.flatten(1))

    work = "a training step of 16 samples in 1 part" if trains else "a forward pass of 22 samples"
    with pytest.raises(ModelError, match=rf"{work} failed \({kind.__name__}: .*--debug") as error:
        run(network=Failing())
    assert "\n" not in str(error.value)


def test_an_error_in_the_backward_pass_is_told_in_one_line(run):
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 3)

        def forward(self, images):
            hidden = self.layer(images.flatten(1)).exp()
            squared = hidden.square()
            hidden.add_(1)
            return squared

    with pytest.raises(ModelError, match=r"failed \(RuntimeError: .*modified by an inplace operation"):
        run(network=InPlace())


def test_interruptions_are_not_taken_for_failures(run):
    def interrupted(student, labels, teacher):
        raise _Interrupted

    with pytest.raises(_Interrupted):
        run(loss=interrupted)
    with pytest.raises(_Interrupted):
        run(evaluate=lambda network: interrupted(None, None, None))


def test_figures_that_were_never_computed_do_not_matter(run):
    assert run(make_settings(epochs=1), evaluate=lambda network: Metrics()).best_epoch == 1
