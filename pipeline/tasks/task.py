"""What the rest of the library knows of a task: the meaning of a model's outputs.

A task says what a codec may drop of an output and what that costs (`codecs/rule.py`), how good a teacher
is against labels, which figures a model has and which of them chooses the best epoch, and what all these
are called. Dump, training, evaluation, export and report see outputs through these protocols alone.
A new task is one file with one class, and one line in `table.py`.

Shapes: B batch, N samples, C outputs of a model for each sample, K divergences.
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
    """How good one model is on one split."""

    def to_dict(self) -> dict[str, float | None]:
        """Return all figures by their names in metrics.json; None where one cannot be computed."""

    @property
    def followed(self) -> Mapping[str, float | None]:
        """Some of the figures, which history.csv has for each epoch, the main one first."""

    @property
    def headline(self) -> str:
        """The main figure in words, e.g. "top-1 0.9321"; empty where it is unknown."""

    def __str__(self) -> str:
        """The figures that are followed in words, e.g. "top-1 0.9321 nll 0.2113"; empty likewise."""

    @property
    def score(self) -> tuple[float, float] | None:
        """What the best epoch has most of, the second number where the first are equal; None if unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One figure of models, as the report shows it.

    Args:
        name: in metrics.json and results.json.
        title: in words.
        form: how it is written: a share as per cent, nats with three digits, a number with two, a small
            one as a power of ten.
        is_optional: left out where no model has it.
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
    """What outputs mean. It is also the rule that codecs and fidelity are handed."""

    @property
    def name(self) -> str:
        """In params.yaml, and in the table."""

    # A teacher's quality, which each shard's record has as two counts.

    def answers(self, outputs_BC: Tensor) -> Tensor:
        """Return what is kept of each row until labels are compared: (B, ...), on the outputs' device."""

    def tally(self, answers: NDArray[Any], labels_N: NDArray[np.int64]) -> tuple[int, int]:
        """Return how many of N samples are labelled, and how many of these are answered correctly.

        Args:
            answers: (N, ...) as `answers` gave them, on the host.
            labels_N: -1 for none.
        """

    def weakness(self, quality: float, labels_N: NDArray[np.int64], where: str) -> str | None:
        """Say how a teacher of this quality on labelled samples falls short, or None for a good one.

        Args:
            quality: the share that it answers correctly.
            labels_N: of the samples, some of them known.
            where: the splits that they are of, in words.
        """

    # Figures of a model on un-augmented samples.

    def compare(self, outputs_NC: Tensor, labels_N: Tensor, teacher_NC: Tensor | None = None) -> Figures:
        """Return the figures of finite outputs against labels, -1 for none, and a teacher's outputs."""

    def calibrate(
        self, validation: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]
    ) -> dict[str, float | None]:
        """Return figures of test outputs that were mended by validation ones, for metrics.json.

        Args:
            validation: outputs (N, C) and labels (N,).
            test: the same of other samples.
        """

    def details(
        self, outputs_NC: Tensor, labels_N: Tensor, classes: Sequence[str]
    ) -> dict[str, list[dict[str, Any]]]:
        """Return tables for metrics.json that are too long for the results, e.g. class by class."""

    # What figures are called.

    @property
    def accuracy(self) -> str:
        """What the share of correct answers, or of those that agree, is called in printed lines."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """What the report shows of a model, in the order of results.json.

        The first is the main figure, a share, of which more is better: students are compared by it.
        """

    @property
    def mended(self) -> tuple[Column, ...]:
        """The same of what `calibrate` gives."""

    @property
    def against_teacher(self) -> tuple[str, ...]:
        """Names of the columns that compare a student with its teacher."""

    @property
    def costs(self) -> tuple[Column, ...]:
        """What the report shows of `Fidelity.summary`."""

    def describe(self, fidelity: Fidelity) -> str:
        """Say what a codec costs, in a line."""


def quality(task: Task, outputs_NC: Tensor, labels_N: NDArray[np.int64]) -> float | None:
    """Return the share of labelled samples that outputs answer correctly; None where none is labelled."""
    labelled, correct = task.tally(task.answers(outputs_NC).cpu().numpy(), labels_N)
    return correct / labelled if labelled else None
