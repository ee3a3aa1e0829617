"""One supervised loop, for teachers, students and fine-tuning, and the objective of its steps.

Epochs of a `Loader`, a loss, an optimiser; after each epoch the validation split is evaluated and the best
weights are kept. Everything needed to go on is saved after each epoch, and every few minutes inside one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.core.device import naming_memory
from pipeline.core.distributed import SINGLE, Ranks, distributed
from pipeline.core.errors import TrainingError
from pipeline.core.progress import note, track
from pipeline.loading.loader import Batch, Loader
from pipeline.losses import Features, ScheduledLoss
from pipeline.models.auxiliary import weighted_logits
from pipeline.models.heads import WithFeatures, feature_dim, head_of
from pipeline.models.teacher import compiled
from pipeline.tasks.task import Figures
from pipeline.training.failures import naming_epoch, naming_step, require_learning
from pipeline.training.optimizer import learning_rate
from pipeline.training.settings import TrainingSettings
from pipeline.training.state import EpochRecord, RunState, TrainingResult, describe

Evaluate = Callable[[nn.Module], Figures]
_STATE_VERSION = 4
_SEEDS = 1 << 63
_LESS_MEMORY = "raise accumulate, lower batch_size, use precision: bf16, or render elsewhere: --render cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """What makes a run this run.

    Args:
        loss: of (logits, labels, teacher logits), and features if it says so.
        settings: of the optimisation.
        seed: of the order, of dropout and the like.
        state_path: where the state of an unfinished run is kept; removed by the caller when done.
        identity: what else does; a state of another run is not resumed.
        save_seconds: how often the state is saved inside an epoch.
    """

    loss: ScheduledLoss
    settings: TrainingSettings
    seed: int
    state_path: Path
    identity: Mapping[str, Any] = field(default_factory=dict)
    save_seconds: float = 300.0


def fit(
    network: nn.Module,
    loader: Loader,
    spec: RunSpec,
    *,
    device: torch.device,
    evaluate: Evaluate,
    projection: nn.Module | None = None,
    ranks: Ranks = SINGLE,
) -> TrainingResult:
    """Train a network.

    Args:
        network: on the device; its weights are changed.
        loader: the training split, for the run's settings and these ranks.
        spec: what makes the run.
        device: where everything is.
        evaluate: figures on the validation split, unknown ones without a split.
        projection: of a loss of features, on the device; its weights are changed, too.
        ranks: this process among those that train the network together; the first one writes.

    Raises:
        TrainingError: the loss, weights or logits are not finite, no step counted, or processes do not go
            on from the same state.
        ModelError: the network fails.

    """
    settings, state_path = spec.settings, spec.state_path
    run = RunState(network, settings, device, projection, ranks)
    identity = {**spec.identity, "state": _STATE_VERSION}
    _resume(run, state_path, identity, ranks)
    steps = settings.epochs * loader.steps_per_epoch
    with closing(_Training(run, loader, spec.loss, seed=spec.seed, ranks=ranks)) as training:
        judged = training.network if run.judged is training.inner else _as_called(run.judged, settings)
        while run.epoch < settings.epochs:
            for _ in training.epoch(spec.save_seconds):
                run.save(state_path, identity)
            start = time.perf_counter()
            with naming_epoch(run.epoch + 1, run.judged, settings):
                figures = evaluate(judged)
            record = training.record(figures, time.perf_counter() - start)
            run.require_finite()
            run.finish_epoch(record, figures)
            note(describe(record, figures, settings.epochs))
            if run.epoch == settings.epochs:
                require_learning(run.skipped, steps)
            if ranks.is_first:
                run.save(state_path, identity)
    if run.skipped:
        note(f"precision fp16: {run.skipped:,} of {steps:,} steps were skipped: their gradients overflowed")
    return run.result()


def _resume(run: RunState, path: Path, identity: dict[str, Any], ranks: Ranks) -> None:
    """Go on where a run was saved, all processes at the same place."""
    if not ranks.is_first:
        ranks.agree()  # the first one puts the files in order
    run.resume(path, identity, keeps=ranks.is_first)
    if ranks.is_first:
        ranks.agree()
    if not ranks.agree(run.epoch, run.current.step):
        raise TrainingError(
            f"process {ranks.index} goes on after epoch {run.epoch}, step {run.current.step}, others "
            "elsewhere; expected one state for all; run them in the same folder"
        )


class _Training:
    """Steps of a run.

    Args:
        run: its state, which each step changes.
        loader: the training split.
        loss: of (logits, labels, teacher logits), and features if it says so.
        seed: of dropout and the like.
        ranks: this process among those that share each step.
    """

    def __init__(
        self, run: RunState, loader: Loader, loss: ScheduledLoss, *, seed: int, ranks: Ranks
    ) -> None:
        self._run, self._loader, self._seed, self._ranks = run, loader, seed, ranks
        self._objective = Objective(loss, run.projection, ranks)
        self.inner = distributed(self._objective.called(run.network), ranks, run.device)
        self.network = _as_called(self.inner, run.settings)
        self._rate = 0.0

    def close(self) -> None:
        """Leave the network as it was."""
        self._objective.close()

    def epoch(self, save_seconds: float) -> Iterator[None]:
        """Do what is left of the epoch; stop for a moment wherever its state may be saved."""
        run, loader = self._run, self._loader
        current, size = run.current, loader.batch_size
        run.network.train(not run.settings.freeze)
        left = (loader.steps_per_epoch - current.step) * size
        name = f"epoch {run.epoch + 1}/{run.settings.epochs}"
        batches = iter(loader.epoch(run.epoch, first_step=current.step))
        saved = mark = time.perf_counter()
        for _ in track(range(left // size), name, total=left, unit="image", per_item=size):
            with naming_memory(run.device, f"a step of {size} images", _LESS_MEMORY):
                self._step(batches)
            now = time.perf_counter()
            current.step += 1
            current.seconds += now - mark
            mark = now
            is_due = self._ranks.is_first and now - saved >= save_seconds
            if is_due and current.step < loader.steps_per_epoch:
                self._require_finite()
                self._run.require_finite()
                yield
                saved = mark = time.perf_counter()
        next(batches, None)
        self._require_finite()
        # Which waited for the device: its time counts.
        current.seconds += time.perf_counter() - mark

    def record(self, figures: Figures, evaluation_seconds: float) -> EpochRecord:
        """Return the record of an epoch whose steps are done."""
        current, steps = self._run.current, self._loader.steps_per_epoch
        return EpochRecord(
            epoch=self._run.epoch + 1,
            view=self._loader.view(self._run.epoch),
            loss=float(current.loss) / steps,
            learning_rate=self._rate,
            validation=figures.followed,
            seconds=current.seconds,
            data_seconds=current.data_seconds,
            evaluation_seconds=evaluation_seconds,
            images_per_second=steps * self._loader.batch_size / current.seconds,
            skipped_steps=current.skipped,
        )

    def _step(self, batches: Iterator[Batch]) -> None:
        run, current = self._run, self._run.current
        step = run.epoch * self._loader.steps_per_epoch + current.step
        # A function of the step, so that a run that goes on draws what it would have drawn.
        torch.manual_seed(((self._seed * 1_000_003 + step) * 8191 + self._ranks.index) % _SEEDS)
        self._set_learning_rate(step)
        run.optimizer.zero_grad(set_to_none=True)
        run.scale.begin()
        for part in range(self._loader.parts):
            is_last = part == self._loader.parts - 1
            with nullcontext() if is_last else self._without_exchange():
                batch = self._next(batches)
                with naming_step(self._loader):
                    self._backward(batch, step)
        if run.settings.clip_norm:
            run.scale.clip(run.parameters(), run.settings.clip_norm)
        if not run.scale.step():
            current.skipped += 1
        elif run.average:
            run.average.update(run.network, step - run.skipped)

    def _next(self, batches: Iterator[Batch]) -> Batch:
        start = time.perf_counter()
        batch = next(batches)
        self._run.current.data_seconds += time.perf_counter() - start
        return batch

    def _without_exchange(self) -> AbstractContextManager[None]:
        """Leave gradients where they are: those of the step's last part take them along."""
        inner = self.inner
        return inner.no_sync() if isinstance(inner, DistributedDataParallel) else nullcontext()

    def _backward(self, batch: Batch, step: int) -> None:
        """Add a batch's gradients and its share of the step's loss."""
        run, current = self._run, self._run.current
        with torch.autocast(run.device.type, run.settings.autocast, run.settings.precision != "fp32"):
            outputs = self.network(batch.images)
        share = len(batch.rows) / self._loader.batch_size
        loss = self._objective.of(outputs, batch, step / self._loader.steps_per_epoch) * share
        run.scale.backward(loss)
        # Kept on the device: looking at the value would wait for every step.
        value = loss.detach()
        current.loss += value
        bad = (current.bad_step < 0) & ~value.isfinite()
        current.bad_step = torch.where(bad, step, current.bad_step)

    def _set_learning_rate(self, step: int) -> None:
        run = self._run
        self._rate = learning_rate(run.settings, step, self._loader.steps_per_epoch)
        for group in run.optimizer.param_groups:
            group["lr"] = self._rate * group["scale"]

    def _require_finite(self) -> None:
        step, run = int(self._run.current.bad_step), self._run
        if step >= 0:
            raise TrainingError(
                f"the loss is not finite at step {step} (epoch {run.epoch + 1}); expected a number; lower "
                f"learning_rate (now {run.settings.learning_rate:g}) or use precision: fp32"
            )


def _as_called(network: nn.Module, settings: TrainingSettings) -> nn.Module:
    return compiled(network) if settings.compile else network


def make_projection(
    loss: ScheduledLoss, network: nn.Module, teacher_dim: int | None, *, seed: int
) -> nn.Module | None:
    """Return what brings the features of student and teacher together, to be trained; None for nothing.

    Args:
        loss: that may ask for it.
        network: the student.
        teacher_dim: how many features the teacher has.
        seed: of its weights.

    Raises:
        ModelError: the student has no last layer.
    """
    if loss.features is None or loss.features.projection is None or teacher_dim is None:
        return None
    _, head = head_of(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return loss.features.projection(feature_dim(head), teacher_dim)


class Objective:
    """The loss of a batch: of a network's logits, and of what lies before them where it compares features.

    The one place where training treats losses of features otherwise than losses of logits.

    Args:
        loss: of logits and labels, and maybe features.
        projection: of features, or None.
        ranks: this process among those that share each batch.
    """

    def __init__(self, loss: ScheduledLoss, projection: nn.Module | None, ranks: Ranks) -> None:
        self._loss, self._projection, self._ranks = loss, projection, ranks
        self._opened: WithFeatures | None = None

    def called(self, network: nn.Module) -> nn.Module:
        """Return a network as it is to be called, so that it gives what `of` takes; until `close`."""
        if self._loss.features is None:
            return network
        self._opened = WithFeatures(network)
        return self._opened

    def close(self) -> None:
        """Leave the network as it was."""
        if self._opened is not None:
            self._opened.close()

    def of(self, outputs: Any, batch: Batch, epoch: float) -> Tensor:
        """Return the loss () of a whole batch; gradients reach this process's rows of it.

        Args:
            outputs: of the network for this process's images.
            batch: whose images they were.
            epoch: that are done, with the fraction of the one under way.
        """
        outputs, features = (outputs, None) if self._loss.features is None else outputs
        loss, beside = self._loss.at(epoch), self._beside(features, batch)
        losses = []
        for weight, own in weighted_logits(outputs):
            logits = self._whole(own, batch)
            losses.append(weight * loss(logits, batch.labels, batch.teacher_logits, *beside))
            # Auxiliary heads learn as the network's own does, but its features only once.
            beside = [_detached(features) for features in beside]
        return torch.stack(losses).sum()

    def _beside(self, features: Tensor | None, batch: Batch) -> list[Features]:
        if features is None or batch.teacher_features is None:
            return []
        together = batch.teacher_features.beside(self._whole(features, batch))
        return [together if self._projection is None else self._projection(together)]

    def _whole(self, own: Tensor, batch: Batch) -> Tensor:
        return self._ranks.assemble(own.float(), batch.own, len(batch.rows))


def _detached(features: Features) -> Features:
    negatives = None if features.negatives is None else features.negatives.detach()
    student, teacher = features.student.detach(), features.teacher.detach()
    return replace(features, student=student, teacher=teacher, negatives=negatives)
