"""Many labels: students of a tagger's exact views, of one view, of the clean image, and of labels.

    python -m tests.benchmarks.many_labels FOLDER [--seeds 3] [--set KEY.PATH=VALUE ...] [--out FILE.json]

A canvas shows one to four pictures of the built-in images, each at half its size; its tags are their
classes. 8,000 canvases of the training pictures, 2,000 of the test pictures. Teacher (WRN-16-2) and dump
are made by the real commands; students (ResNet-8) see the same views in the same order for one seed, the
last epoch counts:

* labels: binary cross-entropy, on fresh views;
* exact: `binary_kd` with the teacher's outputs on these very views, a view an epoch; exact V=1: one view;
* clean: `binary_kd` with its outputs on the un-augmented canvas, as EfficientAT stores them
  (arXiv 2211.04772), while the student sees the views. A crop may have lost a tag that the teacher saw.

Told is the mAP on the test canvases, mean and standard error over seeds, and the difference to `exact`
paired by seed. Runs in the file are not repeated.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.losses import make_loss
from pipeline.modalities.images.form import ImageSource
from pipeline.modalities.images.sources.arrays import CLASSES, load_subset
from pipeline.samples.samples import Sample
from pipeline.store.reader import LogitStore
from stages import paths
from stages.runtime import keep_freed_memory
from tests.benchmarks.parity_full import open_rig
from tests.benchmarks.project import Project, Run, resume
from tests.benchmarks.rig import FirstViews, GivenTargets
from tests.benchmarks.small_students import figure, summary

PARAMS = Path(__file__).with_suffix(".yaml")
ARMS = ("labels", "exact", "exact V=1", "clean")
REFERENCE = "exact"
COUNTS = {"train": 8000, "test": 2000}
_CELLS = 4


def canvases() -> ImageSource:
    """Return canvases (28, 28, 1) of one to four pictures, tagged with their classes."""
    arrays = load_subset()
    splits = {
        split: _canvases(split, arrays[f"{split}_images"], arrays[f"{split}_labels"]) for split in COUNTS
    }
    return ImageSource(classes=CLASSES, channels=1, **splits)  # type: ignore[arg-type]


def _canvases(split: str, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> list[Sample]:
    generator, samples = np.random.default_rng(len(images) + len(split)), []
    # (N, 14, 14): each pixel is the mean of four.
    small = images.reshape(-1, 14, 2, 14, 2).astype(np.uint16).sum((2, 4)) // 4
    for number in range(COUNTS[split]):
        shown = generator.permutation(_CELLS)[: generator.integers(1, _CELLS + 1)]
        chosen = generator.integers(0, len(images), len(shown))
        cells = np.zeros((_CELLS, 14, 14), np.uint8)
        cells[shown] = small[chosen]
        # Four cells (2, 2, 14, 14) side by side.
        canvas = cells.reshape(2, 2, 14, 14).transpose(0, 2, 1, 3).reshape(28, 28, 1)
        tags = np.zeros(len(CLASSES), np.int8)
        tags[labels[chosen]] = 1
        samples.append(Sample(f"{split}/{number}", tags, canvas.copy))
    return samples


def open_arms(project: Project) -> dict[str, Callable[[int], float]]:
    """Return per arm a function that trains a student with a seed and returns its mAP."""
    rig = open_rig(project, torch.device("cpu"), recipe="binary_kd")
    store = LogitStore.open(project.folder / paths.store("main"))
    feed, clean = rig.feed(rig.views), functools.cache(rig.clean_logits)

    def exact(count: int) -> FirstViews:
        return FirstViews(store, feed, count)

    return {
        "labels": lambda seed: rig.train("labels", feed, None, seed, make_loss("bce", {})),
        "exact": lambda seed: rig.train("exact", feed, exact(store.n_views), seed),
        "exact V=1": lambda seed: rig.train("exact V=1", feed, exact(1), seed),
        "clean": lambda seed: rig.train("clean", feed, GivenTargets([clean()], store.n_views), seed),
    }


def measure(project: Project, seeds: int, out: Path) -> list[Run]:
    """Return the runs, with seeds in the outermost loop; make those missing from a file."""
    arms = functools.cache(lambda: open_arms(project))

    def make(run: Run) -> Run:
        project.make("main", teachers=["teacher"])
        return {"map": arms()[run["arm"]](run["seed"]), "teacher_map": project.teacher("teacher")["map"]}

    return resume(out, [{"arm": arm, "seed": seed} for seed in range(seeds) for arm in ARMS], make)


def by_arm(runs: Sequence[Run], reference: str) -> dict[str, dict[str, float]]:
    """Return the `summary` of each arm, paired by seed with a reference."""
    own = sorted(runs, key=itemgetter("seed"))
    return summary({arm: [run["map"] for run in own if run["arm"] == arm] for arm in ARMS}, reference)


def table(runs: Sequence[Run]) -> str:
    """Return the mAP of each arm in percent as Markdown, the teacher first."""
    lines = ["| arm | mAP, % | difference to `exact` |", "|---|---|---|"]
    lines.append(f"| teacher | {100 * runs[0]['teacher_map']:.2f} |  |")
    for arm, found in by_arm(runs, REFERENCE).items():
        mean = figure(found["mean"], found["standard_error"])
        apart = figure(found["difference"], found["difference_standard_error"], signed=True)
        lines.append(f"| {arm} | {mean} | {'' if arm == REFERENCE else apart} |")
    return "\n".join(lines)


def main() -> None:
    """Train missing runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--out", type=Path, default=Path("many_labels.json"))
    given = parser.parse_args()
    keep_freed_memory()
    project = Project(given.folder, PARAMS, given.overrides)
    print(table(measure(project, given.seeds, given.out)))


if __name__ == "__main__":
    main()
