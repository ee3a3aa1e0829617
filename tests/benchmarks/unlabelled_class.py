"""A class without a single label: does a dump teach it?

    python -m tests.benchmarks.unlabelled_class FOLDER [--seeds 3] [--set KEY.PATH=VALUE ...]
        [--out FILE.json]

The built-in images, with the labels of all training images of one class, Bag, removed. The teacher has seen
these labels long ago; the students see its logits of all images (`kd`), or the labels that are left
(`scratch`). The claim (Hinton et al., arXiv 1503.02531, section 3, on MNIST): a student gets 98.6 % of the
threes right without having seen one, once a bias is corrected. Here the images are seen, the labels never,
and no bias is corrected. Printed are the recall of Bag and the top-1, on the 10,000 test images, means over
seeds with standard errors. Runs in the file are not repeated.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from operator import itemgetter
from pathlib import Path

import yaml

from pipeline.modalities.images.form import ImageSource
from pipeline.modalities.images.options import ImageOptions
from pipeline.modalities.images.sources import open_source
from pipeline.samples.samples import UNLABELLED
from tests.benchmarks.project import Project, Run, resume
from tests.benchmarks.small_students import summary

PARAMS = Path(__file__).with_suffix(".yaml")
RECIPES = ("scratch", "kd")
HIDDEN = "Bag"


def images() -> ImageSource:
    """Return the built-in images without the training labels of one class."""
    whole = open_source("fashion-mnist-10k", ImageOptions())
    hidden = whole.classes.index(HIDDEN)
    train = [
        replace(sample, label=UNLABELLED) if sample.label == hidden else sample for sample in whole.train
    ]
    return replace(whole, train=train)


def measure(project: Project, students: Sequence[str], seeds: int, out: Path) -> list[Run]:
    """Return the runs, with seeds in the outermost loop; make those missing from a file."""

    def make(run: Run) -> Run:
        project.make("main", teachers=["wrn_16_2"])
        dump = None if run["recipe"] == "scratch" else "main"
        metrics = project.student(dump, run["student"], run["recipe"], run["seed"])
        (recall,) = (one["recall"] for one in metrics["classes"] if one["name"] == HIDDEN)
        return {"recall": recall, "top1": metrics["top1"]}

    wanted = [
        {"student": student, "recipe": recipe, "seed": seed}
        for seed in range(seeds)
        for student in students
        for recipe in RECIPES
    ]
    return resume(out, wanted, make)


def table(runs: Sequence[Run]) -> str:
    """Return recall of the hidden class and top-1 as Markdown, by student and recipe."""
    lines = [f"| student | recipe | recall of {HIDDEN} | top-1 |", "|---|---|---|---|"]
    for student in dict.fromkeys(run["student"] for run in runs):
        own = sorted((run for run in runs if run["student"] == student), key=itemgetter("seed"))
        for recipe in RECIPES:
            some = [run for run in own if run["recipe"] == recipe]
            found = summary({name: [run[name] for run in some] for name in ("recall", "top1")}, "top1")
            cells = (
                f"{found[name]['mean']:.2f} ± {found[name]['standard_error']:.2f}"
                for name in ("recall", "top1")
            )
            lines.append(f"| {student} | `{recipe}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Train missing runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--out", type=Path, default=Path("unlabelled_class.json"))
    options = parser.parse_args()
    students = list(yaml.safe_load(PARAMS.read_text())["students"])
    project = Project(options.folder, PARAMS, options.overrides)
    print(table(measure(project, students, options.seeds, options.out)))


if __name__ == "__main__":
    main()
