"""Airbench-speed distillation: time to 94 % on CIFAR-10, from labels and from a cached teacher.

    python -m tests.benchmarks.speedrun CIFAR10.npz FOLDER [--seeds 5] [--target 94] [--device cuda]
        [--minutes M] [--unit-minutes M] [--checkpoint FILE] [--set KEY.PATH=VALUE ...] [--out FILE.json]

The student is a narrow network after arXiv 2404.00498 (airbench_net.py, 0.5 M parameters; the paper's has
2 M), its teacher a wide one. `labels` is the paper's loss, cross-entropy with smoothing 0.2; `cached` is
`kd` at T = 1 from 40 stored views. Both train by the paper's rates, for 8 to 40 epochs with a cosine to
zero; the paper's Lookahead, its multi-crop evaluation and its compilation are left out. The lengths are the
students of speedrun.yaml.

Figures are the top-1 of the last epoch on the 10,000 test images. Seconds are those of the training steps
and of loading, without start, dump and evaluation; the dump, which all students share, is told below the
table. The last column and the time to the target interpolate the means of neighbouring lengths. Units: the
teacher, the dump, then each (length, recipe), seed by seed.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import numpy as np

from stages.params_file import load_params
from tests.benchmarks.project import Project, Run
from tests.benchmarks.small_students import figure, summary
from tests.benchmarks.units import DUMP, Job, make_parser

PARAMS = Path(__file__).with_suffix(".yaml")
LABELS, CACHED = "labels", "cached"


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Means over the seeds of one recipe, from the shortest length to the longest.

    Args:
        seconds: of training.
        top1: in percent.
    """

    seconds: list[float]
    top1: list[float]

    @classmethod
    def of(cls, runs: Sequence[Run], recipe: str) -> Curve:
        """Return the curve of a recipe."""
        own = [run for run in runs if run["recipe"] == recipe]
        lengths = sorted({run["epochs"] for run in own})
        alike = [[run for run in own if run["epochs"] == epochs] for epochs in lengths]
        return cls(
            seconds=[statistics.fmean(run["training_seconds"] for run in some) for some in alike],
            top1=[100 * statistics.fmean(run["top1"] for run in some) for some in alike],
        )

    def at(self, seconds: float) -> float:
        """Return the top-1 after these seconds; beyond the ends, that of the nearest length."""
        return float(np.interp(seconds, self.seconds, self.top1))

    def time_to(self, target: float) -> float | None:
        """Return the seconds to a top-1, or None; those of the shortest length if that reaches it.

        >>> curve = Curve(seconds=[2.0, 4.0], top1=[93.0, 95.0])
        >>> curve.time_to(94), curve.time_to(92), curve.time_to(96)
        (3.0, 2.0, None)
        """
        place = next((n for n, top1 in enumerate(self.top1) if top1 >= target), None)
        if not place:
            return None if place is None else self.seconds[0]
        span = slice(place - 1, place + 1)
        return float(np.interp(target, self.top1[span], self.seconds[span]))


def lengths_of(project: Project) -> dict[str, int]:
    """Return the students' names and epochs, shortest first."""
    students = load_params(project.params, project.overrides).students
    epochs = {name: student.training.epochs for name, student in students.items()}
    return dict(sorted(epochs.items(), key=itemgetter(1)))


def wanted_runs(students: Sequence[str], seeds: int) -> list[Run]:
    """Return the units in the order of work: teacher, dump, then every length and recipe, seed by seed."""
    first = [{"student": name, "recipe": name, "seed": 0} for name in ("teacher", "dump")]
    rest = itertools.product(range(seeds), students, (LABELS, CACHED))
    return [*first, *({"student": name, "recipe": recipe, "seed": seed} for seed, name, recipe in rest)]


def make(job: Job, run: Run) -> Run:
    """Do one unit, with the work of earlier ones that this folder lacks."""
    recipe = run["recipe"]
    if recipe == "teacher":
        return job.teacher()
    if recipe == "dump":
        return job.dump()
    dump = DUMP if recipe == CACHED else None
    job.ready(dump=dump is not None)
    metrics = job.project.student(dump, run["student"], recipe, run["seed"])
    figures = {name: metrics[name] for name in ("top1", "epochs", "images_per_second")}
    return {**figures, "training_seconds": metrics["seconds"]}


def table(runs: Sequence[Run], target: float) -> str:
    """Return top-1 and seconds by length as Markdown, then the time to the target and the shared costs."""
    done = {run["epochs"] for run in runs if run["recipe"] == CACHED}
    students = [run for run in runs if run.get("epochs") in done]
    curves = {recipe: Curve.of(students, recipe) for recipe in (LABELS, CACHED)}
    lines = [
        "| epochs | labels, s | labels | cached, s | cached | − labels, paired | − labels at equal s |",
        "|---|---|---|---|---|---|---|",
    ]
    for n, epochs in enumerate(sorted(done)):
        seconds = {recipe: curve.seconds[n] for recipe, curve in curves.items()}
        row = _compared([run for run in students if run["epochs"] == epochs])
        gain = figure(row[CACHED]["difference"], row[CACHED]["difference_standard_error"], signed=True)
        cells = [cell for recipe in row for cell in (f"{seconds[recipe]:.2f}", _top1(row[recipe]))]
        equal = curves[CACHED].top1[n] - curves[LABELS].at(seconds[CACHED])
        lines.append(f"| {' | '.join([str(epochs), *cells, gain, f'{equal:+.2f}'])} |")
    times = "; ".join(f"{recipe} {_seconds(curve.time_to(target))}" for recipe, curve in curves.items())
    return "\n".join([*lines, "", f"Time to {target:g} %: {times}.", *_shared(runs)])


def _compared(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    runs = sorted(runs, key=itemgetter("seed"))
    top1 = {recipe: [run["top1"] for run in runs if run["recipe"] == recipe] for recipe in (LABELS, CACHED)}
    return summary(top1, LABELS)


def _top1(row: dict[str, float]) -> str:
    return figure(row["mean"], row["standard_error"])


def _seconds(time: float | None) -> str:
    return "not reached" if time is None else f"{time:.2f} s"


def _shared(runs: Sequence[Run]) -> list[str]:
    """Return a line about the teacher and one about the dump, which all students share."""
    return [
        *(f"Teacher: {100 * run['top1']:.2f} %." for run in runs if run["recipe"] == "teacher"),
        *(
            f"Dump of {run['views']} views: {run['bytes']:,} bytes, {run['seconds']:.0f} s with its start."
            for run in runs
            if run["recipe"] == "dump"
        ),
    ]


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = make_parser(__doc__, "speedrun")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--target", type=float, default=94.0, help="top-1 in percent")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Do the missing units, as far as the time goes, and print the table."""
    given = parsed(arguments)
    job = Job(given, PARAMS)
    wanted = wanted_runs(list(lengths_of(job.project)), given.seeds)
    print(table(job.run(wanted, lambda run: make(job, run), kind="student"), given.target))


if __name__ == "__main__":
    main()
