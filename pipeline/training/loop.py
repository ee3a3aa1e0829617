"""The supervised loop for teachers, students and fine-tuning, and the objective of a step.

Runs epochs of a `Loader` with a loss and an optimiser. After each epoch, the validation split is evaluated
and the best weights are kept. The state for resuming is saved after each epoch, and every few minutes
during an epoch.
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

from pipeline.core.device import RENDER_ON_CPU, naming_memory
from pipeline.core.distributed import SINGLE, Ranks, distributed
from pipeline.core.errors import TrainingError
from pipeline.core.progress import note, track
from pipeline.loading.loader import Batch, Loader
from pipeline.losses import Features, ScheduledLoss
from pipeline.losses.settings import LossFunction
from pipeline.models.auxiliary import weighted_logits
from pipeline.models.heads import WithFeatures, feature_dim, head_of
from pipeline.models.teacher import compiled
from pipeline.tasks.task import Figures
from pipeline.tracking.log import RunLog
from pipeline.training.failures import (
    naming_epoch,
    naming_step,
    require_learning,
    tell_without_loss,
)
from pipeline.training.optimizer import learning_rate
from pipeline.training.settings import TrainingSettings
from pipeline.training.state import EpochRecord, RunState, TrainingResult, describe

Evaluate = Callable[[nn.Module], Figures]
_STATE_VERSION = 4
_SEEDS = 1 << 63
_LESS_MEMORY = "raise accumulate, lower batch_size, or use precision: bf16"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """The specification of a run.

    Args:
        loss: loss of (logits, labels, teacher logits), and of features if it asks for them.
        settings: settings of the optimisation.
        seed: seed of the order, of dropout etc.
        state_path: file for the state of an unfinished run; the caller removes it at the end.
        identity: further values that identify the run; a state with a different identity is not resumed.
        save_seconds: time between saved states during an epoch.
        log: trackers of the run, told of its begin and of each epoch; the caller ends them.
    """

    loss: ScheduledLoss
    settings: TrainingSettings
    seed: int
    state_path: Path
    identity: Mapping[str, Any] = field(default_factory=dict)
    save_seconds: float = 300.0
    log: RunLog = field(default_factory=RunLog)


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
        network: network on the device; its weights are changed.
        loader: loader of the training split, for the run's settings and these ranks.
        spec: specification of the run.
        device: device of network and batches.
        evaluate: returns figures on the validation split, unknown ones if the split is empty.
        projection: of a feature loss, or of outputs, on the device; its weights are changed, too.
        ranks: this process among those that train the network together; the first one writes.

    Raises:
        TrainingError: the loss, weights or logits are not finite, every step was skipped, or processes
            resume from different states.
        ModelError: the network fails.
        ConfigError: a tracker cannot start.

    """
    settings, state_path = spec.settings, spec.state_path
    run = RunState(network, settings, device, projection, ranks)
    identity = {**spec.identity, "state": _STATE_VERSION}
    _resume(run, state_path, identity, ranks)
    spec.log.begin(identity, run.epoch)
    steps = settings.epochs * loader.steps_per_epoch
    with closing(_Training(run, loader, spec.loss, seed=spec.seed, ranks=ranks)) as training:
        # If the trained network itself is evaluated, its compiled form is reused.
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
            note(describe(run.history, figures, settings.epochs))
            tell_without_loss([record.loss for record in run.history], settings.epochs)
            spec.log.epoch(record.epoch, record.figures())
            if run.epoch == settings.epochs:
                require_learning(run.skipped, steps)
            if ranks.is_first:
                run.save(state_path, identity)
    if run.skipped:
        note(f"precision fp16: skipped {run.skipped:,} of {steps:,} steps with overflowing gradients")
    return run.result()


def _resume(run: RunState, path: Path, identity: dict[str, Any], ranks: Ranks) -> None:
    """Resume a saved run, with all processes at the same step."""
    # `agree` is a barrier here: the first process tidies the files before others read them.
    if not ranks.is_first:
        ranks.agree()
    run.resume(path, identity, keeps=ranks.is_first)
    if ranks.is_first:
        ranks.agree()
    if not ranks.agree(run.epoch, run.current.step):
        raise TrainingError(
            f"process {ranks.index} resumes after epoch {run.epoch}, step {run.current.step}, but other "
            "processes resume elsewhere; expected one shared state; run all processes in the same folder"
        )


class _Training:
    """The steps of a run.

    Args:
        run: state of the run, changed by each step.
        loader: loader of the training split.
        loss: loss of (logits, labels, teacher logits), and of features if it asks for them.
        seed: seed of dropout etc.
        ranks: this process among those that share each step.
    """

    def __init__(
        self, run: RunState, loader: Loader, loss: ScheduledLoss, *, seed: int, ranks: Ranks
    ) -> None:
        self._run, self._loader, self._seed, self._ranks = run, loader, seed, ranks
        self._objective = Objective(loss, run.projection, ranks)
        # Layers, inside out: network, features, gradient exchange, torch.compile.
        self.inner = distributed(self._objective.called(run.network), ranks, run.device)
        self.network = _as_called(self.inner, run.settings)
        self._rate = 0.0

    def close(self) -> None:
        """Restore the network."""
        self._objective.close()

    def epoch(self, save_seconds: float) -> Iterator[None]:
        """Run the remaining steps of the epoch; yield whenever its state may be saved."""
        run, loader = self._run, self._loader
        current, size = run.current, loader.batch_size
        run.network.train(not run.settings.freeze)
        left = (loader.steps_per_epoch - current.step) * size
        name = f"epoch {run.epoch + 1}/{run.settings.epochs}"
        batches = iter(loader.epoch(run.epoch, first_step=current.step))
        saved = mark = time.perf_counter()
        for _ in track(range(left // size), name, total=left, unit="sample", per_item=size, part="epoch"):
            with naming_memory(run.device, f"a step of {size} samples", _LESS_MEMORY, RENDER_ON_CPU):
                self._step(batches)
            now = time.perf_counter()
            current.step += 1
            current.seconds += now - mark
            mark = now
            is_due = self._ranks.is_first and now - saved >= save_seconds
            # At the last step, `fit` saves the state after evaluation instead.
            if is_due and current.step < loader.steps_per_epoch:
                self._require_finite()
                self._run.require_finite()
                yield
                saved = mark = time.perf_counter()
        # Runs the loader to its end, so that its prefetch slots return to the queue.
        next(batches, None)
        self._require_finite()
        # `_require_finite` waited for the device: queued steps belong to the epoch's time.
        current.seconds += time.perf_counter() - mark

    def record(self, figures: Figures, evaluation_seconds: float) -> EpochRecord:
        """Return the record of a finished epoch."""
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
        # A function of (seed, step, process), so that a resumed run draws the same dropout masks. Two
        # primes keep the three apart: up to 8,191 processes, and 1,000,003 steps per seed.
        torch.manual_seed(((self._seed * 1_000_003 + step) * 8191 + self._ranks.index) % _SEEDS)
        self._set_learning_rate(step)
        run.optimizer.zero_grad(set_to_none=True)
        run.scale.begin()
        # Gradients of all parts add up before the one optimiser step. Under `no_sync`, processes exchange
        # them in the last part only: one exchange per step instead of one per part.
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
        """Skip the gradient exchange of a part; the exchange of the last part covers all parts."""
        inner = self.inner
        return inner.no_sync() if isinstance(inner, DistributedDataParallel) else nullcontext()

    def _backward(self, batch: Batch, step: int) -> None:
        """Add a batch's gradients, and its share of the step's loss."""
        run, current = self._run, self._run.current
        with torch.autocast(run.device.type, run.settings.autocast, run.settings.precision != "fp32"):
            outputs = self.network(batch.images)
        # Losses are means over their part's rows. E.g. 128 rows in parts of 42, 43 and 43 get the weights
        # 42/128, 43/128 and 43/128, so that the sum is the mean over the step.
        share = len(batch.rows) / self._loader.batch_size
        loss = self._objective.of(outputs, batch, step / self._loader.steps_per_epoch) * share
        run.scale.backward(loss)
        # Kept on the device: reading the value would make the host wait in every step.
        value = loss.detach()
        current.loss += value
        # Remembers the first bad step without a branch on the host; `_require_finite` reads it later.
        bad = (current.bad_step < 0) & ~value.isfinite()
        current.bad_step = torch.where(bad, step, current.bad_step)

    def _set_learning_rate(self, step: int) -> None:
        run = self._run
        self._rate = learning_rate(run.settings, step, self._loader.steps_per_epoch)
        for group in run.optimizer.param_groups:
            # `scale` is the layer's factor from `rate_scales`.
            group["lr"] = self._rate * group["scale"]

    def _require_finite(self) -> None:
        step, run = int(self._run.current.bad_step), self._run
        if step >= 0:
            raise TrainingError(
                f"the loss is not finite at step {step} (epoch {run.epoch + 1}); expected a finite "
                f"number; lower learning_rate (now {run.settings.learning_rate:g}) or use precision: fp32"
            )


def _as_called(network: nn.Module, settings: TrainingSettings) -> nn.Module:
    return compiled(network) if settings.compile else network


def make_projection(
    loss: ScheduledLoss, network: nn.Module, teacher_dim: int | None, *, seed: int
) -> nn.Module | None:
    """Return a trainable projection between student and teacher features, or None if the loss needs none.

    Args:
        loss: the loss.
        network: the student.
        teacher_dim: number of teacher features (Dt), or None.
        seed: seed of the projection's weights.

    Raises:
        ModelError: the student has no last layer.
    """
    if loss.features is None or loss.features.projection is None or teacher_dim is None:
        return None
    _, head = head_of(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return loss.features.projection(feature_dim(head), teacher_dim)


def make_output_projection(loss: ScheduledLoss, widths: tuple[int, int], *, seed: int) -> nn.Module | None:
    """Return a trainable linear layer from the student's outputs to the teacher's, or to codewords.

    None if the loss takes none, or if both have as many outputs.

    Args:
        loss: the loss.
        widths: number of the student's outputs, and of the teacher's or of all codewords.
        seed: seed of the layer's weights.
    """
    ours, theirs = widths
    if not loss.projects or (ours == theirs and not loss.reads_codes):
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(ours, theirs)


class Objective:
    """The loss of a batch, of logits and optionally of features.

    Only this class distinguishes feature losses from logit losses.

    Args:
        loss: loss of logits and labels, and of features if it asks for them.
        projection: projection of features or, if the loss says so, of outputs; or None.
        ranks: this process among those that share each batch.
    """

    def __init__(self, loss: ScheduledLoss, projection: nn.Module | None, ranks: Ranks) -> None:
        self._loss, self._projection, self._ranks = loss, projection, ranks
        self._opened: WithFeatures | None = None

    def called(self, network: nn.Module) -> nn.Module:
        """Return the network, wrapped if the loss needs features, for outputs to `of`; until `close`."""
        if self._loss.features is None:
            return network
        self._opened = WithFeatures(network)
        return self._opened

    def close(self) -> None:
        """Restore the network."""
        if self._opened is not None:
            self._opened.close()

    def of(self, outputs: Any, batch: Batch, epoch: float) -> Tensor:
        """Return the loss () of a whole batch; gradients reach this process's rows only.

        Args:
            outputs: the network's outputs for this process's images.
            batch: the batch of these images.
            epoch: number of epochs done, with a fraction, e.g. 2.5 half-way through the third.
        """
        outputs, features = (outputs, None) if self._loss.features is None else outputs
        loss, beside = self._loss.at(epoch), self._beside(features, batch)
        losses = []
        for weight, own in weighted_logits(outputs):
            if self._loss.row_wise:
                value = self._of_own_rows(loss, own, batch)
            else:
                # (b, C) of this process -> (B, C) of all: the loss compares rows with each other.
                logits = self._whole(own, batch)
                if self._projection is not None and self._loss.projects:
                    logits = self._projection(logits)
                value = loss(logits, batch.labels, batch.teacher_logits, *beside)
            losses.append(weight * value)
            # Features enter the first, main head's loss with gradients; auxiliary heads must not add more.
            beside = [_detached(features) for features in beside]
        return torch.stack(losses).sum()

    def _of_own_rows(self, loss: LossFunction, own: Tensor, batch: Batch) -> Tensor:
        """Return the loss () of a whole batch from each process's rows: no process holds all of them."""
        value = loss(own.float(), batch.labels, batch.teacher_logits)
        if self._ranks.count == 1:
            return value
        # A mean over b of B rows. Of 6 rows, ranks hold 4 and 2, with means 0.5 and 0.8: the batch's loss
        # is 0.5 * 4 / 6 + 0.8 * 2 / 6 = 0.6. The total's gradient is multiplied by the number of processes,
        # and `DistributedDataParallel` averages it: together the sum that the whole batch's loss needs.
        return self._ranks.total(value * (len(own) / len(batch.rows)))

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
