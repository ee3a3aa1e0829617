"""Results of a sweep: group runs by recipe and dump, and compare groups over seeds.

Owns the statistics and the content of results.json and results.csv. Runs come from `runs.py`, dumps come
as plain dictionaries; `page.py` owns the words and `figures.py` the drawings. Accuracies are fractions
between 0 and 1, divergences are in nats.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.report.runs import DETAILS, Run, network_of, result_columns
from pipeline.store.labels import LabelChanges
from pipeline.tasks.task import Task

REFERENCE = "scratch"
ERRORS_TO_BEAT = 2

Outcome = Literal["better", "worse", "not_shown", "one_seed", "no_baseline", "unlabelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over seeds.

    Args:
        mean: mean of the values.
        error: standard error of the mean, s / sqrt(n) with n - 1 degrees of freedom; None for one value.
        count: n, number of values.
    """

    mean: float
    error: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Estimate from one value per seed, at least one."""
        count = len(values)
        error = statistics.stdev(values) / math.sqrt(count) if count > 1 else None
        return cls(mean=statistics.fmean(values), error=error, count=count)

    def __str__(self) -> str:
        """The mean and its error, as a fraction."""
        if self.error is None:
            return f"{self.mean:.4f} (n = 1)"
        return f"{self.mean:.4f} ± {self.error:.4f} (n = {self.count})"


Curve = tuple[tuple[int, Estimate], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The seeds of one student, recipe and dump."""

    student: str
    recipe: str
    dump: str | None
    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        """The recipe, plus the dump if it has one."""
        return self.recipe if self.dump is None else f"{self.recipe} ({self.dump})"

    @property
    def main(self) -> Estimate | None:
        """The main figure on the test images."""
        return self._mean([run.main for run in self.runs])

    def estimate(self, column: str) -> Estimate | None:
        """Return the mean over seeds of a column, or None where a seed has no value."""
        return self._mean([run.row()[column] for run in self.runs])

    def _mean(self, values: Sequence[float | None]) -> Estimate | None:
        known = [value for value in values if value is not None]
        return Estimate.of(known) if len(known) == len(values) else None

    def curve(self, column: Literal["loss", "validation"]) -> Curve:
        """Return (epoch, mean over seeds) for each epoch with a value in every seed."""
        seeds = [
            {e.epoch: value for e in run.history if (value := getattr(e, column)) is not None}
            for run in self.runs
        ]
        shared = sorted(set.intersection(*(set(values) for values in seeds)))
        return tuple((epoch, Estimate.of([values[epoch] for values in seeds])) for epoch in shared)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Difference between the main figures of a group and a baseline.

    Args:
        baseline: the baseline.
        difference: group minus baseline; error is None for a single seed.
        paired: whether both have the same seeds, so that differences were taken per seed.
    """

    baseline: Group
    difference: Estimate
    paired: bool

    @property
    def sign(self) -> int | None:
        """1 or -1 if the difference is beyond two standard errors, 0 if not, None if unknown."""
        mean, error = self.difference.mean, self.difference.error
        if error is None:
            return None
        return 0 if abs(mean) <= ERRORS_TO_BEAT * error else int(math.copysign(1, mean))


def compare(group: Group, baseline: Group) -> Comparison | None:
    """Compare the main figures of two groups; None if the test samples are unlabelled."""
    ours, theirs = group.main, baseline.main
    if ours is None or theirs is None:
        return None
    of_seed = {run.seed: run.main for run in baseline.runs}
    if of_seed.keys() == {run.seed for run in group.runs}:
        pairs = [(run.main, of_seed[run.seed]) for run in group.runs]
        gains = [a - b for a, b in pairs if a is not None and b is not None]
        return Comparison(baseline=baseline, difference=Estimate.of(gains), paired=True)
    known = ours.error is not None and theirs.error is not None
    difference = Estimate(
        mean=ours.mean - theirs.mean,
        error=math.hypot(ours.error or 0, theirs.error or 0) if known else None,
        count=min(ours.count, theirs.count),
    )
    return Comparison(baseline=baseline, difference=difference, paired=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a distilled group beats every baseline of its student.

    Args:
        group: the distilled group.
        comparisons: one per baseline; empty without baselines or main figures.
    """

    group: Group
    comparisons: tuple[Comparison, ...]

    @property
    def outcome(self) -> Outcome:
        """Better if above every baseline by two standard errors; worse if that far below any of them."""
        signs = {comparison.sign for comparison in self.comparisons}
        if self.group.main is None:
            return "unlabelled"
        if not signs:
            return "no_baseline"
        if None in signs:
            return "one_seed"
        if signs == {1}:
            return "better"
        return "worse" if -1 in signs else "not_shown"


def _best(groups: Iterable[Group]) -> Group | None:
    known = [(group.main.mean, group) for group in groups if group.main is not None]
    return max(known, key=lambda pair: pair[0])[1] if known else None


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentResults:
    """One student's groups, baselines first."""

    name: str
    groups: tuple[Group, ...]

    @property
    def network(self) -> dict[str, Any]:
        """The student's architecture and initial weights, from its first run; empty if unknown."""
        runs = (run for group in self.groups for run in group.runs)
        return network_of(next(runs).made_with, f"students.{self.name}")

    @property
    def baselines(self) -> tuple[Group, ...]:
        """The groups without a teacher."""
        return tuple(group for group in self.groups if group.dump is None)

    @property
    def reference(self) -> Group | None:
        """The baseline called scratch."""
        return next((group for group in self.baselines if group.recipe == REFERENCE), None)

    @property
    def best_baseline(self) -> Group | None:
        """The baseline with the highest mean main figure; the first one of a tie."""
        return _best(self.baselines)

    @property
    def best_taught(self) -> Group | None:
        """The distilled group with the highest mean main figure; the first one of a tie."""
        return _best(group for group in self.groups if group.dump is not None)

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """One verdict per distilled group."""
        return tuple(
            Verdict(
                group=group,
                comparisons=tuple(
                    found for baseline in self.baselines if (found := compare(group, baseline)) is not None
                ),
            )
            for group in self.groups
            if group.dump is not None
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All content of the report.

    Args:
        students: results in the order of the sweep.
        teachers: name -> result of `read_teacher`.
        dumps: name -> result of `dump_figures`.
        task: the task of all models.
    """

    students: tuple[StudentResults, ...]
    teachers: Mapping[str, Mapping[str, Any]]
    dumps: Mapping[str, Mapping[str, Any]]
    task: Task

    @classmethod
    def of(
        cls,
        runs: Sequence[Run],
        teachers: Mapping[str, Mapping[str, Any]],
        dumps: Mapping[str, Mapping[str, Any]],
        task: Task,
    ) -> Report:
        """Group runs by student, recipe and dump, in order of appearance."""
        groups: dict[tuple[str, str, str | None], list[Run]] = {}
        for run in runs:
            groups.setdefault((run.student, run.recipe, run.dump), []).append(run)
        made = [
            Group(student=student, recipe=recipe, dump=dump, runs=tuple(members))
            for (student, recipe, dump), members in groups.items()
        ]
        students = tuple(
            StudentResults(name=name, groups=tuple(group for group in made if group.student == name))
            for name in dict.fromkeys(run.student for run in runs)
        )
        return cls(students=students, teachers=teachers, dumps=dumps, task=task)

    @property
    def groups(self) -> Iterator[Group]:
        """The groups of all students."""
        return (group for student in self.students for group in student.groups)

    @property
    def labels(self) -> tuple[str, ...]:
        """The distinct names of groups."""
        return tuple(dict.fromkeys(self.label(group) for group in self.groups))

    def label(self, group: Group) -> str:
        """Return a group's recipe, plus its dump if there are several."""
        return group.recipe if len(self.dumps) < 2 else group.name

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per run."""
        return [run.row() for group in self.groups for run in group.runs]

    def to_dict(self) -> dict[str, Any]:
        """Return the content of results.json."""
        return {
            "students": self.rows(),
            "teachers": {
                name: {key: value for key, value in figures.items() if key not in DETAILS}
                for name, figures in self.teachers.items()
            },
            "dumps": {name: dict(figures) for name, figures in self.dumps.items()},
            "networks": {student.name: student.network for student in self.students},
        }

    def to_csv(self) -> str:
        """Return the content of results.csv; a missing figure is an empty field."""
        text = io.StringIO()
        table = csv.DictWriter(text, result_columns(self.task), lineterminator="\n")
        table.writeheader()
        table.writerows(self.rows())
        return text.getvalue()


def dump_figures(
    summary: Mapping[str, Any], teachers: Sequence[str], changes: LabelChanges | None = None
) -> dict[str, Any]:
    """Flatten the output of `pipeline inspect --json` for a store, and add its teachers' names.

    Args:
        summary: `LogitStore.summary()`.
        teachers: names of the store's teachers.
        changes: of the labels since the dump; None if they were not compared.
    """
    names = ("complete", "n_samples", "n_views", "n_classes", "codec", "bytes", "bytes_per_sample_view")
    return {
        "teacher": " + ".join(teachers),
        "teachers": list(teachers),
        **{name: summary[name] for name in names},
        "shards": dict(summary["shards"]),
        **summary["fidelity"],
        "teacher_top1": summary["teacher_top1"],
        **(changes or LabelChanges()).to_dict(),
    }
