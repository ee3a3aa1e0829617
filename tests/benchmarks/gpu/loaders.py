"""Measure loading: alone, beside a student's step, waits for the device, and a step as one CUDA graph."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline.evaluation.context import RunContext
from pipeline.loading.feed import Feed
from pipeline.loading.loader import Loader
from pipeline.modalities.images.augmentations import RandomResizedCrop
from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.modalities.images.spec import ViewSpec
from pipeline.modalities.prepared import PreparedData
from pipeline.models.pretrained import Start
from pipeline.store.reader import LogitStore
from pipeline.training.settings import TrainingSettings
from tests.benchmarks.datasets import made_up
from tests.benchmarks.gpu.findings import Findings, Setting
from tests.benchmarks.gpu.graphs import GraphResult, capture_and_compare
from tests.benchmarks.gpu.machine import bench_of, precision_of
from tests.benchmarks.main_job import STUDENTS
from tests.benchmarks.student_epochs import Student, make_loader
from tests.benchmarks.students_cost import loader_share
from tests.benchmarks.teacher_times import TEACHERS, untrained
from tests.benchmarks.timing import spread
from tests.benchmarks.whole_job import VIEWS, Rig
from tests.pipeline.waiting import no_waiting_on_cuda

CROPS = ViewSpec(seed=1, random_resized_crop=RandomResizedCrop(), flip="random")
BATCHES_ALONE = (512, 2048, 8192)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A student and its views.

    Args:
        start: the student.
        batch_size: images per step.
        views: view spec of the images.
    """

    start: Start
    batch_size: int
    views: ViewSpec = VIEWS

    def rig(self, setting: Setting, data: PreparedData, folder: str) -> Rig:
        """Return a rig for training it; the teacher is as large as the student."""
        context, precision = bench_of(setting, data), precision_of(setting)
        size = setting.pick(self.batch_size, 4)
        rate = TrainingSettings(epochs=1, batch_size=size, learning_rate=0.02, precision=precision)
        teacher = untrained(context, "teacher", self.start, precision)
        return Rig(
            context=context,
            teacher=teacher,
            start=self.start,
            settings=rate,
            folder=Path(folder),
            views=self.views,
        )


RESIDENT = Job(start=TEACHERS["wrn_16_2"], batch_size=512)


def run(setting: Setting, findings: Findings) -> None:
    """Measure all paths; the graph comes last, because a failed capture can make the device unusable."""
    small = made_up(setting.pick(51_200, 12), 32, classes=10)
    rounds = setting.pick(5, 1)
    alone(small, torch.device(setting.device), rounds, findings)
    with tempfile.TemporaryDirectory() as folder:
        rig = RESIDENT.rig(setting, small, folder)
        two = LogitStore.open(rig.dump("two", 2))
        findings.ratio("resident_step", loader_share(rig, two, rounds, True))
        staged(setting, findings)
        one = LogitStore.open(rig.dump("one", 1))
        waits(rig, one, findings)
        if not setting.small:
            narrow = replace(rig, start=STUDENTS["mobilenet"])
            findings.keep(resident_step_mobilenet=loader_share(narrow, two, rounds, True))
        tell_graph(capture_and_compare(rig, one, rounds=rounds), findings)


def alone(data: PreparedData, device: torch.device, rounds: int, findings: Findings) -> None:
    """Measure whole epochs of the resident loader by batch size, and the same without the first batch."""
    preprocessing = Preprocessing(size=32, **data.statistics)
    feed = Feed(data.train, VIEWS, preprocessing, device=device, on_device=True)
    found: dict[str, Any] = {}
    for batch_size in BATCHES_ALONE:
        loader, epochs = Loader(feed, None, batch_size=batch_size, seed=0), itertools.count()
        _epoch(loader, next(epochs), device)
        rates = [_epoch(loader, next(epochs), device) for _ in range(rounds)]
        whole, behind = (spread(values) for values in zip(*rates, strict=True))
        found[str(loader.batch_size)] = {"images_a_second": whole, "behind_first_batch": behind}
        findings.keep(resident_alone=found)
    best = max(found.values(), key=lambda rates: rates["images_a_second"]["median"])
    whole, behind = ("{median:,.0f} [{min:,.0f}, {max:,.0f}]".format(**rate) for rate in best.values())
    told = f"{whole}; behind the first batch of an epoch {behind}"
    findings.row("resident_alone", best["images_a_second"]["median"], told)


def _epoch(loader: Loader, epoch: int, device: torch.device) -> tuple[float, float]:
    """Return the images per second of an epoch, and of all but its first batch."""
    count, size = loader.steps_per_epoch, loader.batch_size
    start = _now(device)
    batches = loader.epoch(epoch)
    next(batches)
    first = _now(device)
    for _ in batches:
        pass
    end = _now(device)
    return count * size / (end - start), max(count - 1, 1) * size / (end - first)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def staged(setting: Setting, findings: Findings) -> None:
    """Measure photograph-sized images: rendered by threads, beside a MobileNetV2 at 224 pixels."""
    size = setting.pick(224, 32)
    start = Start(model="mobilenet_v2", weights=None, size=size)
    job = Job(start=start, batch_size=256, views=CROPS)
    data = made_up(setting.pick(6144, 8), setting.pick(256, 40), classes=10)
    with tempfile.TemporaryDirectory() as folder:
        rig = job.rig(setting, data, folder)
        rig = replace(rig, context=replace(rig.context, on_device=False))
        store = LogitStore.open(rig.dump("photographs", 2))
        findings.ratio("staged_step", loader_share(rig, store, setting.pick(4, 1), False))


def waits(rig: Rig, store: LogitStore, findings: Findings) -> None:
    """Train for an epoch with each path while waits are forbidden, if the device is a GPU.

    Args:
        rig: the student.
        store: a store of one view, so that nothing is read or drawn during the epoch.
        findings: file for the result.
    """
    found = {}
    for path, on_device in (("resident", True), ("staged", False)):
        epoch = _epoch_of(rig, replace(rig.context, on_device=on_device), store)
        epoch(0)  # one-time set-up may wait
        found[path] = _waits(partial(epoch, 1), rig.context.device)
    waiting = [f"{path}: {reason}" for path, reason in found.items() if reason]
    if rig.context.device.type == "cuda":
        findings.row("waits", len(waiting), "; ".join(waiting) or f"none of {len(found)}")


def _epoch_of(rig: Rig, context: RunContext, store: LogitStore) -> Callable[[int], None]:
    student = Student(context, rig.start, rig.settings)
    loader = make_loader(context, student, rig.views, store)

    def epoch(number: int) -> None:
        for batch in loader.epoch(number):
            student.step(batch)

    return epoch


def _waits(action: Callable[[], None], device: torch.device) -> str:
    """Return the reason why an action waits for the GPU; empty if it does not."""
    try:
        with no_waiting_on_cuda() if device.type == "cuda" else nullcontext():
            action()
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return ""


def tell_graph(result: GraphResult, findings: Findings) -> None:
    """Record whether a step can be captured, and its speed-up."""
    findings.keep(graph=result.to_dict())
    if result.reason:
        findings.row("graph", 0.0, f"not captured: {result.reason}")
    elif result.speed is not None:
        findings.ratio("graph", result.speed)
