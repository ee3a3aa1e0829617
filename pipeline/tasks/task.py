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
from typing import Any, Literal, Protocol, Self, runtime_checkable

from numpy.typing import NDArray
from torch import Tensor

from pipeline.codecs.fidelity import Fidelity
from pipeline.codecs.rule import Measures, Rule
from pipeline.core.errors import MismatchError
from pipeline.samples.label_forms import LabelKind


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

    @property
    def labels(self) -> tuple[LabelKind, ...]:
        """The kinds of labels that fit the task."""

    @property
    def names_outputs(self) -> bool:
        """Whether output c belongs to class c of the data; if not, models have outputs of their own."""

    @property
    def supervised(self) -> str | None:
        """The loss of labels alone that trains a teacher; None if labels cannot train one."""

    @property
    def doubts_labels(self) -> bool:
        """Whether the report lists labels that a teacher finds unlikely, as errors that they may be."""

    # Units of the outputs that only a teacher's outputs tell.

    @property
    def needs_pilot(self) -> bool:
        """Whether `fitted` measures anything; a dump then runs a pilot whatever its codec is."""

    def fitted(self, outputs_NC: Tensor) -> Self:
        """Return the task with units measured on a pilot's outputs (n, C), in `measures`; or itself."""

    def restored(self, measures: Measures) -> Self:
        """Return the task with the units that a store keeps; or itself.

        Raises:
            MismatchError: the store is of another task.
        """

    # A teacher's quality.

    def answers(self, outputs_BC: Tensor) -> Tensor:
        """Return the part of each row to keep until labels are compared: (B, ...), on the same device."""

    def tally(self, answers: NDArray[Any], labels_N: NDArray[Any]) -> tuple[int, int | None]:
        """Return the numbers of labelled samples and of correctly answered ones among N, for a record.

        The second is None if an answer is neither right nor wrong.

        Args:
            answers: (N, ...) from `answers`, on the host.
            labels_N: of the task's kind; see `samples/label_forms.py`.
        """

    def quality(self, outputs_NC: Tensor, labels_N: NDArray[Any]) -> float | None:
        """Return a teacher's main figure, from 0 to 1; None if it cannot be computed, e.g. unlabelled."""

    def weakness(self, quality: float, labels_N: NDArray[Any], where: str) -> str | None:
        """Explain how a teacher of this quality falls short, or return None for a good one.

        Args:
            quality: of the teacher, as in `quality`.
            labels_N: labels of the samples, not all unlabelled.
            where: the samples' splits, in words.
        """

    # Figures of a model on un-augmented samples.

    def compare(self, outputs_NC: Tensor, labels_N: Tensor, teacher_NC: Tensor | None = None) -> Figures:
        """Return the figures of finite outputs (N, C) from labels, and a teacher's outputs (N, C')."""

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
        """The name of `quality` in printed lines."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """The report's columns for a model, in the order of results.json.

        The first is the main figure, at most 1; higher is better, and students are compared by it.
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


class UsualTask:
    """Defaults for a task whose outputs are absolute and whose divergences need no units.

    A class derived from it gives the other parts of `Task`.
    """

    names_outputs = True
    needs_pilot = False
    # Only a softmax gives one label a probability against all others.
    doubts_labels = False
    mended: tuple[Column, ...] = ()
    measures: Measures

    def fitted(self, outputs_NC: Tensor) -> Self:
        """Return this task."""
        return self

    def restored(self, measures: Measures) -> Self:
        """Return this task, if the measures are its own."""
        require_measures(self.measures, measures)
        return self

    def kept(self, outputs_BC: Tensor) -> Tensor:
        """Return the outputs: every value counts."""
        return outputs_BC

    def calibrate(
        self, validation: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]
    ) -> dict[str, float | None]:
        """Return no figures."""
        return {}

    def details(
        self, outputs_NC: Tensor, labels_N: Tensor, classes: Sequence[str]
    ) -> dict[str, list[dict[str, Any]]]:
        """Return no tables."""
        return {}


def require_measures(ours: Measures, theirs: Measures) -> None:
    """Refuse a store of a task with other divergences or another link.

    Raises:
        MismatchError: names both.
    """
    if not ours.are_those_of(theirs) or ours.link != theirs.link:
        raise MismatchError(
            f"the store has {' and '.join(theirs.divergences)} of a {theirs.link}, the data's task "
            f"{' and '.join(ours.divergences)} of a {ours.link}; expected the same task; correct "
            "data.task, or make a new dump"
        )
