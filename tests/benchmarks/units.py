"""Benchmarks of hours on CIFAR-10, as units of minutes: their command line, and what the units share.

A unit is a teacher, a dump or a student. The results file keeps each as soon as it is finished; the same
command continues with the next. An interrupted unit resumes in its epoch. The teacher's checkpoint lies
beside the results file, in half precision: with both files another machine, whose folder is empty, makes
the dump once more and trains the next student.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline.core.files import read_json, write_json
from pipeline.store.reader import LogitStore
from stages import paths
from tests.benchmarks.project import Budget, Project, Run

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
    parser.add_argument("--checkpoint", type=Path, help="the teacher's; default OUT-teacher.safetensors")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no unit beyond")
    parser.add_argument("--unit-minutes", type=float, default=60.0, help="expected of an untimed unit")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY.PATH=VALUE")
    parser.add_argument("--out", type=Path, default=Path(f"{name}.json"))
    return parser


def checkpoint_of(given: argparse.Namespace) -> Path:
    """Return the file of the teacher's weights, by default beside the results."""
    beside: Path = given.out.with_name(f"{given.out.stem}-teacher.safetensors")
    return (given.checkpoint or beside).resolve()


def project_of(given: argparse.Namespace, params: Path, overrides: Sequence[str] = ()) -> Project:
    """Return the project of a command line; on a GPU everything trains in bf16.

    Args:
        given: parsed options.
        params: parameter file with the names above.
        overrides: the script's own changes of it; those of the command line come last.

    Raises:
        SystemExit: the folder was begun with different settings.
    """
    precision = ["training.precision=bf16"] if given.device.startswith("cuda") else []
    settings = [*precision, *overrides, *given.overrides]
    files = [f"data.source=npz:{given.npz.resolve()}", f"teachers.{TEACHER}.weights={checkpoint_of(given)}"]
    project = Project(given.folder, params, [*files, *settings], device=given.device)
    _require_same(given.folder, settings)
    return project


def _require_same(folder: Path, settings: list[str]) -> None:
    """Refuse a folder of other settings, which the names of its runs do not tell."""
    begun = folder / "settings.json"
    made_with = read_json(begun) if begun.exists() else settings
    if made_with != settings:
        raise SystemExit(
            f"{folder}: its runs were made with {' '.join(made_with)}; expected {' '.join(settings)}; "
            "name another folder"
        )
    write_json(begun, settings)


def budget_of(given: argparse.Namespace, kind: str) -> Budget:
    """Return the budget of a command line for runs whose duration depends on `kind`."""
    return Budget(kind=kind, minutes=given.minutes, unit_minutes=given.unit_minutes)


def ready(project: Project, checkpoint: Path, *, dump: bool = True) -> None:
    """Train or find the teacher and, if asked, dump its logits; what is done is not done again."""
    project.keep_teacher(TRAINED, checkpoint)
    project.make(*([DUMP] if dump else []), teachers=[TEACHER])


def teacher_unit(project: Project, checkpoint: Path) -> Run:
    """Train or find the teacher, and return its figures as loaded from its checkpoint."""
    ready(project, checkpoint, dump=False)
    trained = project.folder / paths.RUNS / paths.teacher_run(TRAINED) / "metrics.json"
    figures = project.teacher(TEACHER)
    return {
        "top1": figures["top1"],
        "parameters": figures["parameters"],
        "teacher_epochs": read_json(trained)["epochs"] if trained.exists() else None,
        "checkpoint_bytes": checkpoint.stat().st_size,
    }


def dump_unit(project: Project, checkpoint: Path) -> Run:
    """Dump the teacher's logits, and return their size and fidelity."""
    ready(project, checkpoint)
    found = LogitStore.open(project.folder / paths.store(DUMP)).summary()
    return {
        "views": found["n_views"],
        "bytes": found["bytes"],
        "kl_t1_mean": found["fidelity"]["kl_t1_mean"],
    }


def tell(table: str, wanted: Sequence[Run], found: Sequence[Run]) -> None:
    """Print a table, and how many units the budget left out."""
    print(table)
    if left := len(wanted) - len(found):
        print(f"{left} of {len(wanted)} units are left: run the same command again")
