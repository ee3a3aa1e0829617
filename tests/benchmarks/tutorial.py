"""PyTorch's knowledge distillation tutorial on CIFAR-10: its recipe, and the same recipe with exact views.

    python -m tests.benchmarks.tutorial CIFAR10.npz FOLDER [--seeds 10] [--set KEY.PATH=VALUE ...]
        [--out FILE.json]

The tutorial's text gives one run each: teacher 75.60 %, student 70.41 %, student with cross-entropy and
soft labels 70.19 %. Here the same two networks train for the same ten epochs by the same optimiser, on the
images as they are (`plain`) and on cached crops and flips, one view per epoch (`views`). Both teachers
train in bf16, everything else in fp32. Figures are the top-1 of the last epoch on the 10,000 test images.
FOLDER keeps teachers, dumps and runs; runs in the file are not repeated.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path

from tests.benchmarks.project import Project, Run, resume
from tests.benchmarks.small_students import summary

PARAMS = Path(__file__).with_suffix(".yaml")
IMAGES = ("plain", "views")
RECIPES = ("scratch", "tutorial", "kd")
PUBLISHED = {"teacher": 75.60, "scratch": 70.41, "tutorial": 70.19}


def measure(project: Project, seeds: int, out: Path) -> list[Run]:
    """Return the runs, teachers first; make those missing from a file."""
    teachers = [{"images": images, "recipe": "teacher", "seed": 0} for images in IMAGES]
    students = [
        {"images": images, "recipe": recipe, "seed": seed}
        for seed, images, recipe in itertools.product(range(seeds), IMAGES, RECIPES)
    ]

    def make(run: Run) -> Run:
        project.make(*IMAGES, teachers=IMAGES)
        images, recipe = run["images"], run["recipe"]
        if recipe == "teacher":
            return {"top1": project.teacher(images)["top1"]}
        dump = None if recipe == "scratch" else images
        return {"top1": project.student(dump, images, recipe, run["seed"])["top1"]}

    return resume(out, [*teachers, *students], make)


def table(runs: Sequence[Run]) -> str:
    """Return the table as Markdown: the tutorial, its recipe here, and exact views."""
    arms = {
        (images, recipe): [
            run["top1"]
            for run in sorted(runs, key=itemgetter("seed"))
            if (run["images"], run["recipe"]) == (images, recipe)
        ]
        for images, recipe in itertools.product(IMAGES, ("teacher", *RECIPES))
    }
    found = {images: summary({r: arms[images, r] for r in RECIPES}, "scratch") for images in IMAGES}
    lines = ["| | tutorial | same recipe here | with exact views |", "|---|---|---|---|"]
    teachers = " | ".join(f"{100 * arms[images, 'teacher'][0]:.2f}" for images in IMAGES)
    lines.append(f"| teacher | {PUBLISHED['teacher']:.2f} | {teachers} |")
    for recipe, title in (
        ("scratch", "student, cross-entropy"),
        ("tutorial", "student, the tutorial's soft labels"),
        ("kd", "student, `kd` with its defaults"),
    ):
        cells = [_cell(found[images][recipe], recipe) for images in IMAGES]
        published = f"{PUBLISHED[recipe]:.2f}" if recipe in PUBLISHED else "–"
        lines.append(f"| {title} | {published} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(found: dict[str, float], recipe: str) -> str:
    mean = f"{found['mean']:.2f} ± {found['standard_error']:.2f}"
    if recipe == "scratch":
        return mean
    return f"{mean} ({found['difference']:+.2f} ± {found['difference_standard_error']:.2f})"


def main() -> None:
    """Train missing runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("npz", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--out", type=Path, default=Path("tutorial.json"))
    options = parser.parse_args()
    source = f"data.source=npz:{options.npz.resolve()}"
    project = Project(options.folder, PARAMS, [source, *options.overrides])
    print(table(measure(project, options.seeds, options.out)))


if __name__ == "__main__":
    main()
