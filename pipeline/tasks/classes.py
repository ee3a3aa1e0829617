"""Classes: a model gives each sample a probability for each of C classes, one softmax of its outputs.

This module owns the rule that codecs use, the check that rejects poor teachers, and the figures' names.
`class_figures.py` computes the figures. Labels are (N,) int64: a class index, or -1 for unlabelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pipeline.codecs.base import relative
from pipeline.codecs.fidelity import Fidelity
from pipeline.codecs.rule import SOFTMAX
from pipeline.samples.label_forms import LabelKind
from pipeline.samples.samples import UNLABELLED
from pipeline.tasks.class_figures import Metrics, calibrate, class_figures, compare, most_confused
from pipeline.tasks.task import Column, UsualTask

_TEMPERATURES = (1.0, 4.0)


class Classes(UsualTask):
    """The task of one softmax over the classes, registered under the name `classes`."""

    name = "classes"
    labels: tuple[LabelKind, ...] = ("index",)
    supervised: str | None = "scratch"
    doubts_labels = True
    # KL(teacher || decoded) in nats at temperatures 1 and 4, and the share of equal first classes.
    measures = SOFTMAX
    accuracy = "top-1"
    columns: tuple[Column, ...] = (
        Column(name="top1", title="top-1", form="share"),
        Column(name="top5", title="top-5", form="share", is_optional=True),
        Column(name="nll", title="NLL", form="nats"),
        Column(name="ece", title="ECE", form="share"),
        Column(name="agreement", title="agreement with teacher", form="share"),
        Column(name="kl_to_teacher", title="KL to teacher", form="nats"),
    )
    mended: tuple[Column, ...] = (
        Column(name="temperature", title="T", form="number"),
        Column(name="nll_calibrated", title="NLL at T", form="nats"),
        Column(name="ece_calibrated", title="ECE at T", form="share"),
    )
    against_teacher = ("agreement", "kl_to_teacher")
    costs = (
        Column(name="kl_t1_mean", title="KL at T = 1, mean", form="small"),
        Column(name="kl_t1_p99", title="KL at T = 1, 99th percentile", form="small"),
        Column(name="kl_t4_mean", title="KL at T = 4, mean", form="small"),
        Column(name="top1_agreement", title="top-1 kept by the codec", form="share"),
    )

    def kept(self, outputs_BC: Tensor) -> Tensor:
        """Return logits (B, C) float32 with row maximum 0: a softmax ignores a constant per row."""
        return relative(outputs_BC)

    def diverge(self, outputs_BC: Tensor, decoded_BC: Tensor) -> Tensor:
        """Return KL(teacher || decoded) in nats: (B, 2) float64, at temperatures 1 and 4."""
        teacher, decoded = outputs_BC.double(), decoded_BC.double()
        return torch.stack([_divergence(teacher / t, decoded / t) for t in _TEMPERATURES], 1)

    def agree(self, outputs_BC: Tensor, decoded_BC: Tensor) -> Tensor:
        """Return (B,) bool: whether each row's first class is the same."""
        return outputs_BC.argmax(1) == decoded_BC.argmax(1)

    def answers(self, outputs_BC: Tensor) -> Tensor:
        """Return the first class of each row (B,) int64."""
        return outputs_BC.argmax(1)

    def tally(self, answers: NDArray[Any], labels_N: NDArray[np.int64]) -> tuple[int, int]:
        """Return the numbers of labelled samples and of samples whose label is the answer (N,)."""
        return int((labels_N != UNLABELLED).sum()), int((answers == labels_N).sum())

    def quality(self, outputs_NC: Tensor, labels_N: NDArray[np.int64]) -> float | None:
        """Return the share of labelled samples with correct outputs; None if no sample is labelled."""
        labelled, correct = self.tally(self.answers(outputs_NC).cpu().numpy(), labels_N)
        return correct / labelled if labelled else None

    def weakness(self, quality: float, labels_N: NDArray[np.int64], where: str) -> str | None:
        """Explain how a top-1 falls short of `least_top1`, or return None: see `Task.weakness`."""
        counts = np.bincount(labels_N[labels_N != UNLABELLED])
        share = float(counts.max() / counts.sum())
        if share == 1:
            if quality >= 0.5:
                return None
            return f"top-1 {quality:.3f} on {where}, all of one class; at least 0.500 was expected"
        expected = least_top1(share)
        if quality >= expected:
            return None
        avoided = (expected - share) / (1 - share)
        limits = (
            f"naming the largest class always gives {share:.3f}, and at least {expected:.3f} was expected, "
            f"{avoided:.0%} fewer errors"
        )
        return f"top-1 {quality:.3f} on {where}; {limits}"

    def compare(self, outputs_NC: Tensor, labels_N: Tensor, teacher_NC: Tensor | None = None) -> Metrics:
        """Return top-1, top-5, NLL and ECE, and agreement with and KL to a teacher's logits (N, C)."""
        return compare(outputs_NC, labels_N, teacher_NC)

    def calibrate(
        self, validation: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]
    ) -> dict[str, float | None]:
        """Return the temperature fitted on validation logits, and the test logits' NLL and ECE at it."""
        fitted = calibrate(validation, test)
        if fitted is None:
            return dict.fromkeys(column.name for column in self.mended)
        return {
            "temperature": fitted.temperature,
            "nll_calibrated": fitted.nll,
            "ece_calibrated": fitted.ece,
        }

    def details(
        self, outputs_NC: Tensor, labels_N: Tensor, classes: Sequence[str]
    ) -> dict[str, list[dict[str, Any]]]:
        """Return figures per class and the most frequent confusions; both empty without labels."""
        if not bool((labels_N != UNLABELLED).any()):
            return {"classes": [], "confusions": []}
        return {
            "classes": [asdict(figures) for figures in class_figures(outputs_NC, labels_N, classes)],
            "confusions": [asdict(confusion) for confusion in most_confused(outputs_NC, labels_N, classes)],
        }

    def describe(self, fidelity: Fidelity) -> str:
        """Describe a codec's cost in one line."""
        (t1, t4) = (fidelity.divergences[name] for name in self.measures.divergences)
        at_t1, at_t4 = (fidelity.mean(name) for name in self.measures.divergences)
        return (
            f"KL(teacher || cached) {at_t1:.1e} at T = 1 (99th percentile {t1.p99:.1e}), {at_t4:.1e} at "
            f"T = 4 ({t4.p99:.1e}), top-1 agreement {fidelity.agreed:.4f}"
        )


CLASSES = Classes()


def least_top1(share: float) -> float:
    """Return the lowest top-1 at which a teacher knows more than the largest class.

    It is share + kappa (1 - share). Always naming the largest class makes some errors; kappa is the part
    that the teacher avoids: Cohen's kappa with that class as chance. Kappa grows with the share. With many
    classes, it is about the share itself, because an honest teacher may err often. Its limit is 0.2, the
    end of "slight" in Landis and Koch ("The Measurement of Observer Agreement for Categorical Data", 1977).
    E.g. 0.002 for a thousand equal classes, 0.16 for ten, 0.43 for three, 0.58 for two, and 0.92 for a
    largest class with a share of 0.9.

    Args:
        share: of the largest class, in (0, 1].
    """
    kappa = share / (1 + 4 * share)
    return share + kappa * (1 - share)


def _divergence(teacher: Tensor, decoded: Tensor) -> Tensor:
    log_teacher, log_decoded = F.log_softmax(teacher, 1), F.log_softmax(decoded, 1)
    # Rounding can leave a sum such as -1e-17, but a divergence is at least 0.
    return F.kl_div(log_decoded, log_teacher, log_target=True, reduction="none").sum(1).clamp(min=0)
