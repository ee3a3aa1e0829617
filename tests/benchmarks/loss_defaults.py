"""Choose the losses' defaults on validation images: some settings of each loss, two students, short runs.

    python -m tests.benchmarks.loss_defaults FOLDER [--cifar10 SUBSET] [--set KEY.PATH=VALUE ...]
        [--losses NAME ...] [--seeds 1] [--part I/N] [--out FILE.json]

FOLDER, SUBSET and --set are those of `tests.benchmarks.loss_table`: its data, teacher, dump and students.
Seeds start at 100, so that no run of a table is reused. The score of a run is its best top-1 on the
validation images; test images are not read. Results are added to the file, and runs in it are skipped.
Settings are ranked by their worst difference to cross-entropy, over students and files.

    python -m tests.benchmarks.loss_defaults --ranking FILE.json ...
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.evaluation.context import RunContext
from pipeline.losses import LOSSES, make_loss
from pipeline.modalities.prepared import PreparedData
from pipeline.models.pretrained import initial_network
from pipeline.store.reader import LogitStore
from pipeline.tasks.table import find_task
from pipeline.training.loop import RunSpec
from pipeline.training.run import train
from stages import paths
from stages.params import Params
from stages.params_file import load_params
from tests.benchmarks.cifar_subset import PARAMS, changed
from tests.benchmarks.project import Project, Run, resume

FIRST_SEED = 100
Settings = Mapping[str, Any]


def _warm(value: float, share: float = 0.1) -> dict[str, float]:
    return {"warmup": value, "share": share}


# Smaller weights with the papers' proportions, a share of the hard labels as in `kd`, and warm-ups.
CANDIDATES: Mapping[str, Sequence[Settings]] = {
    "scratch": [{}],
    "kd": [{}],
    "dkd": [
        {"kd_weight": 0.125},
        {"kd_weight": _warm(0.125)},
        {"beta": 2, "kd_weight": 0.25},
        {"beta": 1, "kd_weight": 0.5},
        {"beta": 2, "ce_weight": 0.1, "kd_weight": 0.5},
    ],
    "nkd": [
        {"ce_weight": 0.3, "kd_weight": 0.3},
        {"ce_weight": 0.1, "kd_weight": 0.4},
        {"temperature": 4, "ce_weight": 0.3, "kd_weight": 0.1},
    ],
    "wsld": [
        {"ce_weight": 0.3, "kd_weight": 0.75},
        {"ce_weight": 0.1, "kd_weight": 0.25},
        {"ce_weight": 0.1, "kd_weight": _warm(0.5)},
        {"temperature": 4, "ce_weight": 0.1, "kd_weight": 0.25},
    ],
    "dist": [
        {"temperature": 1, "inter_weight": 1, "intra_weight": 1},
        {"inter_weight": 0.5, "intra_weight": 0.5},
        {"inter_weight": 0.1, "intra_weight": 0.1},
        {"inter_weight": _warm(0.5, 0.25), "intra_weight": _warm(0.5, 0.25)},
    ],
    "kd_ls": [
        {"kd_weight": 0.9},
        {"kd_weight": 2},
        {"ce_weight": 1, "kd_weight": 1},
        {"ce_weight": 0.5, "kd_weight": _warm(1, 0.25)},
    ],
    "wttm": [
        {"ce_weight": 1, "kd_weight": 0.2},
        {"ce_weight": 0.2, "kd_weight": 0.2},
        {"ce_weight": 0.2, "kd_weight": 0.8},
        {"gamma": 0.5, "ce_weight": 0.2, "kd_weight": 0.5},
    ],
    "crd": [{"ce_weight": 0.1, "kd_weight": 0.9, "feature_weight": weight} for weight in (0.8, 0.2, 0.05)],
    "rkd": [
        {"ce_weight": 0.1, "kd_weight": 0.9, "distance_weight": weight, "angle_weight": 2 * weight}
        for weight in (25, 5, 1)
    ],
    "centre": [{"ce_weight": 0.1, "kd_weight": 0.9, "feature_weight": weight} for weight in (0.003, 0.001)],
}


def planned(losses: Sequence[str], students: Sequence[str], seeds: int) -> Iterator[Run]:
    """Yield the runs: every setting of these losses, and of cross-entropy, with each student and seed."""
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        for loss, student in itertools.product(dict.fromkeys(["scratch", *losses]), students):
            for settings in CANDIDATES[loss]:
                yield {"loss": loss, "settings": settings, "student": student, "seed": seed}


def score(folder: Path, params: Params, run: Run) -> float:
    """Train a student and return its best top-1 on the validation images, 0..1."""
    spec = params.student(run["student"])
    data = PreparedData.open(folder / paths.PREPARED)
    context = RunContext(data=data, task=find_task(), device=torch.device("cpu"), workers=1)
    network, card = initial_network(data, spec.start(None), run["seed"])
    taught = LOSSES[run["loss"]].needs_teacher
    with tempfile.TemporaryDirectory() as name:
        result = train(
            context,
            network,
            card,
            RunSpec(
                loss=make_loss(run["loss"], run["settings"]),
                settings=spec.training.settings(),
                seed=run["seed"],
                state_path=Path(name) / "run.state",
            ),
            views=spec.training.views,
            store=LogitStore.open(folder / paths.store("main")) if taught else None,
        )
    scores = [record.validation.top1 for record in result.history if record.validation is not None]
    return max(top1 for top1 in scores if top1 is not None)


def measure(project: Project, params: Params, runs: Sequence[Run], out: Path) -> list[Run]:
    """Return the runs with their scores; make those missing from a file."""

    def make(run: Run) -> Run:
        project.make("main", teachers=["main"])
        return {"validation_top1": score(project.folder, params, run)}

    return resume(out, runs, make)


def ranking(results: Mapping[str, Sequence[Run]]) -> str:
    """Return the settings of each loss as Markdown, best first by the worst cell: a student on some data.

    Args:
        results: name of the data -> the runs on it.
    """
    cells: dict[tuple[str, str], dict[str, list[float]]] = {}
    for data, runs in results.items():
        plain = {(run["student"], run["seed"]): run for run in runs if run["loss"] == "scratch"}
        for run in runs:
            base = plain.get((run["student"], run["seed"]))
            if base is not None and run is not base:
                gain = 100 * (run["validation_top1"] - base["validation_top1"])
                of_settings = cells.setdefault((run["loss"], json.dumps(run["settings"])), {})
                of_settings.setdefault(f"{data} {run['student']}", []).append(gain)
    rows = []
    for (loss, settings), gains in cells.items():
        means = {cell: statistics.mean(some) for cell, some in gains.items()}
        rows.append((loss, -min(means.values()), settings, means))
    lines = ["| loss | settings | worst | mean | by data and student |", "|---|---|---|---|---|"]
    for loss, worst, settings, means in sorted(rows, key=lambda row: row[:3]):
        each = ", ".join(f"{cell} {gain:+.2f}" for cell, gain in means.items())
        mean = statistics.mean(means.values())
        lines.append(f"| `{loss}` | `{settings}` | {-worst:+.2f} | {mean:+.2f} | {each} |")
    return "\n".join(lines)


def _runs(files: Sequence[Path]) -> dict[str, list[Run]]:
    return {file.stem: json.loads(file.read_text())["runs"] for file in files}


def main() -> None:
    """Train missing runs, or print a ranking."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--cifar10", type=Path)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--losses", nargs="+", choices=list(CANDIDATES), default=list(CANDIDATES))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--part", default="1/1")
    parser.add_argument("--out", type=Path, default=Path("loss_defaults.json"))
    parser.add_argument("--ranking", type=Path, nargs="+")
    options = parser.parse_args()
    if options.ranking:
        print(ranking(_runs(options.ranking)))
        return
    overrides = [*changed(options.cifar10), *options.overrides]
    params = load_params(PARAMS, overrides)
    part, parts = map(int, options.part.split("/"))
    runs = list(planned(options.losses, params.sweep.students, options.seeds))[part - 1 :: parts]
    found = measure(Project(options.folder, PARAMS, overrides), params, runs, options.out)
    print(ranking({options.out.stem: found}))


if __name__ == "__main__":
    main()
