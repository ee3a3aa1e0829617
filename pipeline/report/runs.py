"""Read the runs of a sweep from the files of training.

A missing run, or one that does not match the plan, is an error that names the file and the command.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import DataError
from pipeline.report.metrics import missing_error, read_metrics
from pipeline.tasks.class_figures import ClassFigures, Confusion
from pipeline.tasks.task import Task

# Shown on the page; too long for results.json.
_SEPARATED = re.compile(r"(?<=^hf:).*/|^(?!hf:)[^:]*/")
DETAILS = ("classes", "confusions", "history", "made_with", "dataset", "written_by")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """A run of a sweep.

    Args:
        student, recipe, seed: the model, the recipe of its training, and its seed.
        dump: the dump to learn from; None for a baseline.
    """

    student: str
    recipe: str
    seed: int
    dump: str | None

    @property
    def command(self) -> str:
        """The command that trains this run."""
        dump = "" if self.dump is None else f" --dump {self.dump}"
        return f"pipeline train-student {self.student} {self.recipe} {self.seed}{dump}"


def planned_runs(
    *,
    students: Sequence[str],
    baselines: Sequence[str],
    dumps: Sequence[str],
    recipes: Sequence[str],
    seeds: Sequence[int],
) -> list[PlannedRun]:
    """Return the runs of a sweep, student by student, baselines first, in the order of the names."""
    ways: list[tuple[str | None, str]] = [(None, recipe) for recipe in baselines]
    ways += [(dump, recipe) for dump in dumps for recipe in recipes]
    plans = (
        PlannedRun(student=student, recipe=recipe, seed=seed, dump=dump)
        for student in students
        for dump, recipe in ways
        for seed in seeds
    )
    return list(dict.fromkeys(plans))


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """One line of a run's history; `validation`, the main figure, is None without a validation split."""

    epoch: int
    loss: float
    validation: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One finished run: figures of its best epoch on the test samples, and its history.

    Args:
        figures: values of the task's columns, the main one first; None if unknown, e.g. without labels or a
            teacher.
        images_per_second: training speed, on the machine of the training.
        mended: test figures after calibration on the validation images.
        macs, cpu_latency_ms: cost per sample. Fields with a default are missing in runs of older versions.
        classes, confusions: tables of the test images.
        made_with: the parameters of the run as JSON; None for a run of an older version.
        dataset, store: digests of the training data and of the soft labels; None for a run of an older
            version, and without a dump.
    """

    student: str
    recipe: str
    seed: int
    dump: str | None
    figures: Mapping[str, float | None]
    parameters: int
    images_per_second: float
    best_epoch: int
    mended: Mapping[str, float | None]
    macs: int | None = None
    cpu_latency_ms: float | None = None
    classes: tuple[ClassFigures, ...] = ()
    confusions: tuple[Confusion, ...] = ()
    history: tuple[Epoch, ...]
    made_with: str | None = None
    dataset: str | None = None
    store: str | None = None

    @property
    def main(self) -> float | None:
        """The figure for comparing students."""
        return next(iter(self.figures.values()))

    def row(self) -> dict[str, Any]:
        """Return the run's row in the results, in the order of `result_columns`."""
        return {
            **{name: getattr(self, name) for name in _NAMED},
            **self.figures,
            **{name: getattr(self, name) for name in _TRAINED},
            **self.mended,
            **{name: getattr(self, name) for name in _COST},
        }


_NAMED = ("student", "recipe", "seed", "dump")
_TRAINED = ("parameters", "images_per_second", "best_epoch")
_COST = ("macs", "cpu_latency_ms")


def result_columns(task: Task) -> tuple[str, ...]:
    """Return the columns of the results for runs of a task."""
    figures, mended = ((column.name for column in columns) for columns in (task.columns, task.mended))
    return (*_NAMED, *figures, *_TRAINED, *mended, *_COST)


def read_run(folder: Path, planned: PlannedRun, task: Task) -> Run:
    """Read a run's metrics.json and history.csv.

    Args:
        folder: the run's folder.
        planned: the expected run.
        task: defines the figures.

    Raises:
        DataError: the run is missing or unfinished, has changed since, or does not match the plan.
    """
    path = folder / "metrics.json"
    metrics = read_metrics(path, planned.command).values
    figures, mended = ([column.name for column in columns] for columns in (task.columns, task.mended))
    for name in (*_NAMED, *figures, *_TRAINED):
        if name not in metrics:
            raise DataError(
                f"{path}: lacks {name}; expected the metrics of a student; run: {planned.command}"
            )
    for name in ("student", "recipe", "seed", "dump"):
        expected = getattr(planned, name)
        if metrics[name] != expected:
            raise DataError(
                f"{path}: {name} is {metrics[name]!r}, expected {expected!r}; run: {planned.command}"
            )
    classes, confusions = read_classes(metrics, path, planned.command)
    own: dict[str, Any] = {name: metrics.get(name) for name in (*_NAMED, *_TRAINED, *_COST)}
    return Run(
        **own,
        figures={name: metrics[name] for name in figures},
        mended={name: metrics.get(name) for name in mended},
        classes=classes,
        confusions=confusions,
        history=_read_history(folder / "history.csv", f"validation_{figures[0]}", planned.command),
        made_with=metrics.get("made_with"),
        dataset=metrics.get("dataset"),
        store=metrics.get("store"),
    )


def read_teacher(folder: Path, name: str) -> dict[str, Any]:
    """Read a teacher's metrics.json, with classes and confusions in the form of a run's.

    Raises:
        DataError: the file is missing, has different content, or has changed since it was written.
    """
    path, command = folder / "metrics.json", f"pipeline train-teacher {name}"
    metrics = read_metrics(path, command).values
    classes, confusions = read_classes(metrics, path, command)
    network = network_of(metrics.get("made_with"), f"teachers.{name}")
    return {**metrics, **network, "classes": classes, "confusions": confusions}


def network_of(made_with: str | None, entry: str) -> dict[str, Any]:
    """Return a model's architecture, initial weights and whether they were trained further, if known.

    Args:
        made_with: the parameters of its run as JSON; None of a run of an older version.
        entry: of the model in params.yaml, e.g. students.small.
    """
    try:
        made = json.loads(made_with or "{}")[entry]
        # Of a folder or checkpoint its name: results name no place of a machine.
        model, weights = (value and _SEPARATED.sub("", value) for value in (made["model"], made["weights"]))
        return {"model": model, "weights": weights, "fine_tune": made["fine_tune"]}
    except (KeyError, ValueError, TypeError):
        return {}


def read_classes(
    metrics: Mapping[str, Any], path: Path, command: str
) -> tuple[tuple[ClassFigures, ...], tuple[Confusion, ...]]:
    """Return the per-class figures and confusions in metrics; empty if they have none.

    Raises:
        DataError: an entry is malformed.
    """
    try:
        return (
            tuple(ClassFigures(**entry) for entry in metrics.get("classes", ())),
            tuple(Confusion(**entry) for entry in metrics.get("confusions", ())),
        )
    except TypeError as error:
        raise DataError(f"{path}: invalid per-class figures ({error}); run: {command}") from None


def _read_history(path: Path, main: str, command: str) -> tuple[Epoch, ...]:
    try:
        lines = list(csv.DictReader(io.StringIO(path.read_text())))
        return tuple(
            Epoch(
                epoch=int(line["epoch"]),
                loss=float(line["loss"]),
                validation=float(line[main]) if line[main] else None,
            )
            for line in lines
        )
    except FileNotFoundError:
        raise missing_error(path, command) from None
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise DataError(
            f"{path}: not a training history ({error}); expected epoch, loss and {main}; run: {command}"
        ) from None
