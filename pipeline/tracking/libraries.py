"""Trackers through their own libraries, and the one that writes CSV files.

Each library is imported when its tracker starts. None of them sends anything by itself: TensorBoard and CSV
write files, MLflow a local database, W&B an offline run. MLflow and W&B follow the user's settings of
theirs, e.g. MLFLOW_TRACKING_URI or WANDB_MODE=online, which may name a server.
"""

from __future__ import annotations

import csv
import io
import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.core.errors import bounded
from pipeline.core.files import write_bytes
from pipeline.core.progress import note
from pipeline.tracking.tracker import PROJECT, TrackedRun, flat

# Limits of MLflow: 100 parameters per request, 250 letters of these in a name, 6,000 in a value.
_AT_ONCE, _LONGEST_NAME, _LONGEST = 100, 250, 5000
_UNUSUAL = re.compile(r"[^A-Za-z0-9_\-. /]")


class CsvTracker:
    """A table `csv/RUN.csv`, one line per finished epoch; complete after each epoch.

    Parameters and test figures are in the run's `metrics.json`.

    Args:
        run: the run to record.
    """

    def __init__(self, run: TrackedRun) -> None:
        self.id = run.name
        self._path = run.folder / "csv" / f"{run.name}.csv"
        self._rows: list[dict[str, Any]] = []
        if run.continues is not None and self._path.exists():
            # A run that was killed after the table was written repeats its last epoch.
            rows = list(csv.DictReader(io.StringIO(self._path.read_text())))
            self._rows = [row for row in rows if int(row["epoch"]) <= run.epoch]

    def epoch(self, number: int, figures: Mapping[str, float]) -> None:
        """Write the table with one more line."""
        self._rows.append({"epoch": number, **figures})
        names = dict.fromkeys(name for row in self._rows for name in row)
        text = io.StringIO()
        table = csv.DictWriter(text, list(names), lineterminator="\n")
        table.writeheader()
        table.writerows(self._rows)
        write_bytes(self._path, text.getvalue().encode())

    def end(self, figures: Mapping[str, float] | None) -> None:
        """Do nothing: the table is complete after each epoch."""


class TensorBoardTracker:
    """Event files in `tensorboard/RUN`, for `tensorboard --logdir`.

    Parameters are a text, test figures are scalars at the last epoch.

    Args:
        run: the run to record.
    """

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.id, self._epoch = run.name, run.epoch
        is_new = run.continues is None
        # Readers of the folder forget all older events from this step on: those of an earlier run of the
        # same name, or those of an epoch that is repeated after an interruption.
        purge = 0 if is_new else run.epoch + 1
        writer: Any = SummaryWriter  # torch's types leave the functions untyped
        self._writer = writer(str(run.folder / "tensorboard" / run.name), purge_step=purge)
        if is_new:
            lines = [f"| {name} | {_text(value)} |" for name, value in flat(run.parameters).items()]
            self._writer.add_text("parameters", "\n".join(["| name | value |", "|---|---|", *lines]), 0)
            self._writer.flush()

    def epoch(self, number: int, figures: Mapping[str, float]) -> None:
        """Write the figures; after a full disk, the next call raises the error."""
        self._epoch = number
        for name, value in figures.items():
            self._writer.add_scalar(name, value, number)
        self._writer.flush()

    def end(self, figures: Mapping[str, float] | None) -> None:
        """Write the test figures and close the file."""
        self.epoch(self._epoch, figures or {})
        self._writer.close()


class MlflowTracker:
    """A run of an MLflow experiment, in `mlflow/mlflow.db` or on the server of MLFLOW_TRACKING_URI.

    Args:
        run: the run to record.
    """

    def __init__(self, run: TrackedRun) -> None:
        # Read when MLflow is imported: by default it reports its use to its makers.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow
        from mlflow.entities import Metric, Param
        from mlflow.environment_variables import MLFLOW_EXPERIMENT_NAME

        self._metric, self._epoch = Metric, run.epoch
        folder = (run.folder / "mlflow").absolute()
        is_local = not mlflow.is_tracking_uri_set()
        if is_local:
            folder.mkdir(parents=True, exist_ok=True)
        self._client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}" if is_local else None)
        experiment = str(MLFLOW_EXPERIMENT_NAME.get() or PROJECT)
        artifacts = (folder / "artifacts").as_uri() if is_local else None
        known = run.continues is not None and self._resumes(run.continues)
        if known:
            self.id = str(run.continues)
            return
        self.id = str(self._new(run.name, experiment, artifacts))
        values = {_plain(name): _text(value) for name, value in flat(run.parameters).items()}
        for part in _parts([Param(name, value) for name, value in values.items()]):
            self._client.log_batch(self.id, params=part)

    def _resumes(self, known: str) -> bool:
        """Continue the run with this id; False if it was deleted meanwhile."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.update_run(known, "RUNNING")
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            note(f"tracker mlflow: run {known} is gone; starting a new one")
            return False
        return True

    def _new(self, name: str, experiment: str, artifacts: str | None) -> str:
        found = self._client.get_experiment_by_name(experiment)
        if found is None:
            identifier = self._client.create_experiment(experiment, artifact_location=artifacts)
        else:
            identifier = found.experiment_id
        return str(self._client.create_run(identifier, run_name=name).info.run_id)

    def epoch(self, number: int, figures: Mapping[str, float]) -> None:
        """Log the figures at the step of the epoch's number."""
        self._epoch, now = number, int(time.time() * 1000)
        metrics = [self._metric(_plain(name), value, now, number) for name, value in figures.items()]
        for part in _parts(metrics):
            self._client.log_batch(self.id, metrics=part)

    def end(self, figures: Mapping[str, float] | None) -> None:
        """Log the test figures, and set the run's status."""
        self.epoch(self._epoch, figures or {})
        self._client.set_terminated(self.id, "KILLED" if figures is None else "FINISHED")


class WandbTracker:
    """A run of W&B: offline in `wandb/`, unless the user's settings of W&B name another mode.

    `wandb sync` uploads an offline run. No console output, code or state of Git is recorded.

    Args:
        run: the run to record.
    """

    def __init__(self, run: TrackedRun) -> None:
        # Read when W&B starts its process: by default that reports its errors to its makers.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        folder = run.folder.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        given = wandb.setup().settings
        self._run = wandb.init(
            dir=str(folder),
            mode=given.mode if "mode" in given.model_fields_set else "offline",
            project=given.project or PROJECT,
            name=run.name,
            id=run.continues,
            resume=None if run.continues is None else "allow",
            config=dict(run.parameters),
            settings=wandb.Settings(console="off", disable_git=True, disable_code=True, silent=True),
        )
        self.id = str(self._run.id)

    def epoch(self, number: int, figures: Mapping[str, float]) -> None:
        """Log the figures at the step of the epoch's number."""
        self._run.log(dict(figures), step=number)

    def end(self, figures: Mapping[str, float] | None) -> None:
        """Put the test figures into the summary, and end the run."""
        for name, value in (figures or {}).items():
            self._run.summary[name] = value
        self._run.finish(exit_code=0 if figures is not None else 1)


def _parts(entries: list[Any]) -> Iterator[list[Any]]:
    """Yield the entries of each request to MLflow."""
    for start in range(0, len(entries), _AT_ONCE):
        yield entries[start : start + _AT_ONCE]


def _plain(name: str) -> str:
    """Return a name that MLflow accepts."""
    return _UNUSUAL.sub("_", name)[-_LONGEST_NAME:]


def _text(value: Any) -> str:
    return bounded(value, _LONGEST)
