"""Teachers and students of the literature on CIFAR-10: one dump, one student by each of several losses.

    python -m tests.benchmarks.pairs CIFAR10.npz FOLDER [--pair resnet110-resnet20] [--seeds 1]
        [--epochs 100] [--device cuda] [--minutes M] [--unit-minutes M] [--checkpoint FILE]
        [--set KEY.PATH=VALUE ...] [--out FILE.json]

`resnet110-resnet20` is a row of AberHu/Knowledge-Distillation-Zoo: its README gives one run of 200 epochs
each, by the best epoch on the test images. Here a student trains for 100 epochs (cosine), on 40 stored
views, and its last epoch counts. `logits`, `st`, `rkd` and `crd` have the weights of that repository's
example script; `kd` has the defaults of this project. `resnet32x4-resnet8x4` is a pair of CIFAR-100
tables (arXiv 1910.10699), without published figures on CIFAR-10.

Figures are the top-1 on the 10,000 test images. Units: the teacher, the dump, then each recipe, seed by
seed. For loans of a GPU of 15 minutes: `--minutes 13 --unit-minutes 10`, each with the results file and
the teacher's checkpoint of the one before. The checkpoint of `resnet110` has 3.5 MB, of `resnet32x4` 15 MB.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path

from tests.benchmarks.project import Run
from tests.benchmarks.small_students import figure, summary
from tests.benchmarks.units import DUMP, Job, make_parser

PARAMS = Path(__file__).with_suffix(".yaml")
RECIPES = ("scratch", "logits", "st", "rkd", "crd", "kd")
TITLES = {
    "scratch": "student, cross-entropy",
    "logits": "`mse`: Logits",
    "st": "`kd`, their weights: ST",
    "rkd": "`rkd`",
    "crd": "`crd`",
    "kd": "`kd`, the defaults here",
}
# Pair -> its published top-1 on CIFAR-10 in percent, by recipe.
PUBLISHED: Mapping[str, Mapping[str, float]] = {
    "resnet110-resnet20": {
        "teacher": 93.86,
        "scratch": 92.37,
        "logits": 92.98,
        "st": 92.82,
        "rkd": 93.21,
        "crd": 92.92,
    },
    "resnet32x4-resnet8x4": {},
}


def open_job(given: argparse.Namespace) -> Job:
    """Return the job of a command line, with the pair's models and the students' epochs."""
    teacher, student = given.pair.split("-")
    models = {"teachers.trained": teacher, "teachers.teacher": teacher, "students.student": student}
    overrides = [f"{key}.model={model}" for key, model in models.items()]
    return Job(given, PARAMS, [f"training.epochs={given.epochs}", *overrides])


def wanted_runs(pair: str, epochs: int, seeds: int) -> list[Run]:
    """Return the units in the order of work: teacher, dump, then every recipe, seed by seed."""
    shared = {"pair": pair, "epochs": epochs}
    first = [{**shared, "recipe": recipe, "seed": 0} for recipe in ("teacher", "dump")]
    students = [{**shared, "recipe": recipe, "seed": seed} for seed in range(seeds) for recipe in RECIPES]
    return [*first, *students]


def make(job: Job, run: Run) -> Run:
    """Do one unit, with the work of earlier ones that this folder lacks."""
    recipe = run["recipe"]
    if recipe == "teacher":
        return job.teacher()
    if recipe == "dump":
        return job.dump()
    dump = None if recipe == "scratch" else DUMP
    job.ready(dump=dump is not None)
    return {"top1": job.project.student(dump, "student", recipe, run["seed"])["top1"]}


def table(runs: Sequence[Run]) -> str:
    """Return the published row of a pair, and the runs of this one, as Markdown."""
    runs = sorted(runs, key=itemgetter("seed"))
    arms = {recipe: [run["top1"] for run in runs if run["recipe"] == recipe] for recipe in RECIPES}
    lines = ["| | published | here | − cross-entropy, paired | seeds |", "|---|---|---|---|---|"]
    for run in (run for run in runs if run["recipe"] == "teacher"):
        lines.append(f"| teacher | {_published(run)} | {100 * run['top1']:.2f} |  | 1 |")
    if not arms["scratch"]:
        return "\n".join(lines)
    for recipe, row in summary({recipe: top1 for recipe, top1 in arms.items() if top1}, "scratch").items():
        gain = figure(row["difference"], row["difference_standard_error"], signed=True)
        cells = [TITLES[recipe], _published({"pair": runs[0]["pair"], "recipe": recipe})]
        cells += [figure(row["mean"], row["standard_error"]), "" if recipe == "scratch" else gain]
        lines.append(f"| {' | '.join(cells)} | {row['seeds']} |")
    return "\n".join(lines)


def _published(run: Run) -> str:
    top1 = PUBLISHED[run["pair"]].get(run["recipe"])
    return "–" if top1 is None else f"{top1:.2f}"


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = make_parser(__doc__, "pairs")
    parser.add_argument("--pair", choices=list(PUBLISHED), default=next(iter(PUBLISHED)))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=100, help="of the students")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Do the missing units, as far as the time goes, and print the table."""
    given = parsed(arguments)
    job, wanted = open_job(given), wanted_runs(given.pair, given.epochs, given.seeds)
    print(table(job.run(wanted, lambda run: make(job, run), kind="recipe")))


if __name__ == "__main__":
    main()
