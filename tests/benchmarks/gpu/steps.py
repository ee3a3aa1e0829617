"""The steps of the check, and their figures, each with its aim. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step.

    Args:
        name: of its module beside this one, and of its file.
        seconds: time limit in a check of nine minutes, imports included.
    """

    name: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """A figure with an aim.

    Args:
        step: name of the step that measures it.
        measure: description of the figure.
        wanted: the aim as text.
        holds: whether a value reaches the aim.
        must: whether the step fails if the aim is missed.
    """

    step: str
    measure: str
    wanted: str
    holds: Callable[[float], bool]
    must: bool = False


FULL_SECONDS = 540.0
STEPS = (
    Step(name="cuda_tests", seconds=150),
    Step(name="crops", seconds=65),
    Step(name="same_bytes", seconds=40),
    Step(name="loaders", seconds=95),
    Step(name="dumps", seconds=90),
    Step(name="students", seconds=60),
    Step(name="half_precision", seconds=40),
)


def _none(step: str, measure: str) -> Aim:
    return Aim(step=step, measure=measure, wanted="0", holds=lambda found: found == 0, must=True)


def _at_least(step: str, measure: str, least: float, *, must: bool = False) -> Aim:
    wanted = f"≥ {least:,}"
    return Aim(step=step, measure=measure, wanted=wanted, holds=lambda found: found >= least, must=must)


def _at_most(step: str, measure: str, most: float) -> Aim:
    return Aim(step=step, measure=measure, wanted=f"≤ {most:,}", holds=lambda found: found <= most)


AIMS: Mapping[str, Aim] = {
    "tests": _none("cuda_tests", "CUDA tests that fail"),
    "crops": _none("crops", "values of resized crops that differ from the CPU's"),
    "views": _none("same_bytes", "view specs whose pixels differ from the CPU's"),
    "operations": _none("same_bytes", "operations whose pixels differ from the CPU's"),
    "codecs": _none("same_bytes", "codecs whose bytes differ from the CPU's"),
    "resident_alone": _at_least("loaders", "resident loader alone, 32 pixels, images/s", 10_000_000),
    "resident_step": _at_least(
        "loaders", "student's step with the resident loader ÷ without, 32 pixels", 0.98
    ),
    "staged_step": _at_least(
        "loaders", "student's step with the staged loader ÷ without, 224 pixels", 0.95
    ),
    "waits": _none("loaders", "paths whose steps wait for the device"),
    "graph": _at_least("loaders", "resident step as a CUDA graph, speed ÷ without", 1),
    "dump": _at_least("dumps", "dump ÷ bare teacher, ResNet-50, 224 pixels, bf16, compiled", 0.97),
    "cross_entropy": _at_most("students", "seconds of a cached epoch ÷ a cross-entropy epoch", 1.05),
    "online": _at_most(
        "students", "seconds of a cached epoch ÷ an online one, teacher of ten times the student", 0.35
    ),
    "half": _at_least(
        "half_precision", "fall of the loss in fp16 after skipped first steps ÷ in fp32", 0.95, must=True
    ),
}
