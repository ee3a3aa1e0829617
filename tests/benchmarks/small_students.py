"""Small teacher and students on CIFAR-10, for experiments that a CPU can repeat many times.

The teacher (1.2 M parameters) is trained on all 50,000 images, students (71 k) on the first 10,000, both on
random resized crops and flips. Figures are the top-1 of the last epoch on the 10,000 test images; no choice
depends on the test images.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
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
from pipeline.losses import ScheduledLoss, make_loss
from pipeline.modalities.images.augmentations import RandomResizedCrop
from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.modalities.images.sources import ImageOptions, open_source
from pipeline.modalities.images.spec import ViewSpec
from pipeline.modalities.prepared import PreparedData
from pipeline.models.architecture import Architecture
from pipeline.models.checkpoint import ModelCard, load_state, read_tensors
from pipeline.models.teacher import Teacher
from pipeline.store.reader import LogitStore
from pipeline.tasks.table import find_task
from pipeline.training.loop import RunSpec, fit
from pipeline.training.run import train
from pipeline.training.settings import TrainingSettings
from tests.benchmarks.datasets import prepared

STUDENT_IMAGES = 10_000
VIEWS = ViewSpec(seed=1, random_resized_crop=RandomResizedCrop(scale=(0.35, 1.0)), flip="random")
TEACHER = TrainingSettings(epochs=10, batch_size=128, learning_rate=0.1, precision="bf16")
CPU = torch.device("cpu")


def network(*widths: int, stride: int, classes: int = 10) -> nn.Module:
    """Return a plain net of 3x3 convolutions: one layer, then two per further width at half the size."""
    layers = _convolution(3, widths[0], stride)
    for narrow, wide in pairwise(widths):
        layers += [*_convolution(narrow, wide, 2), *_convolution(wide, wide, 1)]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _convolution(channels_in: int, channels_out: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
    return [conv, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rig:
    """Data, teacher and training settings of students.

    Args:
        context: the students' images and the device.
        teacher: the trained teacher.
        folder: folder for dumps and states.
        settings: optimisation of the students.
        loss: loss of the students.
    """

    context: RunContext
    teacher: Teacher
    folder: Path
    settings: TrainingSettings
    loss: ScheduledLoss

    @classmethod
    def of(cls, npz: Path, folder: Path, *, epochs: int, loss: ScheduledLoss) -> Rig:
        """Prepare the data and train the teacher, or reuse those of an earlier run in `folder`."""
        if not (folder / "data" / "dataset.json").exists():
            source = open_source(f"npz:{npz}", ImageOptions(root=folder))
            prepared(source, folder / "data", origin="cifar10")
        whole = PreparedData.open(folder / "data")
        teacher = _teacher(
            RunContext(data=whole, task=find_task(), device=CPU, workers=1), folder / "teacher.pt"
        )
        some = replace(whole, train=whole.train.subset(np.arange(STUDENT_IMAGES)))
        return cls(
            context=RunContext(data=some, task=find_task(), device=CPU, workers=1),
            teacher=teacher,
            folder=folder,
            settings=TrainingSettings(epochs=epochs, batch_size=128, learning_rate=0.1),
            loss=loss,
        )

    def dump(self, codec: str, view_count: int, **settings: Any) -> LogitStore:
        """Cache the teacher's logits, or reuse those of an earlier run."""
        path = self.folder / f"{codec}.zarr"
        spec = DumpSpec(views=VIEWS, view_count=view_count, codec=CodecSpec(name=codec, **settings))
        cache_logits(self.context, self.teacher, spec, path)
        return LogitStore.open(path)

    def clean_logits(self) -> Tensor:
        """Return the teacher's logits (N, C) on the un-augmented images."""
        feed = self.context.feed(self.context.data.train, None, self.teacher.card.preprocessing)
        rows = np.arange(len(feed.images)).reshape(-1, 500)
        return torch.cat([self.teacher.logits(images) for images in feed.batches(0, rows)])

    def train(self, feed: Feed, targets: Any, seed: int, loss: ScheduledLoss | None = None) -> float:
        """Train one student and return its top-1 on the test images.

        Args:
            feed: the images.
            targets: a `Targets` or `GivenTargets`; None to train without.
            seed: seed of the initial weights and the order.
            loss: replaces the rig's loss.
        """
        loader = Loader(feed, targets, batch_size=self.settings.batch_size, seed=seed)
        return self.fit(loader, seed, loss)

    def fit(self, loader: Any, seed: int, loss: ScheduledLoss | None = None) -> float:
        """Train one student from a loader's batches and return its top-1 on the test images."""
        torch.manual_seed(seed)
        student = network(16, 32, 64, stride=2)
        state = self.folder / "student.state"
        state.unlink(missing_ok=True)
        fit(
            student,
            loader,
            RunSpec(loss=loss or self.loss, settings=self.settings, seed=seed, state_path=state),
            device=CPU,
            evaluate=None,
        )
        preprocessing = self.teacher.card.preprocessing
        top1 = self.context.evaluate(student, preprocessing, self.context.data.test).top1
        assert top1 is not None
        return top1


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

    def load(self, view: int) -> GivenView:
        """Return one view's logits."""
        return GivenView(self._views[view % len(self._views)])

    def prefetch(self, view: int) -> None:
        """Do nothing: all views are in memory."""


def _teacher(context: RunContext, path: Path) -> Teacher:
    net = network(32, 64, 128, 256, stride=1)
    data = context.data
    card = ModelCard(
        architecture=Architecture(name="plain_net", num_classes=10),
        preprocessing=Preprocessing(size=32, **data.statistics),
        classes=data.classes,
    )
    if not path.exists():
        torch.manual_seed(0)
        result = train(
            context,
            net,
            card,
            RunSpec(
                loss=make_loss("scratch", {}),
                settings=TEACHER,
                seed=0,
                state_path=path.with_suffix(".state"),
            ),
            views=VIEWS,
            store=None,
        )
        torch.save(result.last, path)
    load_state(net, read_tensors(path), path)
    return Teacher(name="plain_net", network=net.eval(), card=card, precision="fp32")


def summary(runs: Mapping[str, Sequence[float]], reference: str) -> dict[str, dict[str, float]]:
    """Return each arm's mean and its paired difference to a reference, with standard errors, in percent."""
    table = {}
    for arm, values in runs.items():
        paired = [100 * (a - b) for a, b in zip(values, runs[reference], strict=False)]
        percent = [100 * value for value in values]
        table[arm] = {
            "mean": statistics.mean(percent),
            "standard_error": _standard_error(percent),
            "difference": statistics.mean(paired),
            "difference_standard_error": _standard_error(paired),
            "seeds": len(values),
        }
    return table


def _standard_error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
