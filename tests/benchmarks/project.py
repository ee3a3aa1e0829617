"""A project folder in which benchmarks run the commands, and a file of runs that can be resumed."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from stages import paths
from tests.benchmarks.commands import pipeline
from tests.benchmarks.environment import environment

Run = dict[str, Any]


class Project:
    """The commands in a folder; finished outputs are not made again.

    Args:
        folder: working folder of the commands.
        params: the parameter file.
        overrides: changed parameters, `key.path=value` each.
    """

    def __init__(self, folder: Path, params: Path, overrides: Sequence[str] = ()) -> None:
        self.folder, self._params, self._overrides = folder, params.resolve(), tuple(overrides)
        folder.mkdir(parents=True, exist_ok=True)

    def call(self, *arguments: str, overrides: Sequence[str] = ()) -> None:
        """Run a command of the project."""
        settings = [part for one in (*self._overrides, *overrides) for part in ("--set", one)]
        pipeline(self.folder, *arguments, "--params", str(self._params), *settings)

    def make(self, *dumps: str, teachers: Sequence[str]) -> None:
        """Prepare the data, train or evaluate the teachers, and dump their logits."""
        if not (self.folder / paths.PREPARED / "dataset.json").exists():
            self.call("prepare")
        for teacher in teachers:
            if not self._run(paths.teacher_run(teacher)).exists():
                self.call("train-teacher", teacher)
        for dump in dumps:
            if not (self.folder / paths.store(dump) / "manifest.json").exists():
                self.call("cache-logits", dump)

    def teacher(self, name: str) -> dict[str, Any]:
        """Return a teacher's metrics."""
        return _read(self._run(paths.teacher_run(name)))

    def student(
        self, dump: str | None, student: str, recipe: str, seed: int, overrides: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Train a student, and return its metrics; `history` has one record per epoch.

        Args:
            dump: name of the dump; None for a baseline.
            student, recipe: names in the parameter file.
            seed: seed of the run.
            overrides: further changed parameters; runs with different ones need different folders.
        """
        metrics = self._run(paths.run_name(dump, student, recipe, seed))
        if not metrics.exists():
            taught = [] if dump is None else ["--dump", dump]
            self.call("train-student", student, recipe, str(seed), *taught, overrides=overrides)
        with metrics.with_name("history.csv").open() as lines:
            return {**_read(metrics), "history": list(csv.DictReader(lines))}

    def _run(self, name: str) -> Path:
        return self.folder / paths.RUNS / name / "metrics.json"


def resume(out: Path, wanted: Iterable[Run], make: Callable[[Run], Run]) -> list[Run]:
    """Make the runs missing from a file, save it after each, and return the wanted runs with results.

    Args:
        out: JSON with the hardware, the versions and the finished runs.
        wanted: the runs, each with the values that identify it.
        make: returns the results of a run. The minutes it took, preparation included, are recorded.
    """
    saved = _read(out) if out.exists() else {"environment": environment(), "runs": []}
    found = []
    for run in wanted:
        done = next((one for one in saved["runs"] if run.items() <= one.items()), None)
        if done is None:
            start = time.monotonic()
            results = make(run)
            done = {**run, **results, "minutes": round((time.monotonic() - start) / 60, 2)}
            saved["runs"].append(done)
            out.write_text(json.dumps(saved, indent=1) + "\n")
        found.append(done)
    return found


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found
