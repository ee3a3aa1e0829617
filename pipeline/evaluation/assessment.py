"""What metrics.json says of a finished model: figures, classes, confusions and cost."""

from __future__ import annotations

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

from pipeline.evaluation.context import Bench
from pipeline.evaluation.metrics import Calibration, Metrics, calibrate, compare
from pipeline.modalities.preprocessing import Preprocessing
from pipeline.samples.samples import UNLABELLED

# Class by class: how many of each are found, and which are taken for which.


CONFUSIONS = 10
_WARM_UP = 3
_FEWEST, _MOST = 5, 100
_ENOUGH_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """A finished model's figures.

    Args:
        test, validation: on the un-augmented images of each split; empty splits have none.
        calibration: None without labelled validation images.
        classes: each class of the test images; none where no image is labelled.
        confusions: the most frequent of the test images.
        cost: of an image.
    """

    test: Metrics
    validation: Metrics
    calibration: Calibration | None
    classes: tuple[ClassFigures, ...]
    confusions: tuple[Confusion, ...]
    cost: Cost

    def to_dict(self) -> dict[str, Any]:
        """Return the test images' figures and the cost as plain values."""
        fitted = self.calibration
        return {
            **self.test.to_dict(),
            "temperature": fitted and fitted.temperature,
            "nll_calibrated": fitted and fitted.nll,
            "ece_calibrated": fitted and fitted.ece,
            **asdict(self.cost),
            "classes": [asdict(figures) for figures in self.classes],
            "confusions": [asdict(confusion) for confusion in self.confusions],
        }


def assess(
    bench: Bench,
    network: nn.Module,
    preprocessing: Preprocessing,
    teacher_logits: Tensor | None = None,
) -> Assessment:
    """Judge a network on the test images, with its temperature fitted on the validation images.

    Args:
        bench: the data and the device, on which the network is.
        network: maps images to logits; its mode is restored.
        preprocessing: how it wants its images.
        teacher_logits: (N, C) of the test images, in the split's order, for agreement and KL.
    """
    data = bench.data
    test = bench.predict(network, preprocessing, data.test)
    validation = bench.predict(network, preprocessing, data.validation)
    labelled = bool((data.test.labels != UNLABELLED).any())
    return Assessment(
        test=compare(*test, teacher_logits),
        validation=compare(*validation),
        calibration=calibrate(validation, test),
        classes=class_figures(*test, data.classes) if labelled else (),
        confusions=most_confused(*test, data.classes) if labelled else (),
        cost=measure_cost(network, preprocessing),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassFigures:
    """One class of the labelled images.

    Args:
        name: of the class.
        support: images with this label.
        recall: share of these that are given this class; None without any.
        precision: share of the images given this class that have its label; None without any.
    """

    name: str
    support: int
    recall: float | None
    precision: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """Images of one class that are taken for another.

    Args:
        label, predicted: names of the two.
        count: images.
        share: of the label's images.
    """

    label: str
    predicted: str
    count: int
    share: float


def class_figures(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> tuple[ClassFigures, ...]:
    """Return the figures of every class, in order.

    Args:
        logits: (N, C).
        labels: (N,), -1 for unlabelled ones, which do not count.
        classes: C names.
    """
    predicted, labels = _known(logits, labels)
    hits = _counts(labels[predicted == labels], len(classes))
    labelled, given = _counts(labels, len(classes)), _counts(predicted, len(classes))
    return tuple(
        ClassFigures(name=name, support=n, recall=_share(right, n), precision=_share(right, named))
        for name, right, n, named in zip(classes, hits, labelled, given, strict=True)
    )


def most_confused(
    logits: Tensor, labels: Tensor, classes: Sequence[str], count: int = CONFUSIONS
) -> tuple[Confusion, ...]:
    """Return the most frequent pairs of a label and another class that is given; of equals the first ones.

    Args:
        logits: (N, C).
        labels: (N,), -1 for unlabelled ones, which do not count.
        classes: C names.
        count: pairs at most.
    """
    predicted, labels = _known(logits, labels)
    supports = _counts(labels, len(classes))
    wrong = predicted != labels
    # By the pairs that occur: all that could are a table of C times C.
    pairs, counts = torch.unique(labels[wrong] * len(classes) + predicted[wrong], return_counts=True)
    order = torch.argsort(counts, descending=True, stable=True)[:count]
    found = zip(pairs[order].tolist(), counts[order].tolist(), strict=True)
    return tuple(
        Confusion(
            label=classes[pair // len(classes)],
            predicted=classes[pair % len(classes)],
            count=n,
            share=n / supports[pair // len(classes)],
        )
        for pair, n in found
    )


def _known(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    known = labels != UNLABELLED
    return logits[known].argmax(1), labels[known]


def _counts(values: Tensor, n_classes: int) -> list[int]:
    counts: list[int] = torch.bincount(values, minlength=n_classes).tolist()
    return counts


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


# What a model costs whoever runs it: multiply-accumulates of an image, and time on one CPU thread.


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one image costs.

    Args:
        macs: multiply-accumulates of convolutions, linear layers and attention; half of their FLOPs.
        cpu_latency_ms: median milliseconds of a batch of one, float32, on one thread of this machine.
    """

    macs: int
    cpu_latency_ms: float


def measure_cost(network: nn.Module, preprocessing: Preprocessing) -> Cost:
    """Measure a copy of a network on the CPU, in eval mode.

    Args:
        network: on any device; left as it is.
        preprocessing: how it wants its images.
    """
    copy = deepcopy(network).to("cpu", torch.float32).eval()
    image = preprocessing.normalise(preprocessing.example(1))
    return Cost(macs=count_macs(copy, image), cpu_latency_ms=_latency_ms(copy, image))


def count_macs(network: nn.Module, images: Tensor) -> int:
    """Return the multiply-accumulates of a forward pass, on any device; on meta nothing is computed.

    Args:
        network: in eval mode.
        images: a batch.
    """
    with FlopCounterMode(display=False) as counter, _attention_in_steps(), torch.no_grad():
        network(images)
    return int(counter.get_total_flops()) // 2


@contextmanager
def _attention_in_steps() -> Iterator[None]:
    """Let attention be the matrix products that it is: the counter passes over the fused operation."""
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
    """Make the figure one of the model and the processor, not of how many processors there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
