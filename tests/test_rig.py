"""The rig of compared students: what interrupts one is resumed, and online labels are the teacher's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.evaluation.context import RunContext
from pipeline.losses import make_loss
from pipeline.modalities.images.augmentations import PadCrop
from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.modalities.images.spec import ViewSpec
from pipeline.models.architecture import Architecture
from pipeline.models.checkpoint import ModelCard
from pipeline.models.teacher import Teacher
from pipeline.tasks.table import find_task
from pipeline.training.settings import TrainingSettings
from tests.benchmarks.datasets import made_up
from tests.benchmarks.rig import GivenTargets, GivenView, Rig
from tests.benchmarks.small_students import network

CPU = torch.device("cpu")
EPOCHS, IMAGES = 4, 48


class WatchedTargets(GivenTargets):
    """Random logits that note each view, and stop the run at one of them."""

    def __init__(self, stops_at: int | None = None) -> None:
        drawn = torch.randn(EPOCHS, IMAGES, 4, generator=torch.Generator().manual_seed(0))
        super().__init__(list(drawn))
        self.seen: list[int] = []
        self._stops_at = stops_at

    def load(self, view: int, part: object = None) -> GivenView:
        """Return one view's logits."""
        if view == self._stops_at:
            raise KeyboardInterrupt
        self.seen.append(view)
        return super().load(view, part)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """Four classes of patterned images, an untrained teacher, students of two layers."""
    data = made_up(IMAGES, 8, classes=4, test=64)
    card = ModelCard(
        architecture=Architecture(name="plain_net", num_classes=4),
        preprocessing=Preprocessing(size=8, **data.statistics),
        classes=data.classes,
    )

    def student(seed: int) -> torch.nn.Module:
        torch.manual_seed(seed)
        return network(4, 8, stride=1, classes=4)

    return Rig(
        context=RunContext(data=data, task=find_task(), device=CPU, workers=1),
        teacher=Teacher(name="plain_net", network=student(9).eval(), card=card, precision="fp32"),
        views=ViewSpec(seed=1, pad_crop=PadCrop(padding=1), flip="random"),
        student=student,
        settings=TrainingSettings(epochs=EPOCHS, batch_size=16, learning_rate=0.1),
        loss=make_loss("kd", {}),
        folder=tmp_path,
    )


def test_an_interrupted_student_resumes_after_its_last_epoch(rig):
    feed, whole, rest = rig.feed(rig.views), WatchedTargets(), WatchedTargets()
    expected = rig.train("some", feed, whole, 0)
    assert whole.seen == [0, 1, 2, 3]
    with pytest.raises(KeyboardInterrupt):
        rig.train("some", feed, WatchedTargets(stops_at=2), 0)
    assert rig.train("some", feed, rest, 0) == expected
    assert rest.seen == [2, 3]
    assert not (rig.folder / "student.state").exists()


def test_another_student_does_not_resume_it(rig):
    feed, other = rig.feed(rig.views), WatchedTargets()
    with pytest.raises(KeyboardInterrupt):
        rig.train("some", feed, WatchedTargets(stops_at=2), 0)
    rig.train("other", feed, other, 0)
    assert other.seen == [0, 1, 2, 3]


def test_online_students_of_different_seeds_see_different_views(rig, monkeypatch):
    seen = []
    monkeypatch.setattr(Rig, "fit", lambda self, name, loader, seed: seen.append(next(loader.epoch(0))))
    rig.online("online", 0)
    rig.online("online", 0)
    rig.online("online", 1)
    first, again, other = seen
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.teacher_logits, rig.teacher.logits(first.images))
    assert not torch.equal(first.images.sort(0)[0], other.images.sort(0)[0])
