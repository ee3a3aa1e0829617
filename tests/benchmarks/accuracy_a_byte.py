"""Measure how much a student learns per stored byte: agreement with its teacher against bytes per view.

    python -m tests.benchmarks.accuracy_a_byte PHOTOGRAPHS [--cache FILE.pt] [--seeds 3] [--out FOLDER]

EfficientNet-Lite2 (1,000 classes, see imagenet_teacher.py) evaluates random crops of unlabelled photographs
at 260 pixels. Small students (0.4 M parameters) see the same crops at 64 pixels and learn from its logits
only, as decoded by our codecs or by other systems' formats, with KL at T = 1. On unseen crops, the
benchmark measures how often a student predicts the teacher's first class, and KL(teacher || student).
Codecs are fitted to every other photograph.
Writes accuracy_a_byte.json and .svg; results are saved after each student.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from torch import Tensor

from pipeline.codecs import Codec, TeacherOutput, find_codec
from pipeline.codecs.fitting import fit_features
from pipeline.dump.choose_codec import Pilot, measure
from pipeline.loading.feed import Feed
from pipeline.loading.loader import Loader
from pipeline.losses import make_loss
from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.modalities.prepared import PreparedData
from pipeline.tasks.class_figures import compare
from pipeline.tasks.classes import CLASSES as TASK
from pipeline.training.loop import RunSpec, fit
from pipeline.training.settings import TrainingSettings
from stages.runtime import keep_freed_memory
from tests.benchmarks.environment import environment
from tests.benchmarks.formats import FORMATS
from tests.benchmarks.imagenet_teacher import VIEWS, prepared_photographs
from tests.benchmarks.rate_distortion import PILOT_ROWS, rows_of, shuffled, teacher_says
from tests.benchmarks.rig import GivenTargets, RememberingFeed, not_validated
from tests.benchmarks.small_students import CPU, network

TRAINED_VIEWS, TEST_VIEWS = 25, 3
CODECS = ("fp16", "affine8", "affine6", "affine4", "topk-100", "topk-50", "topk-10", "topk-5", "topk-1")
BUDGETS = (1e-3, 1e-2, 2.4e-2, 1.5e-1, 5e-1)
OTHERS = ("tinyvit-100", "tinyvit-10", "ml-dr-5", "distillkit-50")
SETTINGS = TrainingSettings(epochs=6 * TRAINED_VIEWS, batch_size=50, learning_rate=0.05, warmup_epochs=5)
LOSS = make_loss("kd", {"temperature": 1.0, "ce_weight": 0.0, "kd_weight": 1.0})


def labels(
    views: list[TeacherOutput], pilot: TeacherOutput, head: torch.nn.Linear
) -> Iterator[tuple[str, float, list[Tensor]]]:
    """Yield name, bytes per view and the decoded logits of each view, for every codec and format."""
    known: list[tuple[str, Codec]] = [(name, find_codec(name, len(head.weight))) for name in CODECS]
    known += [(f"features ({budget:g})", fit_features(pilot, head, budget, TASK)) for budget in BUDGETS]
    together = shuffled(rows_of(views, slice(None)))
    yield "online", 0.0, [view.logits for view in views]
    for name, codec in known:
        size = measure(codec, Pilot(together, 1.0), TASK).bytes_per_row
        yield name, size, [codec.decode(codec.encode(view, TASK)) for view in views]
    for name in OTHERS:
        stored = [FORMATS[name](view.logits) for view in views]
        yield f"{name} (theirs)", stored[0].bytes_per_sample, [part.logits_BC for part in stored]


def train(feed: Feed, targets: list[Tensor], seed: int, state: Path) -> torch.nn.Module:
    """Train one student."""
    torch.manual_seed(seed)
    student = network(16, 32, 64, 128, stride=2, classes=1000)
    state.unlink(missing_ok=True)
    fit(
        student,
        Loader(feed, GivenTargets(targets), batch_size=SETTINGS.batch_size, seed=seed),
        RunSpec(loss=LOSS, settings=SETTINGS, seed=seed, state_path=state),
        device=CPU,
        evaluate=not_validated,
    )
    return student.eval()


@torch.inference_mode()
def judge(student: torch.nn.Module, feed: Feed, truth: list[Tensor]) -> dict[str, float | None]:
    """Compare a student with its teacher on unseen views."""
    rows = [np.arange(len(feed.images))]
    logits = [
        student(images)
        for view in range(TRAINED_VIEWS, TRAINED_VIEWS + TEST_VIEWS)
        for images in feed.batches(view, rows)
    ]
    unlabelled = torch.full((sum(map(len, logits)),), -1)
    found = compare(torch.cat(logits), unlabelled, torch.cat(truth))
    return {"agreement": found.agreement, "kl_to_teacher": found.kl_to_teacher}


def summary(row: dict[str, Any]) -> dict[str, Any]:
    """Add means and standard errors over seeds."""
    for figure in ("agreement", "kl_to_teacher"):
        values = [run[figure] for run in row["runs"]]
        row[figure] = statistics.mean(values)
        row[f"{figure}_standard_error"] = (
            statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
        )
    return row


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Draw agreement against bytes."""
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "accuracy_a_byte"
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 4.5))
    for prefix, marker, colour in (
        *(("features", "o-", "C0"), ("affine", "s-", "C2"), ("fp16", "D", "C2"), ("topk", "^-", "C1")),
        *((other, "x", "C3") for other in OTHERS),
    ):
        some = sorted((r for r in rows if r["name"].startswith(prefix)), key=lambda r: r["bytes"])
        axis.errorbar(
            [r["bytes"] for r in some],
            [100 * r["agreement"] for r in some],
            yerr=[100 * (r["agreement_standard_error"] or 0) for r in some],
            fmt=marker,
            color=colour,
            label=prefix,
        )
    online = next(r for r in rows if r["name"] == "online")
    axis.axhline(100 * online["agreement"], color="black", lw=0.8, label="the teacher's own logits")
    axis.set(xscale="log", xlabel="bytes per sample and view", ylabel="agreement with the teacher, %")
    axis.legend(fontsize=7)
    axis.grid(alpha=0.3, which="both")
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    """Train, evaluate, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--cache", type=Path, help="file that keeps the teacher's outputs between runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("tests/benchmarks/results"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    views, head = teacher_says(arguments.photographs, TRAINED_VIEWS + TEST_VIEWS, arguments.cache)
    trained, truth = views[:TRAINED_VIEWS], [view.logits for view in views[TRAINED_VIEWS:]]
    pilot = shuffled(rows_of(trained, slice(0, None, 2)))[:PILOT_ROWS]
    with tempfile.TemporaryDirectory() as folder:
        data: PreparedData = prepared_photographs(arguments.photographs, Path(folder))
        preprocessing = Preprocessing(size=64, **data.statistics)
        feed = RememberingFeed(data.train, VIEWS, preprocessing, device=CPU)
        rows: dict[str, dict[str, Any]] = {}
        for seed in range(arguments.seeds):
            for name, size, targets in labels(trained, pilot, head):
                student = train(feed, targets, seed, Path(folder) / "state")
                row = rows.setdefault(name, {"name": name, "bytes": round(size, 1), "runs": []})
                row["runs"].append(judge(student, feed, truth))
                print(seed, name, round(size, 1), row["runs"][-1], flush=True)
                result = {"environment": environment(), "rows": [summary(r) for r in rows.values()]}
                (arguments.out / "accuracy_a_byte.json").write_text(json.dumps(result, indent=1) + "\n")
    plot(list(rows.values()), arguments.out / "accuracy_a_byte.svg")


if __name__ == "__main__":
    main()
