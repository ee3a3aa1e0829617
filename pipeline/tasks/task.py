"""The interface between a task, the meaning of a model's outputs, and the rest of the library.

A task defines the part of an output that a codec may drop, and the cost of a codec (`codecs/rule.py`). It
rates teachers against labels. It defines a model's figures, the figure that chooses the best epoch, and all
their names. Dump, training, evaluation, export and report see outputs only through these protocols. A new
task is one file with one class, and one line in `table.py`.

Shapes: B batch, N samples, C outputs of a model per sample, K divergences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.codecs.fidelity import Fidelity
from pipeline.codecs.rule import Rule


class Figures(Protocol):
    """The figures of one model on one split."""

    def to_dict(self) -> dict[str, float | None]:
        """Return all figures under their names in metrics.json; None if one cannot be computed."""

    @property
    def followed(self) -> Mapping[str, float | None]:
        """The figures that history.csv has per epoch, the main one first."""

    @property
    def headline(self) -> str:
        """The main figure in words, e.g. "top-1 0.9321"; empty if it is unknown."""

    def __str__(self) -> str:
        """The figures of `followed` in words, e.g. "top-1 0.9321 nll 0.2113"; empty if unknown."""

    @property
    def score(self) -> tuple[float, float] | None:
        """The best epoch has the highest pair; the second number breaks ties; None if unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One figure of a model in the report.

    Args:
        name: in metrics.json and results.json.
        title: in words.
        form: its notation: a share in per cent, nats with three digits, a number with two, a small one as a
            power of ten.
        is_optional: omitted if no model has it.
    """

    name: str
    title: str
    form: Literal["share", "nats", "number", "small"]
    is_optional: bool = False

    @property
    def heading(self) -> str:
        """The title as a heading, with its unit."""
        unit = {"share": ", %", "nats": ", nats"}.get(self.form, "")
        return f"{self.title[:1].upper()}{self.title[1:]}{unit}"


@runtime_checkable
class Task(Rule, Protocol):
    """The meaning of outputs, and the rule that codecs and fidelity use."""

    @property
    def name(self) -> str:
        """The task's name in params.yaml and in the table."""

    # A teacher's quality, stored as two counts in each shard's record.

    def answers(self, outputs_BC: Tensor) -> Tensor:
        """Return the part of each row to keep until labels are compared: (B, ...), on the same device."""

    def tally(self, answers: NDArray[Any], labels_N: NDArray[np.int64]) -> tuple[int, int]:
        """Return the numbers of labelled samples and of correctly answered ones among N.

        Args:
            answers: (N, ...) from `answers`, on the host.
            labels_N: -1 for unlabelled.
        """

    def weakness(self, quality: float, labels_N: NDArray[np.int64], where: str) -> str | None:
        """Explain how a teacher of this quality falls short, or return None for a good one.

        Args:
            quality: share of labelled samples that the teacher answers correctly.
            labels_N: labels of the samples, not all -1.
            where: the samples' splits, in words.
        """

    # Figures of a model on un-augmented samples.

    def compare(self, outputs_NC: Tensor, labels_N: Tensor, teacher_NC: Tensor | None = None) -> Figures:
        """Return the figures of finite outputs from labels, -1 for unlabelled, and a teacher's outputs."""

    def calibrate(
        self, validation: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]
    ) -> dict[str, float | None]:
        """Return figures of test outputs after a correction fitted on validation outputs, for metrics.json.

        Args:
            validation: outputs (N, C) and labels (N,).
            test: outputs and labels of other samples.
        """

    def details(
        self, outputs_NC: Tensor, labels_N: Tensor, classes: Sequence[str]
    ) -> dict[str, list[dict[str, Any]]]:
        """Return tables for metrics.json that are too long for the results, e.g. figures per class."""

    # Names of figures.

    @property
    def accuracy(self) -> str:
        """The name of the share of correct, or of agreeing, answers in printed lines."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """The report's columns for a model, in the order of results.json.

        The first is the main figure, a share; higher is better, and students are compared by it.
        """

    @property
    def mended(self) -> tuple[Column, ...]:
        """The columns of `calibrate`'s figures."""

    @property
    def against_teacher(self) -> tuple[str, ...]:
        """Names of the columns that compare a student with its teacher."""

    @property
    def costs(self) -> tuple[Column, ...]:
        """The columns of `Fidelity.summary`."""

    def describe(self, fidelity: Fidelity) -> str:
        """Describe a codec's cost in one line."""


def quality(task: Task, outputs_NC: Tensor, labels_N: NDArray[np.int64]) -> float | None:
    """Return the share of labelled samples with correct outputs; None if no sample is labelled."""
    labelled, correct = task.tally(task.answers(outputs_NC).cpu().numpy(), labels_N)
    return correct / labelled if labelled else None
