"""The figures of a finished model in metrics.json: those of its task, and its cost."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.evaluation.context import RunContext
from pipeline.modalities.preprocessing import Preprocessing
from pipeline.tasks.task import Figures

_WARM_UP = 3
_FEWEST, _MOST = 5, 100
_ENOUGH_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """A finished model's figures.

    Args:
        test, validation: figures on the un-augmented samples of each split; none for empty splits.
        mended: test figures after calibration on the validation images.
        details: tables of the test samples, by name.
        cost: cost per sample.
    """

    test: Figures
    validation: Figures
    mended: dict[str, float | None]
    details: dict[str, list[dict[str, Any]]]
    cost: Cost

    def to_dict(self) -> dict[str, Any]:
        """Return the test samples' figures and the cost as plain values."""
        return {**self.test.to_dict(), **self.mended, **asdict(self.cost), **self.details}


def assess(
    context: RunContext,
    network: nn.Module,
    preprocessing: Preprocessing,
    teacher_logits: Tensor | None = None,
) -> Assessment:
    """Evaluate a network on the test images, also after calibration on the validation images.

    Args:
        context: the data and the network's device.
        network: maps images to logits; its mode is restored.
        preprocessing: the network's preprocessing.
        teacher_logits: (N, C) for the test samples, in the split's order, for agreement and KL.
    """
    data, task = context.data, context.task
    test = context.predict(network, preprocessing, data.test)
    validation = context.predict(network, preprocessing, data.validation)
    return Assessment(
        test=task.compare(*test, teacher_logits),
        validation=task.compare(*validation),
        mended=task.calibrate(validation, test),
        details=task.details(*test, data.classes),
        cost=measure_cost(network, preprocessing),
    )


# Cost of inference: multiply-accumulates per sample, and time on one CPU thread.


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Cost of inference per sample.

    Args:
        macs: multiply-accumulates of convolutions, linear layers and attention; half of their FLOPs.
        cpu_latency_ms: median milliseconds for a batch of one, float32, on one thread of this machine.
    """

    macs: int
    cpu_latency_ms: float


def measure_cost(network: nn.Module, preprocessing: Preprocessing) -> Cost:
    """Measure a copy of a network on the CPU, in eval mode.

    Args:
        network: on any device; not modified.
        preprocessing: the network's preprocessing.
    """
    copy = deepcopy(network).to("cpu", torch.float32).eval()
    image = preprocessing.normalise(preprocessing.example(1))
    return Cost(macs=count_macs(copy, image), cpu_latency_ms=_latency_ms(copy, image))


def count_macs(network: nn.Module, images: Tensor) -> int:
    """Return the multiply-accumulates of a forward pass on any device, e.g. meta, which computes nothing.

    Args:
        network: in eval mode.
        images: a batch.
    """
    fused = {torch.ops.aten.mkldnn_rnn_layer: _rnn_flops}
    counting = FlopCounterMode(display=False, custom_mapping=fused)
    with counting as counter, _attention_in_steps(), torch.no_grad():
        network(images)
    return int(counter.get_total_flops()) // 2


def _rnn_flops(inputs: Sequence[int], onto: Sequence[int], back: Sequence[int], *_: Any, **__: Any) -> int:
    """Return the FLOPs of a fused LSTM on a CPU: inputs (T, B, D), weights (4H, D) and (4H, H)."""
    steps, batch, _features = inputs
    return 2 * steps * batch * (math.prod(onto) + math.prod(back))


@contextmanager
def _attention_in_steps() -> Iterator[None]:
    """Run attention as separate matrix products: the counter ignores the fused operation."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@torch.inference_mode()
def _latency_ms(network: nn.Module, image: Tensor) -> float:
    seconds: list[float] = []
    with _one_thread():
        for _ in range(_WARM_UP):
            network(image)
        while len(seconds) < _FEWEST or (len(seconds) < _MOST and sum(seconds) < _ENOUGH_SECONDS):
            begin = time.perf_counter()
            network(image)
            seconds.append(time.perf_counter() - begin)
    return 1000 * statistics.median(seconds)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread, so that the latency does not depend on the number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
