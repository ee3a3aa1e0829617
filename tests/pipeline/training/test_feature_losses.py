"""Students that learn from the teacher's features, through `train` as the stages call it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.googlenet import GoogLeNetOutputs

from pipeline.core.errors import ConfigError
from pipeline.dump.run import cache_logits
from pipeline.losses import LOSSES, make_loss
from pipeline.modalities.table import views_of
from pipeline.models.architecture import Architecture, build
from pipeline.models.checkpoint import ModelCard
from pipeline.store.reader import LogitStore
from pipeline.training.loop import RunSpec, make_projection
from pipeline.training.run import train
from pipeline.training.settings import TrainingSettings
from pipeline.training.state import RunState, TrainingResult

OF_FEATURES = [name for name, loss in LOSSES.items() if loss.features]
# What the labels and logits add is left out: what is learned is learned of features.
ALONE: dict[str, dict[str, float]] = {
    "crd": {"ce_weight": 0},
    "rkd": {"ce_weight": 0},
    "centre": {"ce_weight": 0, "feature_weight": 1},
}


@pytest.fixture(scope="module")
def stores(context, decided_teacher, make_spec, tmp_path_factory) -> dict[str, LogitStore]:
    folder, made = tmp_path_factory.mktemp("training"), {}
    for codec in ("features", "fp16"):
        cache_logits(
            context, decided_teacher, make_spec(codec=codec, max_kl=1e-5), folder / f"{codec}.zarr"
        )
        made[codec] = LogitStore.open(folder / f"{codec}.zarr")
    return made


@pytest.fixture
def run(stores, context, decided_teacher, tmp_path):
    """Train a small student by a loss; keyword arguments change it."""

    def start(name: str, codec: str = "features", **changed: Any) -> TrainingResult:
        given = {"epochs": 2, "batch_size": 16, "learning_rate": 0.02, "warmup_epochs": 0}
        settings = TrainingSettings(**{**given, **changed.pop("settings", {})})
        architecture = Architecture(name="resnet20", num_classes=3, channels=1, stem_stride=1)
        card = ModelCard(
            architecture=architecture,
            preprocessing=decided_teacher.card.preprocessing,
            classes=decided_teacher.card.classes,
        )
        torch.manual_seed(0)
        return train(
            context,
            changed.pop("network", build)(architecture),
            card,
            RunSpec(
                loss=make_loss(name, changed.pop("loss", {})),
                settings=settings,
                seed=3,
                state_path=tmp_path / changed.get("state", "state.pt"),
            ),
            views=views_of(stores[codec]),
            store=stores[codec],
        )

    return start


@pytest.mark.parametrize("name", OF_FEATURES)
def test_the_term_of_features_alone_is_learned(run, name):
    done = run(name, loss=ALONE[name], settings={"epochs": 12, "learning_rate": 0.05})
    losses = [record.loss for record in done.history]
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize("name", ["crd", "centre"])
def test_a_run_goes_on_with_the_projection_that_it_had(run, monkeypatch, name):
    settings = {"epochs": 3}
    whole = run(name, settings=settings, state="whole.pt")
    finish = RunState.finish_epoch

    def interrupted(self, record, figures):
        finish(self, record, figures)
        if self.epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(RunState, "finish_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(name, settings=settings)
    resumed = run(name, settings=settings)
    assert [record.loss for record in resumed.history] == [record.loss for record in whole.history]
    assert all(torch.equal(tensor, resumed.last[key]) for key, tensor in whole.last.items())


@pytest.mark.parametrize("name", OF_FEATURES)
@pytest.mark.parametrize(
    "settings",
    [{"precision": "bf16"}, {"accumulate": 2, "clip_norm": 1.0}, {"ema_decay": 0.9, "optimizer": "adamw"}],
    ids=["bf16", "parts", "average"],
)
def test_settings_of_training_go_with_losses_of_features(run, name, settings):
    plain, changed = run(name, state="plain.pt"), run(name, settings=settings)
    losses = [record.loss for record in changed.history]
    assert losses != [record.loss for record in plain.history]
    assert all(loss == loss and abs(loss) < 1e4 for loss in losses)


def test_a_run_leaves_no_trace_of_projection_and_hooks(run):
    made: list[nn.Module] = []

    def network(architecture: Architecture) -> nn.Module:
        made.append(build(architecture))
        return made[-1]

    assert list(run("crd", state="crd.pt", network=network).last) == list(run("kd").last)
    assert not any(module._forward_pre_hooks for module in made[0].modules())


class _WithHeads(nn.Module):
    """A small network whose auxiliary heads, if it has them, see in training what its own head sees."""

    def __init__(self, *, auxiliary: bool) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(8, 3) for _ in range(2))
        self.fc, self.auxiliary = nn.Linear(8, 3), auxiliary

    def forward(self, images):
        values = self.trunk(images)
        logits = self.fc(values)
        if not (self.training and self.auxiliary):
            return logits
        return GoogLeNetOutputs(logits, *(head(values) for head in self.heads))


@pytest.mark.parametrize("name", OF_FEATURES)
def test_features_count_once_whatever_auxiliary_heads_there_are(run, name):
    def trunk(auxiliary: bool) -> torch.Tensor:
        done = run(
            name,
            network=lambda _: _WithHeads(auxiliary=auxiliary),
            loss={"ce_weight": 0},
            settings={"epochs": 1},
            state=f"{auxiliary}.pt",
        )
        return done.last["trunk.1.weight"]

    torch.testing.assert_close(trunk(True), trunk(False))


def test_a_projection_is_made_of_its_seed_and_leaves_other_random_numbers_alone():
    loss = make_loss("crd", {})
    network = build(Architecture(name="resnet20", num_classes=3, channels=1, stem_stride=1))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, third = (make_projection(loss, network, 20, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.student.weight, second.student.weight)
    assert not torch.equal(first.student.weight, third.student.weight)
    assert first.student.in_features == 64
    assert make_projection(make_loss("rkd", {}), network, 20, seed=1) is None


@pytest.mark.parametrize("name", OF_FEATURES)
def test_a_dump_of_logits_alone_is_refused(run, name):
    with pytest.raises(
        ConfigError, match=r"needs teacher features, .* codec 'fp16', which keeps logits only"
    ):
        run(name, codec="fp16")
