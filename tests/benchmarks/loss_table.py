"""Compare all losses with their defaults: two students, five seeds, one dump.

    python -m tests.benchmarks.loss_table FOLDER [--cifar10 SUBSET] [--set KEY.PATH=VALUE ...] [--part I/N]
        [--out FILE.json]

Runs the commands in FOLDER with loss_table.yaml, on the built-in images, or on SUBSET of
`tests.benchmarks.cifar_subset`. Finished runs are skipped, so an interrupted table resumes, and several
processes may share it: --part 1/2 and --part 2/2, each with a FILE.json of its own; a last call without
--part collects all runs. The table has the test top-1 of the best validation epoch and of the last epoch,
in percent: means over seeds with standard errors, and differences to cross-entropy paired by seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path

import torch

from pipeline.evaluation.context import RunContext
from pipeline.modalities.prepared import PreparedData
from pipeline.models.checkpoint import load_checkpoint
from pipeline.tasks.table import find_task
from stages import paths
from stages.params import Params
from stages.params_file import load_params
from tests.benchmarks.cifar_subset import PARAMS, changed
from tests.benchmarks.project import Project, Run, resume
from tests.benchmarks.small_students import summary

_REFERENCE = "scratch"


def wanted(params: Params) -> Iterator[Run]:
    """Yield the runs of the table, seed by seed; those of baselines have no teacher."""
    sweep = params.sweep
    for seed in sweep.seeds:
        for student in sweep.students:
            for recipe in (*sweep.baselines, *sweep.recipes):
                yield {"recipe": recipe, "student": student, "seed": seed}


def measure(project: Project, runs: Sequence[Run], baselines: Sequence[str], out: Path) -> list[Run]:
    """Return the runs with their top-1 on the test images, 0..1; make those missing from a file."""

    def make(run: Run) -> Run:
        project.make("main", teachers=["main"])
        dump = None if run["recipe"] in baselines else "main"
        metrics = project.student(dump, run["student"], run["recipe"], run["seed"])
        name = paths.run_name(dump, run["student"], run["recipe"], run["seed"])
        return {"best": metrics["top1"], "last": _last(project.folder, name)}

    return resume(out, runs, make)


def _last(folder: Path, name: str) -> float:
    """Return a run's top-1 after its last epoch, which the run does not record."""
    network, card = load_checkpoint(folder / paths.STUDENTS / f"{name}.last.pt")
    data = PreparedData.open(folder / paths.PREPARED)
    context = RunContext(data=data, task=find_task(), device=torch.device("cpu"), workers=1)
    top1 = context.evaluate(network.eval(), card.preprocessing, data.test).top1
    assert top1 is not None
    return top1


def table(runs: Sequence[Run]) -> str:
    """Return means as Markdown, one loss per row: each student's best, last, and best minus scratch."""
    students = list(dict.fromkeys(run["student"] for run in runs))
    titles = [column for student in students for column in (student, "− scratch", "last")]
    lines = [f"| loss | {' | '.join(titles)} |", f"|---|{'---|' * len(titles)}"]
    for recipe in dict.fromkeys(run["recipe"] for run in runs):
        cells = [cell for student in students for cell in _cells(runs, student, recipe)]
        lines.append(f"| `{recipe}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(runs: Sequence[Run], student: str, recipe: str) -> list[str]:
    best, last = (
        summary({name: _top1(runs, student, name, which) for name in (_REFERENCE, recipe)}, _REFERENCE)
        for which in ("best", "last")
    )
    found = best[recipe]
    gain = f"{found['difference']:+.2f} ± {found['difference_standard_error']:.2f}"
    means = [f"{some[recipe]['mean']:.2f} ± {some[recipe]['standard_error']:.2f}" for some in (best, last)]
    return [means[0], "" if recipe == _REFERENCE else gain, means[1]]


def _top1(runs: Sequence[Run], student: str, recipe: str, which: str) -> list[float]:
    some = [run for run in runs if (run["student"], run["recipe"]) == (student, recipe)]
    return [run[which] for run in sorted(some, key=itemgetter("seed"))]


def main() -> None:
    """Train missing runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cifar10", type=Path)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--part", default="1/1")
    parser.add_argument("--out", type=Path, default=Path("loss_table.json"))
    options = parser.parse_args()
    overrides = [*changed(options.cifar10), *options.overrides]
    params = load_params(PARAMS, overrides)
    part, parts = map(int, options.part.split("/"))
    runs = list(wanted(params))[part - 1 :: parts]
    project = Project(options.folder, PARAMS, overrides)
    found = measure(project, runs, params.sweep.baselines, options.out)
    if parts == 1:
        print(table(found))


if __name__ == "__main__":
    main()
