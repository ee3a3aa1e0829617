"""Compare students with few labels: distilled from a dump of all images, against trained on labels only.

    python -m tests.benchmarks.hidden_labels [--labels 10 100] [--seeds 3] [--out FILE.json]

Runs the job of hidden_labels.yaml (built-in images, pretrained teacher, two students) with the real
commands in a temporary folder, with `data.labels_per_class` set. `kd` learns from the dump of all images
and the remaining labels; `scratch` learns from the labelled images only, in as many steps. Prints the test
top-1 of the best validation epoch in percent, mean and standard error over seeds, and the difference paired
by seed. Each run is saved when it finishes, and runs already in the file are skipped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.commands import pipeline
from tests.benchmarks.environment import environment
from tests.benchmarks.small_students import summary

PARAMS = Path(__file__).with_suffix(".yaml")
DUMP = "main"
WAYS = {"scratch": (), "kd": ("--dump", DUMP)}
Run = dict[str, Any]
KEYS = ("labels_per_class", "student", "recipe", "seed")


def planned(labels: Sequence[int], students: Sequence[str], seeds: int) -> list[Run]:
    """Return the runs with seeds in the outermost loop, so that every arm has early results."""
    arms = itertools.product(range(seeds), labels, students, WAYS)
    return [dict(zip(KEYS, (n, student, recipe, seed), strict=True)) for seed, n, student, recipe in arms]


def missing(runs: Sequence[Run], done: Sequence[Run]) -> list[Run]:
    """Return the runs that are not done."""
    known = [{key: run[key] for key in KEYS} for run in done]
    return [run for run in runs if run not in known]


def set_up(project: Path, params: Path) -> None:
    """Prepare the data, evaluate the teacher and dump its logits, unless already done."""
    shutil.copy(params, project / "params.yaml")
    teacher = yaml.safe_load(params.read_text())["dumps"][DUMP]["teacher"]
    for command in (["prepare"], ["train-teacher", teacher], ["cache-logits", DUMP]):
        pipeline(project, *command)


def measured(project: Path, run: Run) -> Run:
    """Train a student and return its run with the result."""
    few = f"data.labels_per_class={run['labels_per_class']}"
    words = [run["student"], run["recipe"], str(run["seed"])]
    pipeline(project, "train-student", *words, *WAYS[run["recipe"]], "--set", few)
    begins = DUMP if WAYS[run["recipe"]] else "baseline"
    metrics = json.loads((project / "runs" / "-".join([begins, *words]) / "metrics.json").read_text())
    return {**run, **{name: metrics[name] for name in ("labelled_images", "top1", "nll", "best_epoch")}}


def table(runs: Sequence[Run]) -> str:
    """Return top-1 by labels and student as Markdown, for all pairs of runs that exist."""
    lines = [
        f"| labels per class | student | {' | '.join(WAYS)} | kd − scratch, paired |",
        "|---|---|---|---|---|",
    ]
    for n, student in dict.fromkeys((run["labels_per_class"], run["student"]) for run in runs):
        arms = {way: _top1(runs, n, student, way) for way in WAYS}
        if not all(arms.values()):
            continue
        found = summary(arms, "scratch")
        cells = [f"{found[way]['mean']:.2f} ± {found[way]['standard_error']:.2f}" for way in WAYS]
        kd = found["kd"]
        difference = f"{kd['difference']:+.2f} ± {kd['difference_standard_error']:.2f}"
        lines.append(f"| {n} | {student} | {' | '.join(cells)} | {difference} |")
    return "\n".join(lines)


def _top1(runs: Sequence[Run], n: int, student: str, recipe: str) -> list[float]:
    of_arm = [run for run in runs if [run[key] for key in KEYS[:3]] == [n, student, recipe]]
    return [run["top1"] for run in sorted(of_arm, key=lambda run: run["seed"])]


def measure(runs: Sequence[Run], params: Path, out: Path) -> list[Run]:
    """Make the runs missing from a file, save each on completion, and return all runs in the file."""
    done: list[Run] = json.loads(out.read_text())["runs"] if out.exists() else []
    left = missing(runs, done)
    if not left:
        return done
    with tempfile.TemporaryDirectory() as name:
        set_up(Path(name), params)
        for run in left:
            done.append(measured(Path(name), run))
            out.write_text(json.dumps({"environment": environment(), "runs": done}, indent=1) + "\n")
    return done


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--labels", type=int, nargs="+", default=[10, 100], help="labels per class")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("hidden_labels.json"))
    arguments = parser.parse_args()
    students = yaml.safe_load(PARAMS.read_text())["sweep"]["students"]
    print(table(measure(planned(arguments.labels, students, arguments.seeds), PARAMS, arguments.out)))


if __name__ == "__main__":
    main()
