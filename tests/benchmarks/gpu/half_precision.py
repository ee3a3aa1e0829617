"""Train in fp16 with the loss scaler: skipped first steps must not change the result."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from pipeline.codecs.spec import CodecSpec
from pipeline.core.errors import PipelineError
from pipeline.dump.run import cache_logits
from pipeline.dump.spec import DumpSpec
from pipeline.evaluation.context import RunContext
from pipeline.losses import make_loss
from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.models.architecture import Architecture
from pipeline.models.checkpoint import ModelCard
from pipeline.models.teacher import Teacher
from pipeline.store.reader import LogitStore
from pipeline.training.loop import RunSpec
from pipeline.training.run import train
from pipeline.training.settings import TrainingSettings
from tests.benchmarks.datasets import made_up
from tests.benchmarks.gpu.findings import Findings, Setting
from tests.benchmarks.gpu.machine import bench_of
from tests.benchmarks.small_students import network
from tests.benchmarks.whole_job import VIEWS

CLASSES = 10
# With this scale, the first gradients are infinite, however small the network.
FIRST_SCALE = 2.0**32
ARMS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "fp16": {"precision": "fp16"},
    "fp16, first steps skipped": {"precision": "fp16", "first_scale": FIRST_SCALE},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainer:
    """Trains a small network for each arm.

    Args:
        context: the data and the device.
        folder: folder for states and the dump.
        epochs: per run.
        batch_size: images per step.
    """

    context: RunContext
    folder: Path
    epochs: int
    batch_size: int

    @property
    def card(self) -> ModelCard:
        """The network's card."""
        data = self.context.data
        return ModelCard(
            architecture=Architecture(name="plain_net", num_classes=CLASSES),
            preprocessing=Preprocessing(size=data.train.shapes[0, 0].item(), **data.statistics),
            classes=data.classes,
        )

    def teacher(self) -> Teacher:
        """Return a teacher trained on the labels, in fp32."""
        net, _ = self._trained("scratch", None, "fp32")
        return Teacher(name="plain_net", network=net.eval(), card=self.card, precision="fp32")

    def dump(self, teacher: Teacher) -> LogitStore:
        """Return the teacher's logits."""
        path = self.folder / "main.zarr"
        spec = DumpSpec(views=VIEWS, view_count=2, codec=CodecSpec(name="fp16"), allow_poor_teacher=True)
        cache_logits(self.context, teacher, spec, path)
        return LogitStore.open(path)

    def arm(self, store: LogitStore, precision: str, first_scale: float | None = None) -> dict[str, float]:
        """Train a student from a store; return its losses, its top-1, and the number of skipped steps."""
        with watched_scaler(first_scale) as skipped:
            net, losses = self._trained("kd", store, precision)
        top1 = self.context.evaluate(net, self.card.preprocessing, self.context.data.test).top1
        return {
            "first_loss": losses[0],
            "final_loss": losses[-1],
            "top1": top1 or 0.0,
            "skipped_steps": int(torch.stack(skipped).sum()) if skipped else 0,
        }

    def _trained(self, loss: str, store: LogitStore | None, precision: str) -> tuple[Any, list[float]]:
        torch.manual_seed(0)
        net = network(16, 32, 64, stride=2, classes=CLASSES)
        settings = TrainingSettings(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=0.05,
            warmup_epochs=0.5,
            precision=precision,  # type: ignore[arg-type]
        )
        result = train(
            self.context,
            net,
            self.card,
            RunSpec(
                loss=make_loss(loss, {"temperature": 4} if loss == "kd" else {}),
                settings=settings,
                seed=0,
                state_path=self.folder / "run.state",
            ),
            views=VIEWS,
            store=store,
        )
        (self.folder / "run.state").unlink(missing_ok=True)
        net.load_state_dict(result.last)
        return net, [record.loss for record in result.history]


@contextmanager
def watched_scaler(first_scale: float | None) -> Iterator[list[Tensor]]:
    """Yield a list of () bool that tells for each step whether it lowered the scale, i.e. was skipped.

    Args:
        first_scale: initial scale of every new scaler; None keeps the default.
    """
    skipped: list[Tensor] = []
    make, update = GradScaler.__init__, GradScaler.update

    def made(scaler: GradScaler, *given: Any, **named: Any) -> None:
        make(scaler, *given, **(named if first_scale is None else {**named, "init_scale": first_scale}))

    def updated(scaler: GradScaler, *given: Any) -> None:
        before = scaler._scale.clone() if scaler.is_enabled() and scaler._scale is not None else None
        update(scaler, *given)
        if before is not None and scaler._scale is not None:
            skipped.append(scaler._scale < before)

    with patch.object(GradScaler, "__init__", made), patch.object(GradScaler, "update", updated):
        yield skipped


def run(setting: Setting, findings: Findings) -> None:
    """Train each arm from the same dump and compare it with fp32."""
    side = setting.pick(32, 8)
    data = made_up(setting.pick(16_384, 160), side, classes=CLASSES, test=setting.pick(4096, 40))
    context = bench_of(setting, data)
    arms: dict[str, dict[str, float]] = {}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            context=context,
            folder=Path(folder),
            epochs=setting.pick(6, 10),
            batch_size=setting.pick(128, 16),
        )
        store = trainer.dump(trainer.teacher())
        for name, options in ARMS.items():
            try:
                arms[name] = trainer.arm(store, **options)
            except PipelineError as error:
                failed[name] = str(error)
            findings.keep(arms=arms, failed=failed)
    if failed:
        raise RuntimeError("; ".join(f"{name}: {message}" for name, message in failed.items()))
    plain, late = arms["fp32"], arms["fp16, first steps skipped"]
    if not late["skipped_steps"]:
        raise RuntimeError(f"no step was skipped with a first scale of {FIRST_SCALE:g}; expected some")
    told = (
        f"loss {late['final_loss']:.4f} and {plain['final_loss']:.4f}, top-1 {late['top1']:.4f} and "
        f"{plain['top1']:.4f}, {late['skipped_steps']} steps skipped"
    )
    first = plain["first_loss"]
    value = (first - late["final_loss"]) / (first - plain["final_loss"])
    findings.row("half", value, f"{value:.3f}: {told}")
