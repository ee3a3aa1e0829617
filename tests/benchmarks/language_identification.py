"""Language identification: students of exact views, of one view, of the usual mistake, of labels.

    python -m tests.benchmarks.language_identification FOLDER [--student bytes] [--seeds 5] [--split test]
        [--views 8] [--labels 2] [--set KEY=VALUE ...] [--out FILE.json]

Data, teacher and dump are those of the preset `text`, made by the real commands in FOLDER, with more views.
All students train for the preset's epochs on the same views, in the same order for one seed:

    scratch, label_smoothing       labels alone
    kd V=8, kd V=1                 the teacher's logits of exactly these views; V=1 has one view alone
    mistake                        the teacher's logits of the plain texts, while the student sees the views
    scratch few, kd few            2 labels per class; kd learns from all texts, scratch from the labelled
    ones

Told is the top-1 of the last epoch, mean and standard error over seeds, and the difference to scratch
paired by seed. Settings are chosen with --split validation; then --split test is looked at once. Each run
is written when it is done; what is in the file is not made again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.evaluation.context import RunContext
from pipeline.loading.feed import Feed, consecutive
from pipeline.loading.loader import Loader
from pipeline.loading.training_set import TrainingSet
from pipeline.losses import make_loss
from pipeline.modalities.prepared import PreparedData
from pipeline.modalities.table import views_of
from pipeline.models.checkpoint import load_checkpoint
from pipeline.models.pretrained import initial_network
from pipeline.models.teacher import Teacher
from pipeline.samples.labels import keep_labels
from pipeline.store.reader import LogitStore
from pipeline.tasks.table import find_task
from pipeline.tasks.task import Figures
from pipeline.training.loop import RunSpec, fit
from stages import paths
from stages.params import Params
from stages.params_file import load_params
from stages.runtime import keep_freed_memory
from tests.benchmarks.commands import pipeline
from tests.benchmarks.environment import environment
from tests.benchmarks.rig import FirstViews, GivenTargets
from tests.benchmarks.small_students import summary

CPU = torch.device("cpu")
REFERENCE = "scratch"
_BATCH = 256


def set_up(folder: Path, changes: Sequence[str]) -> None:
    """Write the preset's parameters, and make data, teacher and dump, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "params.yaml").exists():
        pipeline(folder, "preset", "text", "--out", "params.yaml")
    told = [part for change in changes for part in ("--set", change)]
    for command in (["prepare"], ["train-teacher", "teacher"], ["cache-logits", "main"]):
        if command[0] != "train-teacher" or not (folder / paths.teacher_checkpoint("teacher")).exists():
            pipeline(folder, *command, *told)


@dataclass(frozen=True, kw_only=True)
class Rig:
    """Data, teacher, store and parameters of all students.

    Args:
        folder: of the project.
        params: its parameters.
        student: name of the student.
        split: whose top-1 is told.
        labels: labels per class of the arms with few.
    """

    folder: Path
    params: Params
    student: str
    split: str
    labels: int

    @cached_property
    def context(self) -> RunContext:
        """The prepared data on the CPU."""
        data = PreparedData.open(self.folder / paths.PREPARED)
        return RunContext(data=data, task=find_task(), device=CPU, workers=1)

    @cached_property
    def store(self) -> LogitStore:
        """The teacher's logits of all views."""
        return LogitStore.open(self.folder / paths.store("main"))

    def clean_logits(self) -> Tensor:
        """Return the teacher's logits (N, C) on the plain texts."""
        network, card = load_checkpoint(self.folder / paths.teacher_checkpoint("teacher"))
        teacher = Teacher(name="teacher", network=network, card=card, precision="fp32")
        feed = self.context.feed(self.context.data.train, None, card.preprocessing)
        batches = consecutive(len(feed.images), _BATCH)
        return torch.cat([teacher.logits(ids) for ids in feed.batches(0, batches)])

    def arms(self) -> dict[str, Callable[[int], float]]:
        """Return per arm a function that trains a student with a seed and returns its top-1."""
        clean: list[Tensor] = []

        def mistaken(feed: Feed) -> Any:
            if not clean:
                clean.append(self.clean_logits())
            return GivenTargets(clean, self.store.n_views)

        views = self.store.n_views
        kd, exact = self.params.recipe("kd"), lambda feed: FirstViews(self.store, feed, views)
        loss = partial(make_loss, kd.loss, kd.settings)
        few = partial(self._train, few=True)
        return {
            "scratch": partial(self._train, make_loss("scratch", {}), None),
            "label_smoothing": partial(self._train, make_loss("label_smoothing", {}), None),
            f"kd V={views}": partial(self._train, loss(), exact),
            "kd V=1": partial(self._train, loss(), lambda feed: FirstViews(self.store, feed, 1)),
            "mistake": partial(self._train, loss(), mistaken),
            "scratch few": partial(few, make_loss("scratch", {}), None),
            "kd few": partial(few, loss(), exact),
        }

    def _train(
        self, loss: Any, targets: Callable[[Feed], Any] | None, seed: int, *, few: bool = False
    ) -> float:
        data, spec = self.context.data, self.params.student(self.student)
        labels = (
            keep_labels(data.train, data.classes, per_class=self.labels, seed=0)
            if few
            else data.train.labels
        )
        shown = (
            TrainingSet.of_labelled(data.train, labels, length=len(data.train))
            if targets is None
            else TrainingSet.of_all(data.train, labels)
        )
        network, card = initial_network(data, spec.start(self.params.data.options.size), seed)
        feed = self.context.feed(shown.images, views_of(self.store), card.preprocessing)
        settings = spec.training.settings()
        loader = Loader(
            feed,
            None if targets is None else targets(feed),
            batch_size=settings.batch_size,
            seed=seed,
            n_classes=len(data.classes),
            training_set=shown,
        )
        state = self.folder / "student.state"
        state.unlink(missing_ok=True)
        run = RunSpec(loss=loss, settings=settings, seed=seed, state_path=state)
        fit(network, loader, run, device=CPU, evaluate=self._unknown)
        top1 = self.context.evaluate(network, card.preprocessing, getattr(data, self.split)).top1
        assert top1 is not None
        return float(top1)

    def _unknown(self, network: nn.Module) -> Figures:
        nothing = self.context.data.validation.subset(np.arange(0))
        return self.context.evaluate(network, self.context.data.train, nothing)  # type: ignore[arg-type]


def measure(rig: Rig, seeds: int, out: Path) -> dict[str, Any]:
    """Make the runs that are missing in a file, save each on completion, and return the content."""
    results: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"runs": {}}
    arms, runs = rig.arms(), results["runs"]
    for seed in range(seeds):
        for name, arm in arms.items():
            done = runs.setdefault(name, [])
            if len(done) <= seed:
                done.append(arm(seed))
                results |= {"environment": environment(CPU), "student": rig.student, "split": rig.split}
                results["table"] = summary(runs, REFERENCE)
                out.write_text(json.dumps(results, indent=1) + "\n")
    return results


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--student", default="bytes")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--labels", type=int, default=2)
    parser.add_argument("--set", dest="changes", action="append", default=[])
    parser.add_argument("--out", type=Path, default=Path("language_identification.json"))
    given = parser.parse_args()
    keep_freed_memory()
    changes = [f"dumps.main.views.count={given.views}", *given.changes]
    set_up(given.folder, changes)
    rig = Rig(
        folder=given.folder,
        params=load_params(given.folder / "params.yaml", tuple(changes)),
        student=given.student,
        split=given.split,
        labels=given.labels,
    )
    results = measure(rig, given.seeds, given.out)
    for name, row in results["table"].items():
        print(
            f"{name:16} {row['mean']:6.2f} ± {row['standard_error']:.2f}   {row['difference']:+6.2f} ± "
            f"{row['difference_standard_error']:.2f}"
        )


if __name__ == "__main__":
    main()
