"""A cheap, weak teacher guides the first epochs: how soon does a student reach an accuracy?

    python -m tests.benchmarks.early_guidance FOLDER [--seeds 5] [--set KEY.PATH=VALUE ...]
        [--out FILE.json]

The claim (arXiv 2604.15451): cached logits of a weaker and cheaper teacher, used in the first epochs alone,
let a student reach the accuracy of training from labels in fewer epochs, and do not lower its final one.
The teacher is a ResNet-8 after four epochs. `guided` lets the weight of the teacher fall to zero in the
first 30 % of the run, `kd` keeps it, `scratch` has labels alone. A student's target is the best validation
top-1 of `scratch` with the same seed, less half a point. Printed are the epochs to the target and the final
top-1 on the test images, means over seeds with standard errors. Runs in the file are not repeated.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path

import yaml

from tests.benchmarks.project import Project, Run, resume
from tests.benchmarks.small_students import summary

PARAMS = Path(__file__).with_suffix(".yaml")
RECIPES = ("scratch", "guided", "kd")
MARGIN = 0.005


def measure(project: Project, students: Sequence[str], seeds: int, out: Path) -> list[Run]:
    """Return the runs, with seeds in the outermost loop; make those missing from a file."""

    def make(run: Run) -> Run:
        project.make("main", teachers=["weak"])
        dump = None if run["recipe"] == "scratch" else "main"
        metrics = project.student(dump, run["student"], run["recipe"], run["seed"])
        validation = [float(epoch["validation_top1"]) for epoch in metrics["history"]]
        return {
            "top1": metrics["top1"],
            "validation_top1": validation,
            "teacher_top1": project.teacher("weak")["top1"],
        }

    wanted = [
        {"student": student, "recipe": recipe, "seed": seed}
        for seed in range(seeds)
        for student in students
        for recipe in RECIPES
    ]
    return resume(out, wanted, make)


def epochs_to(target: float, validation_top1: Sequence[float]) -> int:
    """Return the first epoch, from 1, that reaches a top-1; one more than all epochs if none does.

    >>> epochs_to(0.8, [0.5, 0.81, 0.79]), epochs_to(0.9, [0.5, 0.81, 0.79])
    (2, 4)
    """
    reached = (epoch for epoch, top1 in enumerate(validation_top1, 1) if top1 >= target)
    return next(reached, len(validation_top1) + 1)


def epochs_by_recipe(runs: Sequence[Run]) -> dict[str, list[int]]:
    """Return one student's epochs to its target by recipe, one number per seed.

    Args:
        runs: of one student, each with `recipe`, `seed` and `validation_top1`, a share per epoch.
    """
    own = sorted(runs, key=itemgetter("seed"))
    curves = {
        recipe: [run["validation_top1"] for run in own if run["recipe"] == recipe] for recipe in RECIPES
    }
    targets = [max(curve) - MARGIN for curve in curves["scratch"]]
    return {recipe: list(map(epochs_to, targets, some)) for recipe, some in curves.items()}


def table(runs: Sequence[Run]) -> str:
    """Return epochs to the target and final top-1 as Markdown, by student and recipe."""
    lines = ["| student | recipe | epochs to the target | top-1 | − scratch |", "|---|---|---|---|---|"]
    for student in dict.fromkeys(run["student"] for run in runs):
        own = sorted((run for run in runs if run["student"] == student), key=itemgetter("seed"))
        arms = {recipe: [run["top1"] for run in own if run["recipe"] == recipe] for recipe in RECIPES}
        top1 = summary(arms, "scratch")
        for recipe, epochs in epochs_by_recipe(own).items():
            lines.append(f"| {student} | `{recipe}` | {_mean(epochs)} | {_top1(top1[recipe], recipe)} |")
    return "\n".join(lines)


def _mean(values: Sequence[int]) -> str:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.1f} ± {error:.1f}"


def _top1(found: dict[str, float], recipe: str) -> str:
    gain = f"{found['difference']:+.2f} ± {found['difference_standard_error']:.2f}"
    return f"{found['mean']:.2f} ± {found['standard_error']:.2f} | {'' if recipe == 'scratch' else gain}"


def main() -> None:
    """Train missing runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--out", type=Path, default=Path("early_guidance.json"))
    options = parser.parse_args()
    students = list(yaml.safe_load(PARAMS.read_text())["students"])
    project = Project(options.folder, PARAMS, options.overrides)
    print(table(measure(project, students, options.seeds, options.out)))


if __name__ == "__main__":
    main()
