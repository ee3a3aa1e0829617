"""Compared students of one teacher: cached or online logits, all else equal.

Owns a student's training with the teacher's logits from a store, from memory or from the teacher itself.
Data, networks and views are the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.codecs.spec import CodecSpec
from pipeline.core.arrays import Rows
from pipeline.dump.run import cache_logits
from pipeline.dump.spec import DumpSpec
from pipeline.evaluation.context import RunContext
from pipeline.loading.feed import Feed
from pipeline.loading.loader import Batch, Loader
from pipeline.loading.targets import Targets
from pipeline.losses import ScheduledLoss
from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.modalities.images.spec import ViewSpec
from pipeline.models.teacher import Teacher
from pipeline.store.reader import LogitStore
from pipeline.tasks.classes import CLASSES
from pipeline.tasks.task import Figures
from pipeline.training.loop import RunSpec, fit, make_output_projection
from pipeline.training.settings import TrainingSettings

# Views of online students: no other run has these seeds.
_ONLINE_SEEDS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Rig:
    """Data, teacher and training settings of students.

    Args:
        context: the students' images and the device.
        teacher: the trained teacher.
        views: augmentation of the students' images.
        student: returns a student with the initial weights of a seed.
        settings: optimisation of the students.
        loss: loss of the students.
        folder: folder for dumps and states.
        widths: numbers of a student's and of the teacher's outputs, if a loss projects one to the other.
        preprocessing: of the students; None for the teacher's.
    """

    context: RunContext
    teacher: Teacher
    views: ViewSpec
    student: Callable[[int], nn.Module]
    settings: TrainingSettings
    loss: ScheduledLoss
    folder: Path
    widths: tuple[int, int] | None = None
    preprocessing: Preprocessing | None = None

    @property
    def eyes(self) -> Preprocessing:
        """The students' preprocessing."""
        return self.preprocessing or self.teacher.card.preprocessing

    def dump(self, codec: str, view_count: int, **settings: Any) -> LogitStore:
        """Cache the teacher's logits, or reuse those of an earlier run."""
        path = self.folder / f"{codec}.zarr"
        spec = DumpSpec(views=self.views, view_count=view_count, codec=CodecSpec(name=codec, **settings))
        cache_logits(self.context, self.teacher, spec, path)
        return LogitStore.open(path)

    def clean_logits(self) -> Tensor:
        """Return the teacher's logits (N, C) on the un-augmented images."""
        feed = self.context.feed(self.context.data.train, None, self.teacher.card.preprocessing)
        rows = np.array_split(np.arange(len(feed.images)), -(-len(feed.images) // 500))
        return torch.cat([self.teacher.logits(images) for images in feed.batches(0, rows)])

    def feed(self, views: ViewSpec | None) -> Feed:
        """Return the training images in these views as students see them; None for un-augmented ones."""
        return self.context.feed(self.context.data.train, views, self.eyes)

    def train(
        self, name: str, feed: Feed, targets: Any, seed: int, loss: ScheduledLoss | None = None
    ) -> float:
        """Train one student and return its main figure, e.g. top-1, on the test images.

        Args:
            name: of the run; an interrupted run of the same name and seed is resumed.
            feed: the images.
            targets: a `Targets` or `GivenTargets`; None to train without.
            seed: seed of the initial weights and the order.
            loss: replaces the rig's loss.
        """
        loader = Loader(feed, targets, batch_size=self.settings.batch_size, seed=seed)
        return self.fit(name, loader, seed, loss)

    def online(self, name: str, seed: int) -> float:
        """Train a student with the teacher in the loop, on views that no other student sees."""
        feed = self.feed(replace(self.views, seed=_ONLINE_SEEDS + seed))
        loader = Loader(feed, None, batch_size=self.settings.batch_size, seed=seed)
        return self.fit(name, OnlineLoader(loader, self.teacher), seed)

    def fit(self, name: str, loader: Any, seed: int, loss: ScheduledLoss | None = None) -> float:
        """Train one student from a loader's batches and return its main figure on the test images."""
        return self._main_figure(self.trained(name, loader, seed, loss))

    def trained(self, name: str, loader: Any, seed: int, loss: ScheduledLoss | None = None) -> nn.Module:
        """Return a student that was trained from a loader's batches."""
        student, projection = self.student(seed), None
        if self.widths is not None:
            projection = make_output_projection(loss or self.loss, self.widths, seed=seed)
        spec = RunSpec(
            loss=loss or self.loss,
            settings=self.settings,
            seed=seed,
            state_path=self.folder / "student.state",
            identity={"name": name, "seed": seed, "settings": self.settings.to_dict()},
        )
        device = self.context.device
        projection = None if projection is None else projection.to(device)
        fit(student, loader, spec, device=device, evaluate=not_validated, projection=projection)
        spec.state_path.unlink()
        return student

    def outputs(self, network: nn.Module) -> int:
        """Return a network's number of outputs."""
        feed = self.feed(None)
        with torch.inference_mode():
            return int(network.eval()(next(feed.batches(0, [np.arange(1)]))).shape[1])

    def _main_figure(self, network: nn.Module) -> float:
        figures = self.context.evaluate(network, self.eyes, self.context.data.test).to_dict()
        found = figures[self.context.task.columns[0].name]
        assert found is not None
        return found


def not_validated(_: nn.Module) -> Figures:
    """Return the figures of an empty split: training without them keeps the last epoch."""
    return CLASSES.compare(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), None)


class RememberingFeed(Feed):
    """A feed that renders each view once and keeps it, since many students see the same views."""

    _views: dict[int, Tensor]

    def pixels(self, view: int, rows: Rows) -> Tensor:
        """Render these rows of one view."""
        if not hasattr(self, "_views"):
            self._views = {}
        if view not in self._views:
            self._views[view] = super().pixels(view, np.arange(len(self.images)))
        return self._views[view].index_select(0, torch.from_numpy(rows))


class OnlineLoader:
    """A loader that runs the teacher on every batch.

    Args:
        loader: loader of images without targets.
        teacher: the teacher in the loop.
    """

    def __init__(self, loader: Loader, teacher: Teacher) -> None:
        self._loader, self._teacher = loader, teacher
        self.batch_size, self.steps_per_epoch = loader.batch_size, loader.steps_per_epoch
        self.parts, self.smallest_part = loader.parts, loader.smallest_part

    def view(self, epoch: int) -> int:
        """Return the view of an epoch."""
        return self._loader.view(epoch)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch, starting at a step."""
        for batch in self._loader.epoch(epoch, first_step):
            yield replace(batch, teacher_logits=self._teacher.logits(batch.images))


class FirstViews(Targets):
    """Targets of only the first views of a store."""

    def __init__(self, store: LogitStore, feed: Feed, count: int) -> None:
        super().__init__(store, feed)
        self.n_views = count


@dataclass(frozen=True, slots=True)
class GivenView:
    """The logits (N, C) of one view, unencoded."""

    logits_NC: Tensor

    def logits(self, rows: Tensor) -> Tensor:
        """Return the logits of a batch's rows."""
        return self.logits_NC.index_select(0, rows)


class GivenTargets:
    """Logits in memory instead of a store: (N, C) per view, or one array for all `n_views` views."""

    def __init__(self, views: Sequence[Tensor], n_views: int | None = None) -> None:
        self._views, self.n_views = views, n_views or len(views)

    def load(self, view: int, part: object = None) -> GivenView:
        """Return one view's logits; benchmarks train in the global order, without parts."""
        assert part is None
        return GivenView(self._views[view % len(self._views)])

    def prefetch(self, view: int, part: object = None) -> None:
        """Do nothing: all views are in memory."""
