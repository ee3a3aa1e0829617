"""Epochs of a student in each compared way: cached, online, from labels, without a loader."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.evaluation.context import RunContext
from pipeline.loading.loader import Batch, Loader
from pipeline.loading.targets import Targets
from pipeline.losses import make_loss
from pipeline.modalities.images.spec import ViewSpec
from pipeline.models.pretrained import Start, initial_network
from pipeline.models.teacher import Teacher
from pipeline.store.reader import LogitStore
from pipeline.training.optimizer import make_optimizer
from pipeline.training.settings import TrainingSettings
from tests.benchmarks.rig import OnlineLoader

KD = make_loss("kd", {})
CE = make_loss("scratch", {})


class Student:
    """A student with its optimiser, for timing steps.

    Args:
        context: the data and the device.
        start: the student's initial network.
        settings: its optimisation, without schedule, warm-up or average.
        seed: seed of the initial weights.
    """

    def __init__(
        self, context: RunContext, start: Start, settings: TrainingSettings, seed: int = 0
    ) -> None:
        self.network, self.card = initial_network(context.data, start, seed)
        self.network.to(context.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.settings, self._device = settings, context.device
        self._optimizer = make_optimizer(self.network, settings)

    def step(self, batch: Batch, loss: Callable[..., Tensor] = KD) -> None:
        """Run one training step."""
        settings = self.settings
        with torch.autocast(self._device.type, settings.autocast, settings.precision != "fp32"):
            logits = self.network(batch.images)
        value = loss(logits.float(), batch.labels, batch.teacher_logits)
        self._optimizer.zero_grad(set_to_none=True)
        value.backward()
        self._optimizer.step()


def make_loader(
    context: RunContext, student: Student, views: ViewSpec, store: LogitStore | None = None
) -> Loader:
    """Return a student's loader of the training images, with cached logits if a store is given."""
    feed = context.feed(context.data.train, views, student.card.preprocessing)
    targets = None if store is None else Targets(store, feed)
    return Loader(feed, targets, batch_size=student.settings.batch_size, seed=0)


def learn(
    student: Student, loader: Loader | OnlineLoader, epoch: int, loss: Callable[..., Tensor] = KD
) -> None:
    """Train a student for one epoch."""
    for batch in loader.epoch(epoch):
        student.step(batch, loss)


class StudentEpochs:
    """Epochs over the training images; each call shows the next view.

    Args:
        context: the data and the device.
        student: the student to train.
        teacher: the teacher of the online epochs.
        store: the teacher's cached logits.
        views: view spec of the images.
    """

    def __init__(
        self, context: RunContext, student: Student, teacher: Teacher, store: LogitStore, views: ViewSpec
    ) -> None:
        self._student, self._epochs = student, itertools.count()
        self._cached = make_loader(context, student, views, store)
        self._plain = make_loader(context, student, views)
        self._online = OnlineLoader(self._plain, teacher)
        self.batch = next(self._cached.epoch(0))

    def cached(self) -> None:
        """Train on cached logits."""
        learn(self._student, self._cached, next(self._epochs))

    def online(self) -> None:
        """Train with the teacher in the loop."""
        learn(self._student, self._online, next(self._epochs))

    def cross_entropy(self) -> None:
        """Train on labels only."""
        learn(self._student, self._plain, next(self._epochs), CE)

    def one_batch(self) -> None:
        """Train as on cached logits, but on one repeated batch: the cost without a loader."""
        for _ in range(self._cached.steps_per_epoch):
            self._student.step(self.batch)
