"""Compare all losses: two students, three seeds, one dump.

    python -m tests.benchmarks.loss_table FOLDER [--set KEY.PATH=VALUE ...] [--part I/N] [--out FILE.json]

Runs the commands in FOLDER as a user types them, with loss_table.yaml beside this file. --set goes to every
command, to try other data, teachers or epochs. Finished runs are skipped, so an interrupted table resumes,
and several processes may share it: --part 1/2 and --part 2/2. The table has the test top-1 of the best
validation epoch and of the last epoch, in percent: means over seeds with standard errors, and differences
to cross-entropy paired by seed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch

from pipeline.evaluation.context import RunContext
from pipeline.modalities.prepared import PreparedData
from pipeline.models.checkpoint import load_checkpoint
from pipeline.tasks.table import find_task
from stages import paths
from stages.params import Params
from stages.params_file import load_params
from tests.benchmarks.commands import pipeline
from tests.benchmarks.environment import environment
from tests.benchmarks.small_students import summary

PARAMS = Path(__file__).with_suffix(".yaml")
Run = dict[str, Any]
_REFERENCE = "scratch"


@dataclass(frozen=True, slots=True)
class Sweep:
    """Runs in a folder.

    Args:
        folder: working folder of the commands.
        overrides: changed parameters.
    """

    folder: Path
    overrides: Sequence[str]

    def call(self, *arguments: str) -> None:
        """Run a command of the project."""
        settings = [part for override in self.overrides for part in ("--set", override)]
        pipeline(self.folder, *arguments, "--params", str(PARAMS), *settings)

    def prepare(self) -> None:
        """Make the data, teacher and dump that all runs read."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / paths.store("main") / "manifest.json").exists():
            self.call("prepare")
            self.call("train-teacher", "main")
            self.call("cache-logits", "main")

    def run(self, recipe: str, student: str, seed: int, *, taught: bool) -> Run:
        """Return a run's figures; train it first if they are missing."""
        name = paths.run_name("main" if taught else None, student, recipe, seed)
        found = self.folder / paths.RUNS / name / "metrics.json"
        if not found.exists():
            self.call("train-student", student, recipe, str(seed), *(["--dump", "main"] if taught else []))
        metrics = json.loads(found.read_text())
        return {
            "recipe": recipe,
            "student": student,
            "seed": seed,
            "best": metrics["top1"],
            "last": self._last(name),
        }

    def _last(self, name: str) -> float:
        """Return the top-1 after the last epoch, which a run does not record; measured once."""
        known = self.folder / paths.RUNS / name / "last.json"
        if known.exists():
            return float(json.loads(known.read_text()))
        network, card = load_checkpoint(self.folder / paths.STUDENTS / f"{name}.last.pt")
        data = PreparedData.open(self.folder / paths.PREPARED)
        context = RunContext(data=data, task=find_task(), device=torch.device("cpu"), workers=1)
        top1 = context.evaluate(network.eval(), card.preprocessing, data.test).top1
        assert top1 is not None
        known.write_text(json.dumps(top1))
        return top1


def wanted(params: Params) -> Iterator[tuple[str, str, int, bool]]:
    """Yield (recipe, student, seed, whether it has a teacher), seed by seed."""
    sweep = params.sweep
    for seed in sweep.seeds:
        for student in sweep.students:
            yield from ((recipe, student, seed, False) for recipe in sweep.baselines)
            yield from ((recipe, student, seed, True) for recipe in sweep.recipes)


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
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--part", default="1/1")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    sweep, params = Sweep(options.folder, options.overrides), load_params(PARAMS, options.overrides)
    sweep.prepare()
    part, parts = map(int, options.part.split("/"))
    every = list(wanted(params))[part - 1 :: parts]
    runs = [sweep.run(recipe, student, seed, taught=taught) for recipe, student, seed, taught in every]
    if parts == 1:
        print(table(runs))
    if options.out:
        described = {"environment": environment(), "overrides": options.overrides, "runs": runs}
        options.out.write_text(json.dumps(described, indent=1) + "\n")


if __name__ == "__main__":
    main()
