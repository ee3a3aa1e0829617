"""Find an untrained teacher with ten times the student's forward time, and compute the cost bounds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from operator import itemgetter

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pipeline.evaluation.context import RunContext
from pipeline.loading.loader import Batch
from pipeline.models.pretrained import Start, initial_network
from pipeline.models.teacher import Teacher
from pipeline.training.settings import Precision
from tests.benchmarks.student_epochs import Student
from tests.benchmarks.timing import fastest

TIMES_THE_STUDENT = 10.0


def _untrained(model: str, stem_stride: int, **options: float) -> Start:
    return Start(
        model=model,
        weights=None,
        size=None,
        channels=None,
        stem_stride=stem_stride,
        options=options,
    )


# From the fastest to the slowest.
TEACHERS = {
    "mobilenet_v2, width 1.4": _untrained("mobilenet_v2", 2, width_mult=1.4),
    "shufflenet_v2_x2_0": _untrained("shufflenet_v2_x2_0", 2),
    **{model: _untrained(model, 1) for model in ("wrn_16_2", "resnet56", "resnet8x4", "wrn_40_2")},
    **{
        f"{model}, stem {stride}": _untrained(model, stride)
        for stride in (2, 1)
        for model in ("resnet18", "resnet34", "resnet50")
    },
    # For GPUs, which small students do not saturate.
    **{f"{model}, stem 1": _untrained(model, 1) for model in ("wide_resnet50_2", "wide_resnet101_2")},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Costs of the parts, measured on a batch on the device.

    Args:
        teacher: the teacher's name.
        teacher_forward, student_forward, student_step: seconds per image.
        teacher_flops, student_flops: floating-point operations of a forward pass per image.
    """

    teacher: str
    teacher_forward: float
    student_forward: float
    student_step: float
    teacher_flops: int
    student_flops: int

    def cached_over_online(self) -> float:
        """Return the time of a cached epoch over an online one, if cache and loader were free."""
        return self.student_step / (self.student_step + self.teacher_forward)

    def whole(self, students: int, epochs: int, views: int) -> float:
        """Return the time of dump and cached students over online ones, if loader and cache were free."""
        cached = self.teacher_forward * views + students * self.student_step * epochs
        return cached / (students * epochs * (self.teacher_forward + self.student_step))


def untrained(context: RunContext, name: str, start: Start, precision: Precision) -> Teacher:
    """Return an untrained network as a teacher."""
    network, card = initial_network(context.data, start, 0)
    network.to(context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Teacher(name=name, network=network.eval(), card=card, precision=precision)


def forward_seconds(teacher: Teacher, images: Tensor) -> float:
    """Return the seconds per image of a forward pass."""
    return fastest(lambda: teacher.logits(images), images.device) / len(images)


def flops(teacher: Teacher, images: Tensor) -> int:
    """Return the floating-point operations per image of a forward pass."""
    with FlopCounterMode(display=False) as counter:
        teacher.logits(images[:1])
    return counter.get_total_flops()


def choose_teacher(
    context: RunContext, student: Teacher, images: Tensor, names: tuple[str, ...] = tuple(TEACHERS)
) -> Teacher:
    """Return the teacher whose forward time is closest to ten times the student's.

    Args:
        context: the data and the device.
        student: the student, as a teacher.
        images: a batch on the device.
        names: names from `TEACHERS` to choose from.
    """
    wanted = TIMES_THE_STUDENT * forward_seconds(student, images)

    def candidates() -> Iterator[tuple[float, Teacher]]:
        for name in names:
            teacher = untrained(context, name, TEACHERS[name], student.precision)
            times = forward_seconds(teacher, images) / wanted
            yield abs(math.log(times)), teacher
            if times > 2:
                return  # later teachers are slower

    return min(candidates(), key=itemgetter(0))[1]


def measured(teacher: Teacher, student: Teacher, learner: Student, batch: Batch) -> Costs:
    """Measure the costs of the parts.

    Args:
        teacher: the chosen teacher.
        student: the student as a teacher, for its forward pass.
        learner: the student in training.
        batch: a batch on the device.
    """
    images = batch.images
    taught = replace(batch, teacher_logits=teacher.logits(images))
    return Costs(
        teacher=teacher.name,
        teacher_forward=forward_seconds(teacher, images),
        student_forward=forward_seconds(student, images),
        student_step=fastest(lambda: learner.step(taught), images.device) / len(images),
        teacher_flops=flops(teacher, images),
        student_flops=flops(student, images),
    )
