"""Students that have converged: does distillation still gain, and how does the gain change with length?

    python -m tests.benchmarks.converged FOLDER [--seeds 5] [--part table curve] [--out FILE.json]

The built-in data and teacher, 20 cached views. `table`: three students, two baselines and `kd`, for 60
epochs, and two more losses for ResNet-8. `curve`: ResNet-8 from labels and by `kd` for 5 to 120 epochs; its
last step shows whether 60 epochs are enough. Epochs are chosen on validation images. Printed is the top-1
on the 10,000 test images in percent, mean and standard error over seeds, with the paired difference to the
best baseline and its 95 % t interval. Hours on two cores: runs in the file are not repeated, and an
interrupted run resumes in its epoch.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.benchmarks.project import Project, Run, resume

PARAMS = Path(__file__).with_suffix(".yaml")
STUDENTS = ("resnet8", "shufflenet", "mobilenet")
BASELINES = ("scratch", "label_smoothing")
MORE_LOSSES = ("dist", "mse")
EPOCHS, LENGTHS = 60, (5, 10, 20, 40, 60, 120)
CURVE_SEEDS = 3
# 97.5 % quantiles of Student's t distribution for 1 to 9 degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def table_runs(seeds: int) -> Iterator[Run]:
    """Yield the runs of the table, seed by seed, so that every arm has early results."""
    for seed in range(seeds):
        for student, recipe in itertools.product(STUDENTS, (*BASELINES, "kd")):
            yield {"student": student, "recipe": recipe, "epochs": EPOCHS, "seed": seed}
        for recipe in MORE_LOSSES:
            yield {"student": "resnet8", "recipe": recipe, "epochs": EPOCHS, "seed": seed}


def curve_runs() -> Iterator[Run]:
    """Yield the runs of the curve."""
    for seed, epochs, recipe in itertools.product(range(CURVE_SEEDS), LENGTHS, ("scratch", "kd")):
        yield {"student": "resnet8", "recipe": recipe, "epochs": epochs, "seed": seed}


def measure(folder: Path, wanted: Sequence[Run], out: Path) -> list[Run]:
    """Return the runs; make those missing from a file."""

    def make(run: Run) -> Run:
        # A folder per length: a run's name does not tell its epochs.
        epochs = run["epochs"]
        project = Project(folder / f"{epochs}-epochs", PARAMS, [f"training.epochs={epochs}"])
        project.make("main", teachers=["wrn_16_2"])
        dump = None if run["recipe"] in BASELINES else "main"
        metrics = project.student(dump, run["student"], run["recipe"], run["seed"])
        return {name: metrics[name] for name in ("top1", "nll", "ece", "agreement", "best_epoch")}

    return resume(out, wanted, make)


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Return mean, standard error and half of the 95 % t interval of paired differences (n,), 2 to 10.

    >>> [round(value, 3) for value in interval([1.0, 2.0, 3.0])]
    [2.0, 0.577, 2.484]
    """
    error = statistics.stdev(differences) / len(differences) ** 0.5
    return statistics.fmean(differences), error, _T[len(differences) - 2] * error


def arm(runs: Sequence[Run], **values: object) -> dict[int, float]:
    """Return seed -> top-1 in percent of the runs with these values."""
    chosen = (run for run in runs if values.items() <= run.items())
    return {run["seed"]: 100 * run["top1"] for run in chosen}


def table(runs: Sequence[Run]) -> str:
    """Return top-1 by student and recipe as Markdown."""
    lines = [
        "| student | recipe | top-1 | − best baseline, paired | 95 % interval |",
        "|---|---|---|---|---|",
    ]
    for student in STUDENTS:
        of_student = {
            recipe: arm(runs, student=student, recipe=recipe, epochs=EPOCHS)
            for recipe in (*BASELINES, "kd", *MORE_LOSSES)
        }
        means = {recipe: statistics.fmean(top1.values()) for recipe, top1 in of_student.items() if top1}
        best = max((recipe for recipe in BASELINES if recipe in means), key=means.__getitem__, default=None)
        for recipe, mean in means.items():
            compared = ["", ""] if recipe in BASELINES else _compared(of_student, recipe, best)
            cells = [student, f"`{recipe}`", _with_error(mean, of_student[recipe]), *compared]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def curve(runs: Sequence[Run]) -> str:
    """Return top-1 of ResNet-8 by the number of epochs as Markdown."""
    lines = ["| epochs | `scratch` | `kd` | difference, paired |", "|---|---|---|---|"]
    for epochs in LENGTHS:
        arms = {
            recipe: arm(runs, student="resnet8", recipe=recipe, epochs=epochs)
            for recipe in ("scratch", "kd")
        }
        if all(arms.values()):
            each = [_with_error(statistics.fmean(top1.values()), top1) for top1 in arms.values()]
            lines.append(f"| {epochs} | {' | '.join(each)} | {_compared(arms, 'kd', 'scratch')[0]} |")
    return "\n".join(lines)


def _with_error(mean: float, top1: dict[int, float]) -> str:
    error = statistics.stdev(top1.values()) / len(top1) ** 0.5 if len(top1) > 1 else float("nan")
    return f"{mean:.2f} ± {error:.2f}"


def _compared(arms: dict[str, dict[int, float]], recipe: str, baseline: str | None) -> list[str]:
    """Return the paired difference to a baseline and its interval; empty for fewer than two pairs."""
    other = {} if baseline is None else arms[baseline]
    paired = [top1 - other[seed] for seed, top1 in arms[recipe].items() if seed in other]
    if len(paired) < 2:
        return ["", ""]
    mean, error, half = interval(paired)
    return [f"{mean:+.2f} ± {error:.2f}", f"{mean - half:+.2f} to {mean + half:+.2f}"]


def main() -> None:
    """Train missing runs and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=5, choices=range(1, 11))
    parser.add_argument("--part", nargs="+", choices=["table", "curve"], default=["table", "curve"])
    parser.add_argument("--out", type=Path, default=Path("converged.json"))
    options = parser.parse_args()
    if "table" in options.part:
        print(table(measure(options.folder, list(table_runs(options.seeds)), options.out)))
    if "curve" in options.part:
        print(curve(measure(options.folder, list(curve_runs()), options.out)))


if __name__ == "__main__":
    main()
