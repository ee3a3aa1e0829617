"""Benchmarks of hours on CIFAR-10, as units of minutes: their command line, and what the units share.

A unit is a teacher, a dump or a student. The results file keeps each as soon as it is finished; the same
command continues with the next. An interrupted unit resumes in its epoch. The teacher's checkpoint lies
beside the results file, in half precision: with both files another machine, whose folder is empty, makes
the dump once more and trains the next student.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from pipeline.core.files import read_json, write_json
from pipeline.core.progress import note
from pipeline.store.reader import LogitStore
from stages import paths
from tests.benchmarks.project import Budget, Project, Run, resume

# Names in the parameter files: the teacher as trained, the same from its checkpoint, and its dump.
TRAINED, TEACHER, DUMP = "trained", "teacher", "main"


def make_parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """Return a parser of the options that these benchmarks share.

    Args:
        description: docstring of the script.
        name: of the results file.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("npz", type=Path, help="CIFAR-10 as arrays")
    parser.add_argument("folder", type=Path, help="of data, teacher, dump and runs")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--checkpoint", type=Path, help="of the teacher, written if missing")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no unit beyond")
    parser.add_argument("--unit-minutes", type=float, default=60.0, help="expected of an untimed unit")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY.PATH=VALUE")
    parser.add_argument("--out", type=Path, default=Path(f"{name}.json"))
    return parser


class Job:
    """The units of one command line.

    Args:
        given: parsed options.
        params: parameter file with the names above.
        overrides: the script's own changes of it; those of the command line come last. On a GPU everything
            trains in bf16.

    Raises:
        SystemExit: the folder was begun with different settings.
    """

    def __init__(self, given: argparse.Namespace, params: Path, overrides: Sequence[str] = ()) -> None:
        precision = ["training.precision=bf16"] if given.device.startswith("cuda") else []
        self._given, self._settings = given, [*precision, *overrides, *given.overrides]
        beside = given.out.with_name(f"{given.out.stem}-teacher.safetensors")
        self._checkpoint = (given.checkpoint or beside).resolve()
        files = [f"data.source=npz:{given.npz.resolve()}", f"teachers.{TEACHER}.weights={self._checkpoint}"]
        self.project = Project(given.folder, params, [*files, *self._settings], device=given.device)
        _require_same(given.folder, self._settings)

    def run(self, wanted: Sequence[Run], make: Callable[[Run], Run], *, kind: str) -> list[Run]:
        """Do the missing units, as far as the time goes, and return all finished ones.

        Args:
            wanted: the units, each with the values that identify it beside the settings.
            make: returns the results of a unit.
            kind: key of a unit whose value decides its duration.
        """
        given = self._given
        budget = Budget(kind=kind, minutes=given.minutes, unit_minutes=given.unit_minutes)
        units = [{**unit, "settings": self._settings} for unit in wanted]

        def made(unit: Run) -> Run:
            note(f"unit: {', '.join(f'{key} {value}' for key, value in unit.items() if key != 'settings')}")
            return make(unit)

        found = resume(given.out, units, made, budget)
        if left := len(units) - len(found):
            note(f"{left} of {len(units)} units are left: run the same command again")
        return found

    def ready(self, *, dump: bool = True) -> None:
        """Train or find the teacher and, if asked, dump its logits; what is done is not done again."""
        self.project.keep_teacher(TRAINED, self._checkpoint)
        self.project.make(*([DUMP] if dump else []), teachers=[TEACHER])

    def teacher(self) -> Run:
        """Train or find the teacher, and return its figures as loaded from its checkpoint."""
        self.ready(dump=False)
        trained = self.project.folder / paths.RUNS / paths.teacher_run(TRAINED) / "metrics.json"
        figures = self.project.teacher(TEACHER)
        return {
            "top1": figures["top1"],
            "parameters": figures["parameters"],
            "teacher_epochs": read_json(trained)["epochs"] if trained.exists() else None,
            "checkpoint_bytes": self._checkpoint.stat().st_size,
        }

    def dump(self) -> Run:
        """Dump the teacher's logits, and return their size and fidelity."""
        self.ready()
        found = LogitStore.open(self.project.folder / paths.store(DUMP)).summary()
        fidelity = found["fidelity"]["kl_t1_mean"]
        return {"views": found["n_views"], "bytes": found["bytes"], "kl_t1_mean": fidelity}


def _require_same(folder: Path, settings: list[str]) -> None:
    """Refuse a folder of other settings, which the names of its runs do not tell."""
    begun = folder / "settings.json"
    made_with = read_json(begun) if begun.exists() else settings
    if made_with != settings:
        told = [" ".join(some) or "no settings" for some in (made_with, settings)]
        raise SystemExit(
            f"{folder}: begun with settings {told[0]}; expected {told[1]}; name another folder"
        )
    write_json(begun, settings)
