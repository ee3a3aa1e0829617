"""One supervised loop, for teachers, students and fine-tuning.

Epochs of a `Loader`, a loss, an optimiser; after each epoch the validation split is evaluated, the best
weights are kept, and everything needed to go on is saved. A run that was stopped resumes at the last
finished epoch and then sees the batches that it would have seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.digests import spec_digest
from pipeline.errors import TrainingError
from pipeline.files import write_atomic
from pipeline.loader import Loader
from pipeline.losses import LossFunction
from pipeline.metrics import Metrics
from pipeline.models.checkpoint import StateDict
from pipeline.progress import note, track
from pipeline.training.optimisation import WeightAverage, learning_rate, make_optimizer
from pipeline.training.settings import TrainingSettings

Evaluate = Callable[[nn.Module], Metrics]


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """A line of history.csv.

    Args:
        epoch: counted from 1.
        view: which view was shown.
        loss: mean over the epoch's steps.
        learning_rate: of the last step.
        validation_top1, validation_nll: None without a validation split.
        seconds: of the epoch's training, without evaluation.
        images_per_second: trained.

    """

    epoch: int
    view: int
    loss: float
    learning_rate: float
    validation_top1: float | None
    validation_nll: float | None
    seconds: float
    images_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """What a run leaves behind.

    Args:
        history: a record an epoch.
        last, best: weights (of the average, where there is one) after the last epoch, and after the
            epoch with the highest validation top-1; the last one's where nothing was validated.
        best_epoch: counted from 1.

    """

    history: list[EpochRecord]
    last: StateDict
    best: StateDict
    best_epoch: int

    @property
    def images_per_second(self) -> float:
        """Median over epochs of the images trained a second."""
        rates = sorted(record.images_per_second for record in self.history)
        return rates[len(rates) // 2]


def fit(
    network: nn.Module,
    loader: Loader,
    loss: LossFunction,
    settings: TrainingSettings,
    *,
    device: torch.device,
    seed: int,
    evaluate: Evaluate | None,
    state_path: Path,
    identity: dict[str, Any],
) -> TrainingResult:
    """Train a network.

    Args:
        network: on the device; its weights are changed.
        loader: the training split.
        loss: of (logits, labels, teacher logits).
        settings: of the optimisation.
        device: where everything is.
        seed: of dropout and the like.
        evaluate: figures on the validation split, or None without one.
        state_path: where the state of an unfinished run is kept; removed by the caller when done.
        identity: everything that makes this run this run; a state of another one is not resumed.

    Raises:
        TrainingError: the loss is not finite.

    """
    run = _Run(network, settings, loader.steps_per_epoch)
    run.resume(state_path, spec_digest(identity))
    while run.epoch < settings.epochs:
        torch.manual_seed(seed * 1_000_003 + run.epoch)
        record = _train_epoch(run, loader, loss, device)
        figures = evaluate(run.averaged) if evaluate else Metrics()
        run.finish_epoch(record, figures)
        run.save(state_path)
    return run.result()


class _Run:
    """The state that passes from epoch to epoch, and to and from disk."""

    def __init__(self, network: nn.Module, settings: TrainingSettings, steps: int) -> None:
        self.network, self.settings, self.steps_per_epoch = network, settings, steps
        self.optimizer = make_optimizer(network, settings)
        self.average = WeightAverage(network, settings.ema_decay) if settings.ema_decay else None
        self.epoch = 0
        self.history: list[EpochRecord] = []
        self.best: StateDict = {}
        self.best_epoch = 0
        self._best_score = (-1.0, 0.0)
        self._identity = ""

    @property
    def averaged(self) -> nn.Module:
        """The network that is judged and kept."""
        return self.average.network if self.average else self.network

    def set_learning_rate(self, step: int) -> float:
        rate = learning_rate(self.settings, step, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def finish_epoch(self, record: EpochRecord, figures: Metrics) -> None:
        record = EpochRecord(
            **{
                **asdict(record),
                "validation_top1": figures.top1,
                "validation_nll": figures.nll,
            }
        )
        self.history.append(record)
        self.epoch += 1
        score = self._score(figures)
        if score > self._best_score:
            self._best_score, self.best_epoch = score, self.epoch
            self.best = _copy(self.averaged.state_dict())
        note(_line(record, self.settings.epochs))

    def _score(self, figures: Metrics) -> tuple[float, float]:
        """Top-1, then likelihood; without validation every epoch beats the one before."""
        if figures.top1 is None or figures.nll is None:
            return float(self.epoch), 0.0
        return figures.top1, -figures.nll

    def save(self, path: Path) -> None:
        content = {
            "identity": self._identity,
            "epoch": self.epoch,
            "history": [asdict(record) for record in self.history],
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.network.state_dict() if self.average else None,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "best_score": list(self._best_score),
        }
        write_atomic(path, lambda file: torch.save(content, file))

    def resume(self, path: Path, identity: str) -> None:
        self._identity = identity
        if not path.exists():
            return
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["identity"] != identity:
            note(f"{path}: state of a run with other parameters, data or teacher; starting anew")
            return
        self.epoch, self.best_epoch = content["epoch"], content["best_epoch"]
        self.history = [EpochRecord(**record) for record in content["history"]]
        self.best, self._best_score = content["best"], tuple(content["best_score"])
        self.network.load_state_dict(content["network"])
        self.optimizer.load_state_dict(content["optimizer"])
        if self.average:
            self.average.network.load_state_dict(content["average"])
        note(f"resuming after epoch {self.epoch} of {self.settings.epochs}")

    def result(self) -> TrainingResult:
        return TrainingResult(
            history=self.history,
            last=_copy(self.averaged.state_dict()),
            best=self.best,
            best_epoch=self.best_epoch,
        )


def _train_epoch(
    run: _Run, loader: Loader, loss_function: LossFunction, device: torch.device
) -> EpochRecord:
    run.network.train()
    first_step = run.epoch * run.steps_per_epoch
    images = run.steps_per_epoch * loader.batch_size
    total = torch.zeros((), device=device)
    bad_step = torch.full((), -1, device=device)
    start = time.perf_counter()
    batches = track(
        loader.epoch(run.epoch),
        f"epoch {run.epoch + 1}/{run.settings.epochs}",
        total=images,
        unit="image",
        per_item=loader.batch_size,
    )
    rate = 0.0
    for step, batch in enumerate(batches, first_step):
        rate = run.set_learning_rate(step)
        with torch.autocast(device.type, torch.bfloat16, run.settings.precision == "bf16"):
            logits = run.network(batch.images)
        loss = loss_function(logits.float(), batch.labels, batch.teacher_logits)
        run.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        run.optimizer.step()
        if run.average:
            run.average.update(run.network, step)
        # Kept on the device: looking at the value would wait for every step.
        value = loss.detach()
        total += value
        bad_step = torch.where((bad_step < 0) & ~value.isfinite(), step, bad_step)
    _require_finite(bad_step, run)
    seconds = time.perf_counter() - start
    return EpochRecord(
        epoch=run.epoch + 1,
        view=loader.view(run.epoch),
        loss=float(total) / run.steps_per_epoch,
        learning_rate=rate,
        validation_top1=None,
        validation_nll=None,
        seconds=seconds,
        images_per_second=images / seconds,
    )


def _require_finite(bad_step: Tensor, run: _Run) -> None:
    step = int(bad_step)
    if step >= 0:
        raise TrainingError(
            f"the loss is not finite at step {step} (epoch {run.epoch + 1}); expected a number; lower "
            f"learning_rate (now {run.settings.learning_rate:g}) or use precision: fp32"
        )


def _copy(state: StateDict) -> StateDict:
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


def _line(record: EpochRecord, epochs: int) -> str:
    validated = (
        ""
        if record.validation_top1 is None
        else f", validation top-1 {record.validation_top1:.4f} nll {record.validation_nll:.4f}"
    )
    return (
        f"epoch {record.epoch}/{epochs}: loss {record.loss:.4f}{validated}, "
        f"{record.images_per_second:,.0f} images/s"
    )
