"""A whole job: a dump of V views, then M students of E epochs; or M online students with the teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.codecs.spec import CodecSpec
from pipeline.dump.run import cache_logits
from pipeline.dump.spec import DumpSpec
from pipeline.evaluation.context import RunContext
from pipeline.loading.loader import Loader
from pipeline.modalities.images.augmentations import PadCrop
from pipeline.modalities.images.spec import ViewSpec
from pipeline.models.pretrained import Start
from pipeline.models.teacher import Teacher
from pipeline.store.reader import LogitStore
from pipeline.training.settings import TrainingSettings
from tests.benchmarks.rig import OnlineLoader
from tests.benchmarks.student_epochs import Student, learn, make_loader
from tests.benchmarks.teacher_times import Costs
from tests.benchmarks.timing import seconds

VIEWS = ViewSpec(seed=1, pad_crop=PadCrop(padding=4), flip="random")
NUMBERS_OF_STUDENTS = (1, 3, 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rig:
    """Teacher, students and their settings.

    Args:
        context: the data and the device.
        teacher: an untrained teacher.
        start: the students' initial network.
        settings: the students' optimisation.
        folder: folder for dumps.
        views: view spec of the images.
    """

    context: RunContext
    teacher: Teacher
    start: Start
    settings: TrainingSettings
    folder: Path
    views: ViewSpec = VIEWS

    def dump(self, name: str, views: int) -> Path:
        """Cache the teacher's logits and return the store's path."""
        path = self.folder / f"{name}.zarr"
        codec = CodecSpec(name="affine8")
        spec = DumpSpec(views=self.views, view_count=views, codec=codec, allow_poor_teacher=True)
        cache_logits(self.context, self.teacher, spec, path)
        return path

    def student(self, seed: int = 0) -> Student:
        """Return a new student."""
        return Student(self.context, self.start, self.settings, seed)


def train(rig: Rig, seed: int, epochs: int, load: Callable[[Student], Loader | OnlineLoader]) -> None:
    """Train one student from scratch."""
    student = rig.student(seed)
    loader = load(student)
    for epoch in range(epochs):
        learn(student, loader, epoch)


def whole_job(rig: Rig, *, students: int, epochs: int, views: int) -> dict[str, list[float]]:
    """Return the seconds of a dump, and of each student, cached and online."""
    device, context = rig.context.device, rig.context
    path = rig.folder / "whole.zarr"

    def cached(student: Student) -> Loader:
        return make_loader(context, student, rig.views, LogitStore.open(path))

    def online(student: Student) -> OnlineLoader:
        return OnlineLoader(make_loader(context, student, rig.views), rig.teacher)

    found: dict[str, list[float]] = {
        "dump": [seconds(lambda: rig.dump("whole", views), device)],
        "cached": [],
        "online": [],
    }
    for seed in range(students):
        for name, load in (("cached", cached), ("online", online)):
            found[name].append(seconds(partial(train, rig, seed, epochs, load), device))
    return found


def whole_costs(
    found: dict[str, list[float]], parts: Costs, *, epochs: int, views: int
) -> dict[str, dict[str, float]]:
    """Return the cost of cached over online jobs with one, three and ten students, and the bound."""
    dump, cached, online = found["dump"], found["cached"], found["online"]
    return {
        str(students): {
            "cached_seconds": round(sum(dump) + sum(cached[:students]), 2),
            "online_seconds": round(sum(online[:students]), 2),
            "cached_over_online": (sum(dump) + sum(cached[:students])) / sum(online[:students]),
            "bound": parts.whole(students, epochs, views),
        }
        for students in NUMBERS_OF_STUDENTS
        if students <= len(cached)
    }
