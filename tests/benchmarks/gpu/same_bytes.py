"""Check that every view, operation and codec gives the same bytes on the device as on the CPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.codecs import CODECS, Codec, TeacherOutput, find_codec, state_shapes
from pipeline.codecs.codebooks import fit_vectors
from pipeline.codecs.fitting import fit_features
from pipeline.codecs.vectors import STATES
from pipeline.loading.feed import Feed
from pipeline.modalities.images.operations import FACTOR, Op, operand, rand_augment_space, wide_space
from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.modalities.images.rendering.pixel_ops import KERNELS
from pipeline.tasks.classes import CLASSES as TASK
from tests.benchmarks.datasets import patterned
from tests.benchmarks.gpu.findings import Findings, Setting
from tests.pipeline.modalities.images.examples import SPECS

# Sides of the source and of the result, and the number of images.
GEOMETRIES = ((32, 32, 1024), (48, 32, 1024), (256, 224, 128))
SMALL_GEOMETRIES = ((12, 12, 8), (16, 12, 8))
KEPT_CLASSES = (1, 5, 100)
VECTOR_BYTES = 8


def run(setting: Setting, findings: Findings) -> None:
    """Compare codecs, operations and views."""
    device = torch.device(setting.device)
    classes, rows = setting.pick(1000, 120), setting.pick(8192, 64)
    _compare(findings, "codecs", codecs_differ(classes, rows, device))
    _compare(findings, "operations", operations_differ(setting.pick(224, 12), device))
    geometries = SMALL_GEOMETRIES if setting.small else GEOMETRIES
    _compare(findings, "views", views_differ(geometries, device))


def _compare(findings: Findings, aim: str, found: Iterable[tuple[str, int]]) -> None:
    """Record the number of different values after each named comparison."""
    differing: dict[str, int] = {}
    for name, count in found:
        differing[name] = count
        bad = [name for name, count in differing.items() if count]
        findings.keep(**{f"{aim}_differing": differing})
        findings.row(aim, len(bad), f"{len(bad)} of {len(differing)}{': ' * bool(bad)}{', '.join(bad)}")


def differing(one: Tensor, other: Tensor) -> int:
    """Return the number of different values of two tensors on any devices; all if shapes differ."""
    one, other = one.cpu(), other.cpu()
    if one.shape != other.shape or one.dtype != other.dtype:
        return max(one.numel(), other.numel())
    return 0 if torch.equal(one, other) else int((one != other).sum())


def codecs_differ(classes: int, rows: int, device: torch.device) -> Iterator[tuple[str, int]]:
    """Yield each codec and the number of different values in its arrays."""
    output, head = _teacher_output(classes, rows)
    features = output.require_features().to(device)
    there = TeacherOutput(output.logits.to(device), features)
    for codec in _codecs(classes, output, head):
        here, found = codec.encode(output, TASK), codec.encode(there, TASK)
        yield codec.name, sum(differing(found[name], values) for name, values in here.items())


def _codecs(classes: int, output: TeacherOutput, head: nn.Linear) -> Iterator[Codec]:
    for name in CODECS:
        if name.endswith("-K"):
            yield from (find_codec(f"{name[:-1]}{kept}", classes) for kept in KEPT_CLASSES)
        elif not name.endswith("-M") and not state_shapes(name):
            yield find_codec(name, classes)
    pilot = TeacherOutput(output.logits[:2048], output.require_features()[:2048])
    yield fit_features(pilot, head, 1e-2, TASK)
    # The logits as vectors; the task decides nothing of them.
    yield from (fit_vectors(pilot, stem, VECTOR_BYTES, TASK) for stem in STATES)


@torch.no_grad()
def _teacher_output(classes: int, rows: int, width: int = 128) -> tuple[TeacherOutput, nn.Linear]:
    """Return features like those after a ReLU, and the logits of a head."""
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(width, classes)
    head.weight.copy_(torch.randn(classes, width, generator=generator) * 0.4)
    head.bias.copy_(torch.randn(classes, generator=generator))
    features = (torch.randn(rows, width, generator=generator) + 0.4).clamp(min=0)
    return TeacherOutput(head(features), features), head


def operations_differ(side: int, device: torch.device) -> Iterator[tuple[str, int]]:
    """Yield each operation and the number of different values, over all its magnitudes and signs."""
    for op, kernel in KERNELS.items():
        operands = _operands(op)
        shape = len(operands), side, side, 3
        pixels = torch.randint(
            0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(int(op))
        )
        # A CPU's kernel may work in place.
        expected = kernel(pixels.clone(), operands)
        yield op.name.lower(), differing(kernel(pixels.to(device), operands.to(device)), expected)


def _operands(op: Op) -> Tensor:
    """Return operands (n, 6) of an operation: magnitudes of its spaces, and hue shifts all around."""
    if op is Op.HUE:
        return torch.from_numpy(operand(np.linspace(-FACTOR // 2, FACTOR // 2, 62).astype(np.int64), 62))
    spaces = (rand_augment_space(), wide_space(31))
    found = [space.operands[space.ops == op].reshape(-1, 6) for space in spaces]
    return torch.from_numpy(np.unique(np.concatenate(found), axis=0))


def views_differ(
    geometries: Iterable[tuple[int, int, int]], device: torch.device
) -> Iterator[tuple[str, int]]:
    """Yield each spec and geometry, and the number of different pixel values, mixing included."""
    for side, size, count in geometries:
        images, rows = patterned(count, side, classes=3), np.arange(count)
        preprocessing = Preprocessing(size=size, mean=(0.5,) * 3, std=(0.2,) * 3)
        for name, spec in SPECS.items():
            here, there = (
                Feed(images, spec, preprocessing, device=where, on_device=on_device).pixels(1, rows)
                for where, on_device in ((torch.device("cpu"), False), (device, True))
            )
            yield f"{name}, {side} to {size} pixels", differing(there, here)
