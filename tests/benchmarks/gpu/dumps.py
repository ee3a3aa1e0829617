"""Compare a dump with its teacher's bare forward passes: ResNet-50, 224 pixels, compiled once for both."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from pipeline.codecs import TeacherOutput
from pipeline.codecs.spec import CodecSpec
from pipeline.dump import encode
from pipeline.dump.run import cache_logits
from pipeline.dump.spec import DumpSpec
from pipeline.evaluation.context import RunContext
from pipeline.models.teacher import CompiledTeacher, Teacher
from tests.benchmarks.datasets import made_up
from tests.benchmarks.dump_share import resnet50
from tests.benchmarks.gpu.findings import Findings, Setting, spread_text
from tests.benchmarks.gpu.loaders import CROPS
from tests.benchmarks.gpu.machine import bench_of, precision_of
from tests.benchmarks.imagenet_teacher import CLASSES
from tests.benchmarks.timing import alternated, compared

PATHS = {"as it suits": None, "staged": False}
Forward = Callable[[Tensor], TeacherOutput]


def run(setting: Setting, findings: Findings) -> None:
    """Compare dumps of few and many views with bare passes; their difference excludes one-time costs."""
    batch_size = setting.pick(256, 2)
    few, many = setting.pick(4, 1), setting.pick(20, 2)
    data = made_up(setting.pick(2048, 4), setting.pick(256, 232), classes=CLASSES)
    context = bench_of(setting, data)
    teacher = resnet50(context.device, "bf16" if precision_of(setting) == "bf16" else "fp32")
    with compiled_once(teacher, batch_size, context.device, compiles=not setting.small) as forward:
        bare = bare_passes(context, teacher, forward, batch_size=batch_size, batches=setting.pick(48, 2))
        with tempfile.TemporaryDirectory() as folder:
            actions: dict[str, Callable[[], object]] = {"bare": bare}
            for path, on_device in PATHS.items():
                for views in (few, many):
                    spec = dump_spec(views, batch_size, compiles=not setting.small)
                    there = replace(context, on_device=on_device)
                    actions[f"{path}, {views}"] = dumps(there, teacher, spec, Path(folder))
            bare()
            actions[f"as it suits, {few}"]()
            times: dict[str, list[float]] = {name: [] for name in actions}
            for _ in range(setting.pick(3, 1)):
                for name, took in alternated(1, context.device, actions).items():
                    times[name] += took
                passes = {"bare": batch_size * setting.pick(48, 2), "few": few, "many": many}
                tell(findings, times, passes | {"images": len(data.train)})


def tell(findings: Findings, times: dict[str, list[float]], sizes: dict[str, int]) -> None:
    """Record the ratios of all rounds so far: of whole dumps, and without opening and closing them."""
    few, many, images = sizes["few"], sizes["many"], sizes["images"]
    bare = [seconds / sizes["bare"] for seconds in times["bare"]]
    findings.keep(seconds=times, teacher_images_a_second=1 / min(bare), **sizes)
    for path in PATHS:
        short, long = times[f"{path}, {few}"], times[f"{path}, {many}"]
        whole = compared(bare, [seconds / (many * images) for seconds in long])
        added = [(b - a) / ((many - few) * images) for a, b in zip(short, long, strict=True)]
        steady = compared(bare, added)
        findings.keep(**{f"dump_over_bare, {path}": {"whole": whole, "steady": steady}})
        if path == "as it suits":
            told = f"{spread_text(steady)}; opening and closing counted {spread_text(whole)}"
            findings.row("dump", steady["median"], told)


@contextmanager
def compiled_once(
    teacher: Teacher, batch_size: int, device: torch.device, *, compiles: bool
) -> Iterator[Forward]:
    """Yield a teacher's forward pass; dumps inside the context reuse its compiled kernels."""
    if not compiles:
        yield teacher.output
        return
    compiled = CompiledTeacher(teacher, batch_size, device)
    with patch.object(encode, "CompiledTeacher", lambda *_: compiled):
        yield compiled.output


def bare_passes(
    context: RunContext, teacher: Teacher, forward: Forward, *, batch_size: int, batches: int
) -> Callable[[], None]:
    """Return a function that runs the teacher repeatedly over one resident batch."""
    feed = context.feed(context.data.train, CROPS, teacher.card.preprocessing)
    images = next(feed.batches(0, [np.arange(batch_size)])).clone(memory_format=torch.channels_last)

    def passes() -> None:
        for _ in range(batches):
            forward(images)

    return passes


def dump_spec(views: int, batch_size: int, *, compiles: bool) -> DumpSpec:
    """Return the settings of the dump."""
    return DumpSpec(
        views=CROPS,
        view_count=views,
        codec=CodecSpec(name="affine8"),
        batch_size=batch_size,
        allow_poor_teacher=True,
        compile=compiles,
    )


def dumps(context: RunContext, teacher: Teacher, spec: DumpSpec, folder: Path) -> Callable[[], object]:
    """Return a function that makes a new dump per call."""
    names = itertools.count()
    path = f"{'staged' if context.on_device is False else 'suits'}-{spec.view_count}"
    return lambda: partial(cache_logits, context, teacher, spec)(folder / f"{path}-{next(names)}.zarr")
