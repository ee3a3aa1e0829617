"""Measure the cost of each loss: seconds per epoch, relative to a cross-entropy epoch.

    python -m tests.benchmarks.loss_cost FOLDER [--student shufflenet] [--rounds 7] [--out FILE.json]

FOLDER is a folder of `loss_table`. An epoch covers its first 1,024 training images, from the dump's views,
with everything a loss needs: decoded logits and features of the teacher, negatives, projections, and their
gradients. Each round gives every loss one turn; the result is the median of the rounds' ratios, and their
range.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pipeline.core.distributed import SINGLE
from pipeline.evaluation.context import RunContext
from pipeline.loading.loader import Loader
from pipeline.loading.targets import Targets
from pipeline.losses import LOSSES, make_loss
from pipeline.modalities.prepared import PreparedData
from pipeline.modalities.table import views_of
from pipeline.models.pretrained import initial_network
from pipeline.store.reader import LogitStore
from pipeline.tasks.table import find_task
from pipeline.training.loop import Objective, make_projection
from pipeline.training.optimizer import make_optimizer
from stages import paths
from stages.params import ModelParams
from stages.params_file import load_params
from stages.runtime import keep_freed_memory
from tests.benchmarks.cifar_subset import PARAMS
from tests.benchmarks.environment import environment
from tests.benchmarks.timing import seconds

_IMAGES = 1024
_REFERENCE = "scratch"


class Epochs:
    """Epochs of a student with one loss; each call runs the next epoch.

    Args:
        context: the data and the device.
        store: the teacher's logits and features.
        spec: the student.
        name: the loss.
    """

    def __init__(self, context: RunContext, store: LogitStore, spec: ModelParams, name: str) -> None:
        loss, images, settings = make_loss(name, {}), context.data.train, spec.training.settings()
        network, card = initial_network(context.data, spec.start(None), 0)
        network.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        feed = context.feed(images, views_of(store), card.preprocessing)
        targets = Targets(store, feed) if LOSSES[name].needs_teacher else None
        self._loader = Loader(
            feed, targets, batch_size=settings.batch_size, seed=0, features=loss.features,
            n_classes=len(context.data.classes),
        )  # fmt: skip
        projection = make_projection(loss, network, self._loader.teacher_dim, seed=0)
        self._objective = Objective(loss, projection, SINGLE)
        self._network = self._objective.called(network)
        self._optimizer = make_optimizer(network, settings, projection)
        self._numbers = itertools.count()

    def __call__(self) -> None:
        """Train for one epoch."""
        for batch in self._loader.epoch(next(self._numbers)):
            value = self._objective.of(self._network(batch.images), batch, 1e9)
            self._optimizer.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()


def main() -> None:
    """Measure every loss and print its cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--student", default="shufflenet")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    keep_freed_memory()
    whole, device = PreparedData.open(options.folder / paths.PREPARED), torch.device("cpu")
    data = replace(whole, train=whole.train.subset(np.arange(_IMAGES)))
    store = LogitStore.open(options.folder / paths.store("main"))
    context, spec = (
        RunContext(data=data, task=find_task(), device=device, workers=1),
        load_params(PARAMS).student(options.student),
    )
    epochs = {name: Epochs(context, store, spec, name) for name in LOSSES}
    for epoch in epochs.values():
        epoch()
    rounds = [
        {name: seconds(epoch, device) for name, epoch in epochs.items()} for _ in range(options.rounds)
    ]
    ratios = {name: sorted(turn[name] / turn[_REFERENCE] for turn in rounds) for name in LOSSES}
    costs = {
        name: {"median": statistics.median(some), "min": some[0], "max": some[-1]}
        for name, some in ratios.items()
    }
    text = json.dumps({**environment(), "student": options.student, "over_scratch": costs}, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
