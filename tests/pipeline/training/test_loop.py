"""The training loop: it learns, stops, goes on bit for bit, and keeps the right epoch."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.inception import InceptionOutputs

from pipeline.core.errors import DeviceError, TrainingError
from pipeline.loading.loader import Loader
from pipeline.losses import Schedule, ScheduledLoss, scratch
from pipeline.tasks.class_figures import Metrics
from pipeline.training.optimizer import WeightAverage
from pipeline.training.settings import TrainingSettings
from pipeline.training.state import EpochRecord, TrainingResult, describe
from tests.pipeline.training.runs import BATCH
from tests.pipeline.training.runs import make_network as _network
from tests.pipeline.training.runs import make_settings as _settings


class _Interrupted(Exception):
    pass


class _InterruptedLoss:
    """Cross-entropy that stops the run at its n-th call."""

    def __init__(self, last_call: int) -> None:
        self.calls_left = last_call

    def __call__(self, student, labels, teacher):
        if self.calls_left == 0:
            raise _Interrupted
        self.calls_left -= 1
        return scratch(student, labels)


def _scripted(*top1_and_nll: tuple[float, float]):
    figures = iter(top1_and_nll)

    def evaluate(network: nn.Module) -> Metrics:
        top1, nll = next(figures)
        return Metrics(top1=top1, nll=nll)

    return evaluate


def _timeless(result: TrainingResult) -> list[dict[str, Any]]:
    timed = dict.fromkeys(("seconds", "data_seconds", "evaluation_seconds", "images_per_second"), 0.0)
    return [dataclasses.asdict(record) | timed for record in result.history]


def _assert_same(a: TrainingResult, b: TrainingResult) -> None:
    assert _timeless(a) == _timeless(b)
    assert a.best_epoch == b.best_epoch
    for first, second in ((a.last, b.last), (a.best, b.best)):
        assert list(first) == list(second)
        for name in first:
            assert torch.equal(first[name], second[name]), name


def test_training_learns(run):
    result = run(_settings(epochs=8))
    losses = [record.loss for record in result.history]
    assert losses[-1] < 0.5 * losses[0]
    assert result.history[-1].validation["top1"] > 0.9


@pytest.mark.parametrize(
    "changed",
    [{"optimizer": "adamw", "learning_rate": 0.01}, {"ema_decay": 0.9}, {"precision": "bf16"},
     {"precision": "fp16"}, {"momentum": 0}, {"accumulate": 2, "clip_norm": 1.0},
     {"schedule": "step", "milestones": (4, 6)}],
    ids=["adamw", "ema", "bf16", "fp16", "no-momentum", "accumulated", "steps"],
)  # fmt: skip
def test_every_way_to_optimise_learns(run, changed):
    result = run(_settings(epochs=8, **changed))
    assert result.history[-1].loss < 0.7 * result.history[0].loss
    assert result.history[-1].validation["top1"] > 0.7
    assert all(tensor.dtype != torch.bfloat16 for tensor in result.last.values())


def test_the_history_has_a_record_an_epoch_with_its_view_and_rate(run):
    history = run().history
    assert [record.epoch for record in history] == [1, 2, 3, 4]
    assert [record.view for record in history] == [0, 1, 2, 3]
    assert history[0].learning_rate == pytest.approx(0.05)
    assert history[-1].learning_rate == pytest.approx(0, abs=1e-12)
    for record in history:
        images = run.steps * BATCH
        assert record.images_per_second == pytest.approx(images / record.seconds)


def test_the_loss_of_an_epoch_is_the_mean_over_its_steps(run):
    values = []

    def recorded(student, labels, teacher):
        loss = scratch(student, labels)
        values.append(float(loss.detach()))
        return loss

    history = run(loss=recorded).history
    assert len(values) == 4 * run.steps
    for epoch, record in enumerate(history):
        mean = sum(values[epoch * run.steps : (epoch + 1) * run.steps]) / run.steps
        assert record.loss == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_loss_of_a_step_is_that_of_its_fraction_of_an_epoch(run, interrupted):
    weights = []

    def recorded(student, labels, teacher, *, weight):
        if interrupted and len(weights) == run.steps + 2:
            raise _Interrupted
        weights.append(weight)
        return weight * scratch(student, labels)

    loss = ScheduledLoss(recorded, {"weight": Schedule(1.0, 4.0, 3)})
    if interrupted:
        with pytest.raises(_Interrupted):
            run(loss=loss, save_seconds=0)
        interrupted = False
    run(loss=loss)
    steps = 4 * run.steps
    assert weights == pytest.approx([1 + min(3, step / run.steps) for step in range(steps)])


def test_the_same_run_twice_is_the_same_run(run, tmp_path):
    _assert_same(run(state_path=tmp_path / "a"), run(state_path=tmp_path / "b"))


def test_another_seed_is_another_run(run, tmp_path):
    first, second = run(state_path=tmp_path / "a"), run(state_path=tmp_path / "b", seed=4)
    assert _timeless(first) != _timeless(second)


def test_too_little_memory_is_said_with_what_to_do(run):
    def too_large(student, labels, teacher):
        raise torch.OutOfMemoryError("tried to allocate 3.00 GiB\nand much more")

    with pytest.raises(
        DeviceError, match=r"for a step of 16 samples \(tried to allocate 3.00 GiB\); raise acc"
    ):
        run(loss=too_large)


def test_dropout_draws_anew_in_every_step(run):
    seeds = []

    def recorded(student, labels, teacher):
        seeds.append(torch.initial_seed())
        return scratch(student, labels)

    run(loss=recorded)
    assert len(set(seeds)) == len(seeds) == 4 * run.steps


def test_a_network_in_evaluation_mode_is_trained_as_any_other(run, tmp_path):
    """Pretrained networks come in evaluation mode."""
    whole = run(state_path=tmp_path / "whole.pt")
    _assert_same(run(network=_network().eval()), whole)


def test_the_average_counts_the_steps_of_the_whole_run(run, monkeypatch):
    steps = []
    update = WeightAverage.update

    def recorded(self, network, step):
        steps.append(step)
        update(self, network, step)

    monkeypatch.setattr(WeightAverage, "update", recorded)
    with pytest.raises(_Interrupted):
        run(_settings(ema_decay=0.9), loss=_InterruptedLoss(run.steps))
    run(_settings(ema_decay=0.9))
    assert steps == list(range(4 * run.steps))


@pytest.mark.parametrize(
    "changed",
    [{}, {"optimizer": "adamw", "learning_rate": 0.01}, {"ema_decay": 0.9}, {"precision": "bf16"}],
    ids=["sgd", "adamw", "ema", "bf16"],
)
@pytest.mark.parametrize("epochs_done", [1, 3])
def test_an_interrupted_run_goes_on_to_the_same_bits(run, tmp_path, changed, epochs_done):
    settings = _settings(**changed)
    whole = run(settings, state_path=tmp_path / "whole.pt")
    stop = _InterruptedLoss(epochs_done * run.steps + 1)
    with pytest.raises(_Interrupted):
        run(settings, loss=stop)
    resumed_loss = _InterruptedLoss((4 - epochs_done) * run.steps)
    resumed = run(settings, loss=resumed_loss)
    assert resumed_loss.calls_left == 0
    _assert_same(resumed, whole)


@pytest.mark.parametrize(
    "changed",
    [{}, {"ema_decay": 0.9}, {"precision": "fp16"}, {"accumulate": 3, "clip_norm": 0.5}],
    ids=["plain", "ema", "fp16", "accumulated"],
)
@pytest.mark.parametrize("steps_done", [1, 6])
def test_a_run_goes_on_from_any_step_to_the_same_bits(run, tmp_path, changed, steps_done):
    settings = _settings(**changed)
    calls_a_step = settings.accumulate
    whole = run(settings, state_path=tmp_path / "whole.pt")
    with pytest.raises(_Interrupted):
        run(settings, loss=_InterruptedLoss((steps_done + 1) * calls_a_step - 1), save_seconds=0)
    resumed_loss = _InterruptedLoss((4 * run.steps - steps_done) * calls_a_step)
    resumed = run(settings, loss=resumed_loss)
    assert resumed_loss.calls_left == 0
    _assert_same(resumed, whole)


def test_a_run_interrupted_before_its_first_epoch_is_done_begins_anew(run, tmp_path):
    whole = run(state_path=tmp_path / "whole.pt")
    with pytest.raises(_Interrupted):
        run(loss=_InterruptedLoss(2))
    assert not (tmp_path / "state.pt").exists()
    _assert_same(run(), whole)


def test_a_run_interrupted_while_it_validates_trains_that_epoch_again(run, tmp_path):
    def interrupted(network):
        raise _Interrupted

    whole = run(state_path=tmp_path / "whole.pt")
    with pytest.raises(_Interrupted):
        run(evaluate=interrupted)
    _assert_same(run(), whole)


def test_a_finished_run_is_not_trained_again(run):
    whole = run()
    _assert_same(run(loss=_InterruptedLoss(0)), whole)


def test_resuming_does_not_depend_on_the_weights_that_the_network_came_with(run, tmp_path):
    whole = run(state_path=tmp_path / "whole.pt")
    with pytest.raises(_Interrupted):
        run(loss=_InterruptedLoss(2 * run.steps))
    _assert_same(run(network=_network(seed=9)), whole)


def test_the_state_of_another_identity_is_not_resumed(run, tmp_path, capsys):
    whole = run(state_path=tmp_path / "whole.pt")
    with pytest.raises(_Interrupted):
        run(loss=_InterruptedLoss(2 * run.steps), identity={"run": "other"}, network=_network(9))
    saved = (tmp_path / "state.pt").read_bytes()
    anew = run()
    assert "starting over: run changed (run was other, is test); moved to" in capsys.readouterr().err
    assert (tmp_path / "state.pt.other").read_bytes() == saved
    _assert_same(anew, whole)


def test_a_state_that_was_kept_aside_comes_back(run, tmp_path, capsys):
    whole = run(state_path=tmp_path / "whole.pt")
    for epochs, identity in ((2, "test"), (1, "other")):
        with pytest.raises(_Interrupted):
            run(loss=_InterruptedLoss(epochs * run.steps), identity={"run": identity})
    saved = (tmp_path / "state.pt").read_bytes()
    resumed = run(network=_network(seed=9))
    assert (
        "resuming this run's saved state: run changed (run was other, is test)" in capsys.readouterr().err
    )
    assert (tmp_path / "state.pt.other").read_bytes() == saved
    _assert_same(resumed, whole)


def test_a_state_aside_comes_back_after_the_other_run_was_finished(run, tmp_path):
    whole = run(state_path=tmp_path / "whole.pt")
    with pytest.raises(_Interrupted):
        run(loss=_InterruptedLoss(2 * run.steps))
    run(identity={"run": "other"})
    (tmp_path / "state.pt").unlink()  # as whoever calls does when it is done
    rest = _InterruptedLoss(2 * run.steps)
    _assert_same(run(loss=rest, network=_network(seed=9)), whole)
    assert rest.calls_left == 0
    assert not (tmp_path / "state.pt.other").exists()


@pytest.mark.parametrize("done", [1, 2])
def test_states_whose_exchange_was_killed_are_both_found(run, tmp_path, done):
    """Three renames make an exchange; a kill comes after one or two of them."""
    whole = run(state_path=tmp_path / "whole.pt")
    for epochs, identity in ((2, "test"), (1, "other")):
        with pytest.raises(_Interrupted):
            run(loss=_InterruptedLoss(epochs * run.steps), identity={"run": identity})
    path, aside, between = (tmp_path / f"state.pt{end}" for end in ("", ".other", ".between"))
    other = path.read_bytes()
    path.replace(between)
    if done == 2:
        aside.replace(path)
    rest = _InterruptedLoss(2 * run.steps)
    _assert_same(run(loss=rest), whole)
    assert rest.calls_left == 0
    assert aside.read_bytes() == other
    assert not between.exists()


def test_a_state_aside_is_never_half_a_state(run, tmp_path):
    """It is moved, not copied: a kill leaves it in the one place or in the other."""
    with pytest.raises(_Interrupted):
        run(loss=_InterruptedLoss(2 * run.steps), identity={"run": "other"})
    with pytest.raises(_Interrupted):
        run(loss=_InterruptedLoss(0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.pt.other"]
    rest = _InterruptedLoss(2 * run.steps)
    run(loss=rest, identity={"run": "other"})
    assert rest.calls_left == 0


@pytest.mark.parametrize("content", [b"", b"nothing of the kind", b"PK\x03\x04"])
def test_what_is_no_state_is_refused(run, tmp_path, content):
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(TrainingError, match=r"state.pt: not a training state .*; remove it to start over"):
        run()


def test_the_state_of_something_else_is_refused(run, tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "state.pt")
    with pytest.raises(TrainingError, match=r"state.pt: not a training state; expected"):
        run()


def test_the_largest_seed_trains(run):
    assert run(_settings(epochs=1), seed=2**32 - 1).history[0].loss > 0


def test_a_changed_batch_size_is_named(run, capsys):
    def identity(settings: TrainingSettings) -> dict[str, Any]:
        return {"settings": settings.to_dict(), "seed": 3}

    before, after = _settings(), _settings(batch_size=8, epochs=5)
    with pytest.raises(_Interrupted):
        run(before, loss=_InterruptedLoss(2 * run.steps), identity=identity(before))
    run(after, identity=identity(after))
    expected = "training settings changed (settings.batch_size was 16, is 8; settings.epochs was 4, is 5)"
    assert expected in capsys.readouterr().err


def test_the_state_holds_no_code(run, tmp_path):
    run()
    assert torch.load(tmp_path / "state.pt", weights_only=True)["epoch"] == 4


def test_the_epoch_with_the_best_validation_is_kept(run):
    states = []

    def judged(network: nn.Module) -> Metrics:
        states.append({name: t.clone() for name, t in network.state_dict().items()})
        return Metrics(top1=[0.5, 0.9, 0.7, 0.8][len(states) - 1], nll=1.0)

    result = run(evaluate=judged)
    assert result.best_epoch == 2
    assert all(torch.equal(result.best[name], states[1][name]) for name in result.best)
    assert all(torch.equal(result.last[name], states[3][name]) for name in result.last)
    assert [record.validation["top1"] for record in result.history] == [0.5, 0.9, 0.7, 0.8]


@pytest.mark.parametrize(
    ("figures", "best_epoch"),
    [
        ([(0.5, 2.0), (0.9, 3.0), (0.9, 1.0), (0.9, 2.0)], 3),
        ([(0.9, 1.0), (0.9, 1.0), (0.9, 1.0), (0.9, 1.0)], 1),
        ([(0.0, 9.0), (0.0, 9.5), (0.0, 9.5), (0.0, 9.5)], 1),
    ],
    ids=["lower-nll", "first-of-equals", "never-right"],
)
def test_among_equal_accuracies_the_lower_nll_and_then_the_earlier_epoch_is_kept(run, figures, best_epoch):
    assert run(evaluate=_scripted(*figures)).best_epoch == best_epoch


def test_the_best_epoch_survives_an_interruption(run):
    def stopped(*figures):
        scripted = _scripted(*figures)

        def evaluate(network):
            try:
                return scripted(network)
            except StopIteration:
                raise _Interrupted from None

        return evaluate

    with pytest.raises(_Interrupted):
        run(evaluate=stopped((0.9, 1.0), (0.8, 1.0)))
    result = run(evaluate=_scripted((0.85, 1.0), (0.85, 1.0)))
    assert result.best_epoch == 1
    assert any(not torch.equal(result.best[name], result.last[name]) for name in result.last)


def test_without_validation_the_last_epoch_is_kept(run):
    result = run(evaluate=lambda _: Metrics())
    assert result.best_epoch == 4
    assert all(torch.equal(result.best[name], result.last[name]) for name in result.last)
    assert all(record.validation == {"top1": None, "nll": None} for record in result.history)


def test_the_average_is_what_is_judged_and_kept(run):
    network, judged = _network(), []

    def evaluate(candidate: nn.Module) -> Metrics:
        assert candidate is not network
        judged.append({name: t.clone() for name, t in candidate.state_dict().items()})
        return Metrics(top1=0.5, nll=1.0)

    result = run(_settings(ema_decay=0.9), network=network, evaluate=evaluate)
    assert all(torch.equal(result.last[name], judged[-1][name]) for name in result.last)
    assert not torch.equal(result.last["5.weight"], network[5].weight)


def test_kept_weights_are_copies(run):
    network = _network()
    result = run(network=network)
    before = result.last["5.weight"].clone()
    with torch.no_grad():
        network[5].weight.zero_()
    assert torch.equal(result.last["5.weight"], before)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_names_its_first_step(run, tmp_path, value):
    calls = 0

    def diverging(student, labels, teacher):
        nonlocal calls
        calls += 1
        loss = scratch(student, labels)
        return loss * value if calls > run.steps + 2 else loss

    with pytest.raises(TrainingError, match=rf"not finite at step {run.steps + 2} \(epoch 2\)"):
        run(loss=diverging)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["epoch"] == 1


def test_a_learning_rate_far_too_large_is_an_error_that_says_so(run):
    with pytest.raises(TrainingError, match=r"lower learning_rate \(now 1e\+30\)"):
        run(_settings(learning_rate=1e30))


def test_gradients_of_parts_add_up_to_those_of_the_batch(run, tmp_path):
    """Without batch norm and dropout, which look at the parts alone."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    whole = run(network=copy.deepcopy(plain), state_path=tmp_path / "whole.pt")
    parts = run(_settings(accumulate=5), network=copy.deepcopy(plain))
    for name, tensor in whole.last.items():
        torch.testing.assert_close(parts.last[name], tensor, rtol=1e-4, atol=1e-6)
    assert [r.loss for r in parts.history] == pytest.approx([r.loss for r in whole.history], rel=1e-4)


def test_a_layers_steps_are_as_long_as_its_rate(run, tmp_path):
    """Without momentum and decay a step is the rate times the gradient; small ones have equal gradients."""
    settings = {"epochs": 1, "momentum": 0, "weight_decay": 0, "warmup_epochs": 0, "learning_rate": 1e-4}
    start, moved = _network().state_dict(), {}
    for decay in (1.0, 0.5):
        path = tmp_path / f"{decay}.pt"
        result = run(_settings(layer_decay=decay, **settings), network=_network(), state_path=path)
        moved[decay] = {name: result.last[name] - start[name] for name in ("0.weight", "5.weight")}
    torch.testing.assert_close(moved[0.5]["0.weight"], moved[1.0]["0.weight"] / 2, rtol=2e-2, atol=1e-6)
    torch.testing.assert_close(moved[0.5]["5.weight"], moved[1.0]["5.weight"], rtol=2e-2, atol=1e-6)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_frozen_network_changes_in_its_last_layer_alone(run, ema_decay):
    before = _network().state_dict()
    result = run(_settings(freeze=True, ema_decay=ema_decay), network=_network())
    changed = {name for name in before if not torch.equal(result.last[name], before[name])}
    assert changed == {"5.weight", "5.bias"}
    assert result.history[-1].loss < result.history[0].loss


def test_a_frozen_run_goes_on_bit_for_bit(run, tmp_path):
    whole = run(_settings(freeze=True), state_path=tmp_path / "whole.pt")
    with pytest.raises(_Interrupted):
        run(_settings(freeze=True), loss=_InterruptedLoss(2 * run.steps + 1))
    _assert_same(run(_settings(freeze=True)), whole)


class _TwoHeads(nn.Module):
    """Gives auxiliary logits in training, as Inception does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.auxiliary, self.main = nn.Linear(64, 3), nn.Linear(64, 3)

    def forward(self, images):
        x = images.flatten(1)
        main = self.main(x)
        return InceptionOutputs(main, self.auxiliary(x)) if self.training else main


def test_auxiliary_logits_are_in_the_loss_by_their_weight(run):
    """A step of SGD is the rate times the weight times the gradient of each head's own loss."""
    seen = []

    def recorded(student, labels, teacher):
        value = scratch(student, labels)
        seen.append(float(value.detach()))
        return value

    plain = {"epochs": 1, "momentum": 0, "weight_decay": 0, "clip_norm": 0}
    result = run(_settings(**plain), network=_TwoHeads(), loss=recorded)
    main, auxiliary = seen[::2], seen[1::2]
    expected = sum(a + 0.4 * b for a, b in zip(main, auxiliary, strict=True)) / run.steps
    assert result.history[0].loss == pytest.approx(expected, rel=1e-5)
    assert result.history[0].validation["top1"] is not None
    assert not torch.equal(result.last["auxiliary.weight"], _TwoHeads().auxiliary.weight)


def test_clipped_gradients_take_small_steps(run):
    network = _network()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    settings = _settings(epochs=1, clip_norm=1e-6, momentum=0, weight_decay=0, learning_rate=1.0)
    run(settings, network=network)
    moved = sum(float((p.detach() - before[name]).norm()) for name, p in network.named_parameters())
    assert 0 < moved < 1e-4


def test_a_compiled_network_trains_and_is_judged_compiled(run, tmp_path, monkeypatch):
    wrapped = []
    compile_it = torch.compile

    def by_the_eager_backend(network):
        wrapped.append(network)
        return compile_it(network, backend="eager")

    monkeypatch.setattr(torch, "compile", by_the_eager_backend)
    network = _network()
    compiled = run(_settings(epochs=2, compile=True), network=network)
    assert wrapped == [network]
    plain = run(_settings(epochs=2), state_path=tmp_path / "plain.pt")
    assert list(compiled.last) == list(plain.last)
    assert [r.loss for r in compiled.history] == pytest.approx([r.loss for r in plain.history], rel=1e-4)
    run(_settings(epochs=1, compile=True, ema_decay=0.9), state_path=tmp_path / "average.pt")
    assert len(wrapped) == 3


def test_time_is_told_apart_by_what_took_it(run, monkeypatch):
    right = Loader.epoch

    def slow(self, *arguments, **options):
        for batch in right(self, *arguments, **options):
            time.sleep(0.02)
            yield batch

    monkeypatch.setattr(Loader, "epoch", slow)

    def judge(network):
        time.sleep(0.05)
        return Metrics(top1=0.5, nll=1.0)

    result = run(_settings(epochs=1), evaluate=judge)
    (record,) = result.history
    assert 0.02 * run.steps <= record.data_seconds < record.seconds
    assert record.evaluation_seconds >= 0.05
    assert result.speed["stall_fraction"] == pytest.approx(record.data_seconds / record.seconds)


def test_a_line_of_progress_tells_the_time_that_is_left():
    times = {"data_seconds": 1.0, "images_per_second": 50.0, "skipped_steps": 0}
    figures = {"view": 0, "loss": 1.25, "learning_rate": 0.1, "validation": {}}
    history = [
        EpochRecord(epoch=n, seconds=50.0 * n, evaluation_seconds=10.0, **times, **figures) for n in (1, 2)
    ]
    said = "epoch 2/4: loss 1.2500, 50 samples/s, 1.0% of the time waiting for data"
    # Epochs of 60 and 110 s: two more take 170 s.
    assert describe(history, Metrics(), 4) == f"{said}, 3 min of training left"
    assert describe(history, Metrics(), 2) == said.replace("2/4", "2/2")


def test_the_rate_of_a_run_is_the_median_of_its_epochs(run):
    result = run()
    rates = sorted(record.images_per_second for record in result.history)
    assert rates[0] <= result.speed["images_per_second"] <= rates[-1]
