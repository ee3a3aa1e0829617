"""Small projects after any sequence of commands, each made once, and what is compared of them."""

from __future__ import annotations

import csv
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.core.files import read_json
from pipeline.report.metrics import read_metrics
from tests.stages.forks import Forks

# A command with its arguments, or what a user does to the folder.
Step = str | Callable[[Path], None]

MADE = ("prepare", "train-teacher tutor")
DUMPED = (*MADE, "cache-logits main")
TRAINED = (*DUMPED, "train-student pupil kd 0 --dump main", "train-student pupil scratch 0")


class Projects:
    """Projects after sequences of steps, each a copy of the one before with one step more.

    Args:
        forks: runs the commands.
        root: a folder for all of them.
        begin: writes data and parameters into an empty folder.
    """

    def __init__(self, forks: Forks, root: Path, begin: Callable[[Path], None]) -> None:
        self._forks, self._root = forks, root
        first = root / "first"
        first.mkdir()
        begin(first)
        self._after: dict[tuple[Step, ...], Path] = {(): first}

    def after(self, *steps: Step) -> Path:
        """Return the folder after some steps; it is to be read only."""
        if steps not in self._after:
            before = self.after(*steps[:-1])
            folder = self._root / str(len(self._after))
            shutil.copytree(before, folder)
            self._take(steps[-1], folder)
            self._after[steps] = folder
        return self._after[steps]

    def changes(self, *steps: Step) -> int:
        """Return how many changes of the file system the last of some steps, a command, made."""
        return len(self._forks.trace_of(self.after(*steps)).read_text().splitlines())

    def _take(self, step: Step, folder: Path) -> None:
        if callable(step):
            step(folder)
            return
        status, said = self._forks.run(folder, *step.split())
        assert status == 0, said


def content(folder: Path, beginnings: tuple[str, ...] = ("",)) -> dict[str, Any]:
    """Return each file of a folder but locks: its digest, or its values without measured speeds.

    Only files whose relative name has one of the beginnings are read: others may be damaged.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.suffix != ".lock")
    names = {str(file.relative_to(folder)): file for file in files}
    return {name: _file_content(file) for name, file in names.items() if name.startswith(beginnings)}


def differing(folder: Path, expected: Path) -> list[str]:
    """Return the names of the files that differ between two folders, or are in one alone."""
    ours, theirs = content(folder), content(expected)
    return sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))


def _file_content(file: Path) -> Any:
    if file.name == "metrics.json":
        # Digests cover speeds: whether they are right, in their place.
        return _without_speeds({**read_metrics(file, "the run").values, "digests": "right"})
    if file.name == "results.json":
        return _without_speeds(read_json(file))
    if file.suffix == ".csv":
        with file.open() as lines:
            return [_without_speeds(row) for row in csv.DictReader(lines)]
    # A page shows speeds; an exported archive has a clock in it.
    return "" if file.suffix in (".html", ".pt2") else hashlib.sha256(file.read_bytes()).hexdigest()


def _without_speeds(value: Any) -> Any:
    if isinstance(value, dict):
        timed = ("second", "latency", "stall")
        return {k: _without_speeds(v) for k, v in value.items() if not any(word in k for word in timed)}
    return [_without_speeds(item) for item in value] if isinstance(value, list) else value
