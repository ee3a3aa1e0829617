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
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages import paths
from tests.benchmarks.commands import pipeline
from tests.benchmarks.environment import environment
from tests.benchmarks.small_students import summary

PARAMS = Path(__file__).with_suffix(".yaml")
IMAGES = ("plain", "views")
RECIPES = ("scratch", "tutorial", "kd")
PUBLISHED = {"teacher": 75.60, "scratch": 70.41, "tutorial": 70.19}
Run = dict[str, Any]


class Project:
    """The commands in a folder.

    Args:
        folder: working folder; finished commands are not repeated.
        overrides: changed parameters.
    """

    def __init__(self, folder: Path, overrides: Sequence[str]) -> None:
        self._folder = folder
        self._options = ["--params", str(PARAMS), *(part for one in overrides for part in ("--set", one))]
        folder.mkdir(parents=True, exist_ok=True)

    def teachers(self) -> dict[str, float]:
        """Train the teachers, dump their logits, and return the teachers' top-1 in percent."""
        self._call("prepare")
        found = {}
        for name in IMAGES:
            self._call("train-teacher", name)
            self._call("cache-logits", name)
            metrics = json.loads(
                (self._folder / paths.RUNS / paths.teacher_run(name) / "metrics.json").read_text()
            )
            found[name] = 100 * metrics["top1"]
        return found

    def run(self, images: str, recipe: str, seed: int) -> Run:
        """Train a student, and return its figures."""
        dump = None if recipe == "scratch" else images
        taught = [] if dump is None else ["--dump", dump]
        self._call("train-student", images, recipe, str(seed), *taught)
        name = paths.run_name(dump, images, recipe, seed)
        metrics = json.loads((self._folder / paths.RUNS / name / "metrics.json").read_text())
        return {"images": images, "recipe": recipe, "seed": seed, "top1": metrics["top1"]}

    def _call(self, *arguments: str) -> None:
        pipeline(self._folder, *arguments, *self._options)


def measure(project: Project, seeds: int, out: Path) -> dict[str, Any]:
    """Make the runs missing from a file, saving it after each, and return its content."""
    saved = json.loads(out.read_text()) if out.exists() else {"runs": []}
    done = {(run["images"], run["recipe"], run["seed"]) for run in saved["runs"]}
    wanted = [
        (images, recipe, seed) for seed, images, recipe in itertools.product(range(seeds), IMAGES, RECIPES)
    ]
    if not set(wanted) <= done:
        saved |= {"environment": environment(), "teachers": project.teachers()}
    for one in wanted:
        if one not in done:
            saved["runs"].append(project.run(*one))
            out.write_text(json.dumps(saved, indent=1) + "\n")
    return saved


def table(saved: dict[str, Any]) -> str:
    """Return the table as Markdown: the tutorial, its recipe here, and exact views."""
    arms = {
        (images, recipe): [
            run["top1"]
            for run in sorted(saved["runs"], key=lambda run: run["seed"])
            if (run["images"], run["recipe"]) == (images, recipe)
        ]
        for images, recipe in itertools.product(IMAGES, RECIPES)
    }
    found = {images: summary({r: arms[images, r] for r in RECIPES}, "scratch") for images in IMAGES}
    lines = ["| | tutorial | same recipe here | with exact views |", "|---|---|---|---|"]
    teachers = " | ".join(f"{saved['teachers'][images]:.2f}" for images in IMAGES)
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
    project = Project(options.folder, [source, *options.overrides])
    print(table(measure(project, options.seeds, options.out)))


if __name__ == "__main__":
    main()
