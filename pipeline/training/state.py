"""The state and history of a run, in memory and on disk.

Holds everything that determines the next step: weights, optimiser, average, epoch and step. Batches are a
pure function of (seed, epoch), random numbers of (seed, step). So a resumed run continues exactly like an
uninterrupted one.
"""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.core.distributed import SINGLE, Ranks
from pipeline.core.errors import TrainingError, is_out_of_memory
from pipeline.core.files import write_tensors
from pipeline.core.hashing import difference
from pipeline.core.progress import duration, note
from pipeline.models.states import StateDict
from pipeline.tasks.task import Figures
from pipeline.training.failures import require_finite_state
from pipeline.training.optimizer import LossScale, WeightAverage, freeze, make_optimizer
from pipeline.training.settings import TrainingSettings

_VALIDATION = "validation_"
# Parts of a run's identity in words; `run.py` and the stages name them.
_PARTS = {
    "card": "network, classes or preprocessing",
    "lesson": "training samples or labels",
    "settings": "training settings",
    "store": "dump",
    "weights": "first weights",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """A line of history.csv.

    Args:
        epoch: epoch, counted from 1.
        view: first view of the epoch.
        loss: mean over the epoch's steps.
        learning_rate: learning rate of the last step.
        validation: the task's figures on the validation split; None for an empty split.
        seconds: training time, without evaluation.
        data_seconds: part of `seconds` spent waiting for batches.
        evaluation_seconds: time of the validation.
        images_per_second: training speed.
        skipped_steps: fp16 steps skipped because gradients overflowed.

    """

    epoch: int
    view: int
    loss: float
    learning_rate: float
    validation: Mapping[str, float | None]
    seconds: float
    data_seconds: float
    evaluation_seconds: float
    images_per_second: float
    skipped_steps: int = 0

    @classmethod
    def columns(cls, followed: Iterable[str]) -> list[str]:
        """Return the columns of history.csv; validation figures are named validation_NAME."""
        names = [field.name for field in fields(cls)]
        place = names.index("validation")
        return [*names[:place], *(f"{_VALIDATION}{name}" for name in followed), *names[place + 1 :]]

    def to_dict(self) -> dict[str, Any]:
        """Return the record as column -> value."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        figures = values.pop("validation").items()
        values |= {f"{_VALIDATION}{name}": figure for name, figure in figures}
        return {name: values[name] for name in self.columns(self.validation)}

    def figures(self) -> dict[str, float]:
        """Return the known figures under the names that trackers show, e.g. `validation/top1`."""
        trained = {
            "loss": self.loss,
            "learning_rate": self.learning_rate,
            "images_per_second": self.images_per_second,
            "skipped_steps": self.skipped_steps,
            "stall_fraction": self.data_seconds / self.seconds,
        }
        known = {name: value for name, value in self.validation.items() if value is not None}
        return {
            **{f"train/{name}": value for name, value in trained.items()},
            **{f"validation/{name}": value for name, value in known.items()},
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> EpochRecord:
        """Return the record from the values of `to_dict`."""
        figures = {name: figure for name, figure in value.items() if name.startswith(_VALIDATION)}
        rest = {name: other for name, other in value.items() if name not in figures}
        validation = {name.removeprefix(_VALIDATION): figure for name, figure in figures.items()}
        return cls(**rest, validation=validation)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """The result of a run.

    Args:
        history: one record per epoch.
        last, best: weights after the last epoch, and after the epoch with the best validation score; both
            are the average's if `ema_decay` is set. Without validation, `best` equals `last`.
        best_epoch: epoch of `best`, counted from 1.

    """

    history: list[EpochRecord]
    last: StateDict
    best: StateDict
    best_epoch: int

    @property
    def skipped_steps(self) -> int:
        """Number of skipped fp16 steps."""
        return sum(record.skipped_steps for record in self.history)

    @property
    def speed(self) -> dict[str, float]:
        """Samples per second (median over epochs), seconds by activity, and the fraction spent waiting."""
        rates = sorted(record.images_per_second for record in self.history)
        seconds, waited = self._total("seconds"), self._total("data_seconds")
        return {
            "images_per_second": rates[len(rates) // 2],
            "seconds": seconds,
            "data_seconds": waited,
            "evaluation_seconds": self._total("evaluation_seconds"),
            "stall_fraction": waited / seconds,
        }

    def _total(self, what: str) -> float:
        return float(sum(getattr(record, what) for record in self.history))


def describe(history: Sequence[EpochRecord], validation: Figures, epochs: int) -> str:
    """Return the last record as one line of progress output, with the time that is left."""
    record = history[-1]
    figures = [f"loss {record.loss:.4f}"]
    if words := str(validation):
        figures.append(f"validation {words}")
    if record.skipped_steps:
        figures.append(f"steps skipped by fp16's loss scale: {record.skipped_steps:,}")
    waited = record.data_seconds / record.seconds
    figures.append(f"{record.images_per_second:,.0f} samples/s, {waited:.1%} of the time waiting for data")
    if record.epoch < epochs:
        spent = sum(one.seconds + one.evaluation_seconds for one in history)
        figures.append(f"{duration(spent / len(history) * (epochs - record.epoch))} of training left")
    return f"epoch {record.epoch}/{epochs}: {', '.join(figures)}"


@dataclass(slots=True, kw_only=True)
class EpochState:
    """The progress of an epoch.

    Args:
        step: number of finished steps.
        loss: () sum over these steps, on the device, because reading it would make the host wait.
        bad_step: () first step of the run with a non-finite loss, or -1; on the device, too.
        skipped: number of skipped fp16 steps.
        seconds, data_seconds: time spent, and its part spent waiting for batches.
    """

    step: int
    loss: Tensor
    bad_step: Tensor
    skipped: int = 0
    seconds: float = 0.0
    data_seconds: float = 0.0

    @classmethod
    def new(cls, device: torch.device) -> EpochState:
        """Return the state of a new epoch."""
        none = torch.full((), -1, device=device)
        return cls(step=0, loss=torch.zeros((), device=device), bad_step=none)


class RunState:
    """A run in progress.

    Args:
        network: network on the device.
        settings: settings of the optimisation.
        device: device of the network.
        projection: projection of features, trained with the network and then discarded; or None.
        ranks: this process among those that train the network together.
    """

    def __init__(
        self,
        network: nn.Module,
        settings: TrainingSettings,
        device: torch.device,
        projection: nn.Module | None = None,
        ranks: Ranks = SINGLE,
    ) -> None:
        self.network, self.settings, self.device = network, settings, device
        self.projection = projection
        if settings.freeze:
            freeze(network)
        self.optimizer = make_optimizer(network, settings, projection)
        trained = [network] if projection is None else [network, projection]
        is_scaled = settings.precision == "fp16"
        self.scale = LossScale(self.optimizer, trained, device=device, enabled=is_scaled, ranks=ranks)
        self.average = WeightAverage(network, settings.ema_decay) if settings.ema_decay else None
        self.epoch, self.current = 0, EpochState.new(device)
        self.history: list[EpochRecord] = []
        self.best: StateDict = {}
        self.best_epoch, self._best_score = 0, (-math.inf, 0.0)

    @property
    def judged(self) -> nn.Module:
        """The network to evaluate and save: the average if there is one."""
        return self.average.network if self.average else self.network

    @property
    def skipped(self) -> int:
        """Number of skipped steps so far."""
        return sum(record.skipped_steps for record in self.history) + self.current.skipped

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield all parameters of network and projection, including frozen ones."""
        yield from self.network.parameters()
        if self.projection:
            yield from self.projection.parameters()

    def require_finite(self) -> None:
        """Refuse non-finite weights, before they are saved or trained further.

        Raises:
            TrainingError: a weight is not finite; the message names it.
        """
        for network in filter(None, (self.network, self.projection)):
            require_finite_state(self.epoch + 1, network, self.settings)

    def finish_epoch(self, record: EpochRecord, figures: Figures) -> None:
        """Add an epoch's record, and keep the weights if they are the best so far.

        Without figures, each epoch counts as better than the last.
        """
        self.history.append(record)
        self.epoch, self.current = self.epoch + 1, EpochState.new(self.device)
        score = figures.score or (float(self.epoch), 0.0)
        if score > self._best_score:
            self._best_score, self.best_epoch = score, self.epoch
            self.best = _copy(self.judged.state_dict())

    def result(self) -> TrainingResult:
        """Return the result of a finished run."""
        return TrainingResult(
            history=self.history,
            last=_copy(self.judged.state_dict()),
            best=self.best,
            best_epoch=self.best_epoch,
        )

    def save(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Write the state for resuming, durably and atomically."""
        content = {
            "identity": json.dumps(identity, sort_keys=True),
            "epoch": self.epoch,
            "current": {name: getattr(self.current, name) for name in EpochState.__slots__},
            "history": [record.to_dict() for record in self.history],
            "network": self.network.state_dict(),
            "projection": self.projection.state_dict() if self.projection else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scale.state_dict(),
            "average": self.average.network.state_dict() if self.average else None,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "best_score": list(self._best_score),
        }
        write_tensors(path, content)

    def _find(self, path: Path, identity: str, *, keeps: bool) -> dict[str, Any] | None:
        """Return a run's saved state; move a different run's state aside, from which it can return."""
        aside = path.with_name(f"{path.name}.other")
        if keeps:
            _finish_exchange(path, aside)
        content = _read(path) if path.exists() else None
        if content is not None and content["identity"] == identity:
            return content
        other = _read(aside) if aside.exists() else None
        fits = other is not None and other["identity"] == identity
        if content is None:
            # The other run finished meanwhile, and its state file was removed.
            if keeps and fits:
                aside.replace(path)
            return other if fits else None
        if keeps and fits:
            _exchange(path, aside)
        elif keeps:
            path.replace(aside)
        said = "resuming this run's saved state" if fits else "starting over"
        differing = _difference(content["identity"], json.loads(identity))
        note(f"{path}: state of a different run, {said}: {differing}; moved to {aside}")
        return other if fits else None

    def resume(self, path: Path, identity: Mapping[str, Any], *, keeps: bool = True) -> None:
        """Resume the saved run with this identity, if any; move a different run's state aside.

        Args:
            path: file of the state.
            identity: identity of this run.
            keeps: whether this process moves files; only one process may.

        Raises:
            TrainingError: the file is not a run's state.
        """
        content = self._find(path, json.dumps(identity, sort_keys=True), keeps=keeps)
        if content is None:
            return
        self.epoch, self.best_epoch = content["epoch"], content["best_epoch"]
        current = content["current"]
        on_device = {name: current[name].to(self.device) for name in ("loss", "bad_step")}
        self.current = EpochState(**{**current, **on_device})
        self.history = [EpochRecord.from_dict(record) for record in content["history"]]
        self.best, self._best_score = content["best"], tuple(content["best_score"])
        self.network.load_state_dict(content["network"])
        if self.projection:
            self.projection.load_state_dict(content["projection"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scale.load_state_dict(content["scaler"])
        if self.average:
            self.average.network.load_state_dict(content["average"])
        step = f", step {self.current.step} of the next" if self.current.step else ""
        note(f"resuming after epoch {self.epoch} of {self.settings.epochs}{step}")


def _exchange(first: Path, second: Path) -> None:
    first.replace(_between(first))
    _finish_exchange(first, second)


def _finish_exchange(first: Path, second: Path) -> None:
    """Finish an exchange of two files that may have been interrupted."""
    between = _between(first)
    if not between.exists():
        return
    if not first.exists() and second.exists():
        second.replace(first)
    between.replace(second)


def _between(first: Path) -> Path:
    return first.with_name(f"{first.name}.between")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        content = str(error).splitlines()[0] if str(error) else type(error).__name__
    if not isinstance(content, dict) or "identity" not in content:
        reason = f" ({content})" if isinstance(content, str) else ""
        raise TrainingError(
            f"{path}: not a training state{reason}; expected the state of an interrupted run; remove it "
            "to start over"
        )
    return content


def _difference(saved: str, identity: Mapping[str, Any]) -> str:
    """Name the parts of a saved identity (JSON) that differ from this one, and the first values."""
    try:
        there = json.loads(saved)
        parts = [name for name in sorted({*there, *identity}) if there.get(name) != identity.get(name)]
        values = difference(there, identity).split("; ")
        told = "; ".join([*values[:2], "…"] if len(values) > 2 else values)
    except (ValueError, TypeError, AttributeError):
        return "it was saved by a different version"
    return f"{', '.join(_PARTS.get(name, name) for name in parts)} changed ({told})"


def _copy(state: StateDict) -> StateDict:
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
