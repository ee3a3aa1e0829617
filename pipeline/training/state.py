"""The state and history of a run: what passes from step to step, and to and from disk.

Everything that decides the next step is here: weights, optimiser, average, and how many steps of which
epoch are done. Batches are a pure function of (seed, epoch), and random numbers of (seed, step), so a run
that goes on sees those that it would have seen.
"""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.core.distributed import SINGLE, Ranks
from pipeline.core.errors import TrainingError, is_out_of_memory
from pipeline.core.files import write_tensors
from pipeline.core.hashing import difference
from pipeline.core.progress import note
from pipeline.models.states import StateDict
from pipeline.tasks.task import Figures
from pipeline.training.failures import require_finite_state
from pipeline.training.optimizer import LossScale, WeightAverage, freeze, make_optimizer
from pipeline.training.settings import TrainingSettings

_VALIDATION = "validation_"


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """A line of history.csv.

    Args:
        epoch: counted from 1.
        view: which view was shown.
        loss: mean over the epoch's steps.
        learning_rate: of the last step.
        validation: figures of the validation split that the task follows; None without one.
        seconds: of the epoch's training, without evaluation.
        data_seconds: of these, in which the loop waited for a batch.
        evaluation_seconds: of validation, after it.
        images_per_second: trained.
        skipped_steps: of half precision, whose gradients overflowed: nothing was learnt in them.

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
        """Return the columns of history.csv; a figure of the validation split is validation_NAME."""
        names = [field.name for field in fields(cls)]
        place = names.index("validation")
        return [*names[:place], *(f"{_VALIDATION}{name}" for name in followed), *names[place + 1 :]]

    def to_dict(self) -> dict[str, Any]:
        """Return the line by its columns."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        figures = values.pop("validation").items()
        values |= {f"{_VALIDATION}{name}": figure for name, figure in figures}
        return {name: values[name] for name in self.columns(self.validation)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> EpochRecord:
        """Return the record that `to_dict` described."""
        figures = {name: figure for name, figure in value.items() if name.startswith(_VALIDATION)}
        rest = {name: other for name, other in value.items() if name not in figures}
        validation = {name.removeprefix(_VALIDATION): figure for name, figure in figures.items()}
        return cls(**rest, validation=validation)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """What a run leaves behind.

    Args:
        history: a record an epoch.
        last, best: weights (of the average, where there is one) after the last epoch, and after the
            epoch with the best score on validation; the last one's where nothing was validated.
        best_epoch: counted from 1.

    """

    history: list[EpochRecord]
    last: StateDict
    best: StateDict
    best_epoch: int

    @property
    def skipped_steps(self) -> int:
        """Steps of half precision in which nothing was learnt."""
        return sum(record.skipped_steps for record in self.history)

    @property
    def speed(self) -> dict[str, float]:
        """Images a second (median over epochs), seconds by what took them, and the share of waiting."""
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


def describe(record: EpochRecord, validation: Figures, epochs: int) -> str:
    """Return a record as a line of progress."""
    figures = [f"loss {record.loss:.4f}"]
    if words := str(validation):
        figures.append(f"validation {words}")
    if record.skipped_steps:
        figures.append(f"steps skipped by fp16's loss scale: {record.skipped_steps:,}")
    waited = record.data_seconds / record.seconds
    figures.append(f"{record.images_per_second:,.0f} images/s, {waited:.1%} of the time waiting for data")
    return f"epoch {record.epoch}/{epochs}: {', '.join(figures)}"


@dataclass(slots=True, kw_only=True)
class EpochState:
    """How far an epoch is.

    Args:
        step: steps that are done.
        loss: () sum over these steps, on the device: looking at it would wait.
        bad_step: () the first of all steps whose loss was not finite, or -1; on the device, too.
        skipped: steps of half precision that did not count.
        seconds, data_seconds: spent, and of these waiting for batches.
    """

    step: int
    loss: Tensor
    bad_step: Tensor
    skipped: int = 0
    seconds: float = 0.0
    data_seconds: float = 0.0

    @classmethod
    def new(cls, device: torch.device) -> EpochState:
        """Return the state of an epoch that begins."""
        none = torch.full((), -1, device=device)
        return cls(step=0, loss=torch.zeros((), device=device), bad_step=none)


class RunState:
    """A run on its way.

    Args:
        network: on the device.
        settings: of the optimisation.
        device: where everything is.
        projection: of features, trained beside the network and then thrown away; None for none.
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
        """The network that is evaluated and kept."""
        return self.average.network if self.average else self.network

    @property
    def skipped(self) -> int:
        """Steps so far that did not count."""
        return sum(record.skipped_steps for record in self.history) + self.current.skipped

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield all that is trained, or could be if it were not frozen."""
        yield from self.network.parameters()
        if self.projection:
            yield from self.projection.parameters()

    def require_finite(self) -> None:
        """Refuse to go on with weights that are not finite, or to save them.

        Raises:
            TrainingError: naming them.
        """
        for network in filter(None, (self.network, self.projection)):
            require_finite_state(self.epoch + 1, network, self.settings)

    def finish_epoch(self, record: EpochRecord, figures: Figures) -> None:
        """Take in an epoch's record, and the weights if they are the best so far.

        Without figures every epoch is better than the one before.
        """
        self.history.append(record)
        self.epoch, self.current = self.epoch + 1, EpochState.new(self.device)
        score = figures.score or (float(self.epoch), 0.0)
        if score > self._best_score:
            self._best_score, self.best_epoch = score, self.epoch
            self.best = _copy(self.judged.state_dict())

    def result(self) -> TrainingResult:
        """Return what a finished run leaves behind."""
        return TrainingResult(
            history=self.history,
            last=_copy(self.judged.state_dict()),
            best=self.best,
            best_epoch=self.best_epoch,
        )

    def save(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Write everything that is needed to go on, durably and at once."""
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
        """Return the state of a run; another one's is kept aside, and comes back when it is asked for."""
        aside = path.with_name(f"{path.name}.other")
        if keeps:
            _finish_exchange(path, aside)
        content = _read(path) if path.exists() else None
        if content is not None and content["identity"] == identity:
            return content
        other = _read(aside) if aside.exists() else None
        fits = other is not None and other["identity"] == identity
        if content is None:
            # The other run was finished since.
            if keeps and fits:
                aside.replace(path)
            return other if fits else None
        if keeps and fits:
            _exchange(path, aside)
        elif keeps:
            path.replace(aside)
        said = "going on with this one's, kept" if fits else "starting anew"
        differing = _difference(content["identity"], json.loads(identity))
        note(f"{path}: state of another run, {said}: {differing}; it is kept as {aside}")
        return other if fits else None

    def resume(self, path: Path, identity: Mapping[str, Any], *, keeps: bool = True) -> None:
        """Go on where a run of this identity was saved, if there is one; another one's is kept aside.

        Args:
            path: of the state.
            identity: of this run.
            keeps: whether it is this process that keeps another run's state.

        Raises:
            TrainingError: the file is not a state.
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
    """Do what is left of an exchange of two files, which may have been killed."""
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
            f"{path}: not the state of a run{reason}; expected what an interrupted run left; remove it to "
            "start anew"
        )
    return content


def _difference(saved: str, identity: Mapping[str, Any]) -> str:
    """Say in what the saved run, its identity as JSON, is another one."""
    try:
        return difference(json.loads(saved), identity)
    except ValueError:
        return "it was saved by another version"


def _copy(state: StateDict) -> StateDict:
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
