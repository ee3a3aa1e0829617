"""Outputs of training: metrics.json, history.csv and checkpoints, written by one process at a time."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.distributed import Ranks
from pipeline.core.errors import TrainingError
from pipeline.core.files import write_bytes, write_json
from pipeline.models.checkpoint import ModelCard, save_checkpoint
from pipeline.report.metrics import with_digests
from pipeline.store.lock import gate
from pipeline.tasks.task import Figures
from pipeline.tracking.log import RunLog
from pipeline.tracking.tracker import TrackedRun
from pipeline.training.state import EpochRecord, TrainingResult
from stages import paths

# Long enough for a process that is just ending. Stores and prepared data use 20 s, since they are locked
# briefly or shared. A run is locked for hours, so a second start is refused at once.
WAIT_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """The files of a run.

    Args:
        name: of the run.
        checkpoint: of the best epoch; the checkpoint of the last epoch is beside it.
    """

    name: str
    checkpoint: Path

    @property
    def state_path(self) -> Path:
        """File of the training state while the run is unfinished."""
        return paths.STATE / f"{self.name}.pt"

    @contextmanager
    def held(self, ranks: Ranks) -> Iterator[None]:
        """Lock this run against other processes.

        The empty lock file in runs/.state stays. If it were removed, one process could hold the removed
        file and another a new file of the same name.

        Args:
            ranks: this process among those that train the run together; the first holds the lock for all.

        Raises:
            LockedError: another process trains this run.
        """
        if not ranks.is_first:
            yield
            return
        with gate(paths.STATE / self.name, WAIT_SECONDS):
            yield

    def log(self, trackers: Sequence[str], parameters: Mapping[str, Any], ranks: Ranks) -> RunLog:
        """Return the run's trackers, not yet started; none in any process but the first.

        Args:
            trackers: their names.
            parameters: of the run, nested plain values.
            ranks: this process among those that train the run together.
        """
        run = TrackedRun(name=self.name, folder=paths.LOGS, parameters=parameters)
        ids = paths.STATE / f"{self.name}.trackers.json"
        return RunLog(trackers if ranks.is_first else (), run, ids)

    def write_checkpoints(self, result: TrainingResult, card: ModelCard) -> None:
        """Write the weights of the best and of the last epoch."""
        save_checkpoint(self.checkpoint, result.best, card)
        save_checkpoint(self._last, result.last, card)

    def write_run(self, metrics: dict[str, Any], history: list[EpochRecord], validation: Figures) -> None:
        """Write the run's metrics.json and history.csv; the metrics come last.

        Args:
            metrics: of the run.
            history: one record per epoch; empty for a model that was not trained.
            validation: figures of the final model; decides the columns.

        Raises:
            TrainingError: a figure is not finite.
        """
        require_numbers(self.name, metrics)
        text = io.StringIO()
        table = csv.DictWriter(text, EpochRecord.columns(validation.followed), lineterminator="\n")
        table.writeheader()
        table.writerows(record.to_dict() for record in history)
        write_bytes(self._history, text.getvalue().encode())
        write_json(self._metrics, with_digests(metrics, text.getvalue()))

    def finish(self) -> None:
        """Remove the training state after the results are written."""
        self.state_path.unlink(missing_ok=True)

    @property
    def _last(self) -> Path:
        return self.checkpoint.with_suffix(".last.pt")

    @property
    def _history(self) -> Path:
        return paths.RUNS / self.name / "history.csv"

    @property
    def _metrics(self) -> Path:
        return paths.RUNS / self.name / "metrics.json"


def main_figure(followed: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return the main figure of the validation split under its name in metrics.json."""
    name, value = next(iter(followed.items()))
    return {f"validation_{name}": value}


def test_figures(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers among the values under the names that trackers show, e.g. `test/top1`."""
    numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
    return {f"test/{name}": value for name, value in numbers.items()}


def require_numbers(name: str, metrics: dict[str, Any]) -> None:
    """Refuse figures that JSON cannot represent.

    Args:
        name: of the run.
        metrics: its figures.

    Raises:
        TrainingError: naming the first figure that is NaN or infinite.
    """
    for key, value in metrics.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise TrainingError(
                f"{name}: {key} is {value}; expected a finite number; lower learning_rate, set precision: "
                "fp32, or use different weights"
            )
