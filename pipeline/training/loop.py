"""One supervised loop, for teachers, students and fine-tuning.

Epochs of a `Loader`, a loss, an optimiser; after each epoch the validation split is evaluated and the best
weights are kept. Everything needed to go on is saved after each epoch, and every few minutes inside one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from pipeline.digests import spec_digest
from pipeline.errors import TrainingError
from pipeline.loader import Batch, Loader
from pipeline.losses import LossFunction
from pipeline.metrics import Metrics
from pipeline.progress import note, track
from pipeline.training.history import EpochRecord, TrainingResult, describe
from pipeline.training.optimisation import learning_rate
from pipeline.training.settings import TrainingSettings
from pipeline.training.state import RunState

Evaluate = Callable[[nn.Module], Metrics]
SAVE_SECONDS = 300.0


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
    save_seconds: float = SAVE_SECONDS,
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
        save_seconds: how often the state is saved inside an epoch.

    Raises:
        TrainingError: the loss is not finite.

    """
    run, name = RunState(network, settings, device), spec_digest(identity)
    run.resume(state_path, name)
    training = _Training(run, loader, loss)
    judged = compiled(run.judged, settings) if run.average else training.network
    while run.epoch < settings.epochs:
        run.seed(seed)
        for _ in training.epoch(save_seconds):
            run.save(state_path, name)
        start = time.perf_counter()
        figures = evaluate(judged) if evaluate else Metrics()
        record = training.record(figures, time.perf_counter() - start)
        run.finish_epoch(record, figures)
        note(describe(record, settings.epochs))
        run.save(state_path, name)
    return run.result()


class _Training:
    """Steps of a run.

    Args:
        run: its state, which each step changes.
        loader: the training split.
        loss: of (logits, labels, teacher logits).
    """

    def __init__(self, run: RunState, loader: Loader, loss: LossFunction) -> None:
        self._run, self._loader, self._loss = run, loader, loss
        self.network = compiled(run.network, run.settings)
        self._rate = 0.0

    def epoch(self, save_seconds: float) -> Iterator[None]:
        """Do what is left of the epoch; stop for a moment wherever its state may be saved."""
        run, loader = self._run, self._loader
        current, size = run.current, loader.batch_size
        run.network.train()
        left = (loader.steps_per_epoch - current.step) * size
        name = f"epoch {run.epoch + 1}/{run.settings.epochs}"
        batches = iter(loader.epoch(run.epoch, first_step=current.step))
        progress = track(range(left // size), name, total=left, unit="image", per_item=size)
        saved = mark = time.perf_counter()
        for _ in progress:
            batch = next(batches)
            arrived = time.perf_counter()
            self._step(batch)
            now = time.perf_counter()
            current.step += 1
            current.data_seconds += arrived - mark
            current.seconds += now - mark
            mark = now
            if now - saved >= save_seconds and current.step < loader.steps_per_epoch:
                self._require_finite()
                yield
                saved = mark = time.perf_counter()
        next(batches, None)
        self._require_finite()
        # Which waited for the device: its time counts.
        current.seconds += time.perf_counter() - mark

    def record(self, figures: Metrics, evaluation_seconds: float) -> EpochRecord:
        """Return the record of an epoch whose steps are done."""
        current, steps = self._run.current, self._loader.steps_per_epoch
        return EpochRecord(
            epoch=self._run.epoch + 1,
            view=self._loader.view(self._run.epoch),
            loss=float(current.loss) / steps,
            learning_rate=self._rate,
            validation_top1=figures.top1,
            validation_nll=figures.nll,
            seconds=current.seconds,
            data_seconds=current.data_seconds,
            evaluation_seconds=evaluation_seconds,
            images_per_second=steps * self._loader.batch_size / current.seconds,
        )

    def _step(self, batch: Batch) -> None:
        run, current = self._run, self._run.current
        step = run.epoch * self._loader.steps_per_epoch + current.step
        self._set_learning_rate(step)
        run.optimizer.zero_grad(set_to_none=True)
        for part in batch.split(run.settings.accumulate):
            self._backward(part, len(part.rows) / len(batch.rows), step)
        if run.settings.clip_norm:
            run.scaler.unscale_(run.optimizer)
            nn.utils.clip_grad_norm_(run.network.parameters(), run.settings.clip_norm)
        run.scaler.step(run.optimizer)
        run.scaler.update()
        if run.average:
            run.average.update(run.network, step)

    def _backward(self, part: Batch, share: float, step: int) -> None:
        """Add a part's gradients and its share of the loss."""
        run, current = self._run, self._run.current
        with torch.autocast(run.device.type, run.settings.autocast, run.settings.precision != "fp32"):
            logits = self.network(part.images)
        loss = self._loss(logits.float(), part.labels, part.teacher_logits) * share
        run.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        # Kept on the device: looking at the value would wait for every step.
        value = loss.detach()
        current.loss += value
        bad = (current.bad_step < 0) & ~value.isfinite()
        current.bad_step = torch.where(bad, step, current.bad_step)

    def _set_learning_rate(self, step: int) -> None:
        run = self._run
        self._rate = learning_rate(run.settings, step, self._loader.steps_per_epoch)
        for group in run.optimizer.param_groups:
            group["lr"] = self._rate

    def _require_finite(self) -> None:
        step, run = int(self._run.current.bad_step), self._run
        if step >= 0:
            raise TrainingError(
                f"the loss is not finite at step {step} (epoch {run.epoch + 1}); expected a number; lower "
                f"learning_rate (now {run.settings.learning_rate:g}) or use precision: fp32"
            )


def compiled(network: nn.Module, settings: TrainingSettings) -> nn.Module:
    """Return a network as it is to be called; it shares its weights."""
    if not settings.compile:
        return network
    return cast(nn.Module, torch.compile(network))
