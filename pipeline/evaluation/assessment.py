"""All that metrics.json says of how good a finished model is, from one pass over the held-out images."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from pipeline.bench import Bench
from pipeline.evaluation.calibration import Calibration, calibrate
from pipeline.evaluation.classes import ClassFigures, Confusion, class_figures, most_confused
from pipeline.evaluation.cost import Cost, measure_cost
from pipeline.metrics import Metrics, compare
from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.samples.samples import UNLABELLED


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
