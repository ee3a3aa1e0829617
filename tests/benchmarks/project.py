"""A project folder in which benchmarks run the commands, and a file of runs that can be resumed.

Owns what long benchmarks share: finished outputs are not made again, a budget of wall time, and a teacher's
checkpoint that is small enough to be kept.
"""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.core.files import write_json
from pipeline.core.trust import Trust
from pipeline.models.pretrained import save_half
from stages import paths
from stages.params_file import load_params
from tests.benchmarks.commands import pipeline
from tests.benchmarks.environment import environment

Run = dict[str, Any]


class Project:
    """The commands in a folder; finished outputs are not made again.

    Args:
        folder: working folder of the commands.
        params: the parameter file.
        overrides: changed parameters, `key.path=value` each.
        device: of teachers and students, e.g. "cuda"; None for the commands' choice.
    """

    def __init__(
        self, folder: Path, params: Path, overrides: Sequence[str] = (), device: str | None = None
    ) -> None:
        self.folder, self.params, self.overrides = folder, params.resolve(), tuple(overrides)
        self.device = device
        folder.mkdir(parents=True, exist_ok=True)

    def call(self, *arguments: str, overrides: Sequence[str] = ()) -> None:
        """Run a command of the project."""
        settings = [part for one in (*self.overrides, *overrides) for part in ("--set", one)]
        machine = [] if self.device is None or arguments[0] == "prepare" else ["--device", self.device]
        pipeline(self.folder, *arguments, *machine, "--params", str(self.params), *settings)

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

    def keep_teacher(self, name: str, checkpoint: Path) -> None:
        """Train a teacher and write its weights in half precision, unless the checkpoint is complete.

        Args:
            name: of the teacher in the parameter file.
            checkpoint: safetensors file; its card, written last, lies beside it.
        """
        if not checkpoint.with_suffix(".json").exists():
            self.make(teachers=[name])
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            model = load_params(self.params, self.overrides).teacher(name).model
            trust = Trust(code=frozenset({model}))
            save_half(self.folder / paths.teacher_checkpoint(name), checkpoint, trust)

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


@dataclass(slots=True, kw_only=True)
class Budget:
    """Wall time for runs: one starts only if it should finish, and none after one that does not.

    Args:
        kind: key of a run whose value decides its duration, e.g. "recipe".
        minutes: for all runs.
        unit_minutes: expected for a run while no run of its kind is finished.
        clock: seconds since any moment.
    """

    kind: str
    minutes: float = math.inf
    unit_minutes: float = 60.0
    clock: Callable[[], float] = time.monotonic
    _start: float = field(init=False)
    _is_spent: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._start = self.clock()

    def elapsed(self) -> float:
        """Return the seconds since the budget was made."""
        return self.clock() - self._start

    def allows(self, run: Run, finished: Sequence[Run]) -> bool:
        """Whether a run may start; finished runs of its kind tell its `seconds`."""
        alike = [one["seconds"] for one in finished if one[self.kind] == run[self.kind]]
        expected = max(alike, default=60 * self.unit_minutes)
        self._is_spent |= self.elapsed() + expected > 60 * self.minutes
        return not self._is_spent

    def timed(self, make: Callable[[Run], Run], run: Run) -> Run:
        """Return the results of a run, with its `seconds`."""
        start = self.elapsed()
        return {**make(run), "seconds": round(self.elapsed() - start, 1)}


def resume(
    out: Path, wanted: Iterable[Run], make: Callable[[Run], Run], budget: Budget | None = None
) -> list[Run]:
    """Make the runs missing from a file, save it after each, and return the wanted runs with results.

    Args:
        out: JSON with the hardware, the versions and the finished runs.
        wanted: the runs, each with the values that identify it.
        make: returns the results of a run. The minutes it took, preparation included, are recorded.
        budget: runs that it does not allow are left out; each run is saved with its `seconds`, too.
    """
    begun: dict[str, Any] = {"environment": environment(), "runs": []}
    saved = _read(out) if out.exists() else begun
    found = []
    for run in wanted:
        done = next((one for one in saved["runs"] if run.items() <= one.items()), None)
        if done is None:
            if budget is not None and not budget.allows(run, saved["runs"]):
                continue
            start = time.monotonic()
            results = make(run) if budget is None else budget.timed(make, run)
            done = {**run, **results, "minutes": round((time.monotonic() - start) / 60, 2)}
            saved["runs"].append(done)
            write_json(out, saved)
        found.append(done)
    return found


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found
