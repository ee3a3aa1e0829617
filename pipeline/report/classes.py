"""Class by class: what a student's teachers and recipes find, and what they take for what."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.evaluation.assessment import ClassFigures, Confusion
from pipeline.report.results import Group, Report, StudentResults

SHOWN_CLASSES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A teacher, or the seeds of one recipe.

    Args:
        name: of it.
        seeds: every seed's classes, in the data's order; one of a teacher.
        seed: the first one; None of a teacher.
        confusions: the most frequent ones of that seed.
    """

    name: str
    seeds: tuple[tuple[ClassFigures, ...], ...]
    seed: int | None
    confusions: tuple[Confusion, ...]

    @classmethod
    def of(cls, name: str, group: Group) -> Column:
        """Return a group's column."""
        first = group.runs[0]
        seeds = tuple(run.classes for run in group.runs)
        return cls(name=name, seeds=seeds, seed=first.seed, confusions=first.confusions)

    def recall(self, place: int) -> float | None:
        """Return a class's mean recall over seeds."""
        return _mean(classes[place].recall for classes in self.seeds)

    def precision(self, place: int) -> float | None:
        """Return a class's mean precision over the seeds that name it at all."""
        return _mean(classes[place].precision for classes in self.seeds)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassRow:
    """A class: its place among the data's, its name, and how many test images it has."""

    place: int
    name: str
    support: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassTable:
    """One student's classes.

    Args:
        columns: its teachers, then its groups.
        rows: every class in order, or the hardest first where there are too many.
        n_classes: how many there are.
    """

    columns: tuple[Column, ...]
    rows: tuple[ClassRow, ...]
    n_classes: int


def class_table(report: Report, student: StudentResults, shown: int = SHOWN_CLASSES) -> ClassTable | None:
    """Return a student's table, of at most so many classes; None where nothing is known of any."""
    columns = tuple(column for column in _columns(report, student) if all(column.seeds))
    if not columns:
        return None
    rows = [
        ClassRow(place=place, name=figures.name, support=figures.support)
        for place, figures in enumerate(columns[0].seeds[0])
    ]
    hardest = sorted((row for row in rows if row.support), key=lambda row: _hardness(columns, row))
    return ClassTable(
        columns=columns, rows=tuple(rows if len(rows) <= shown else hardest[:shown]), n_classes=len(rows)
    )


def _columns(report: Report, student: StudentResults) -> list[Column]:
    dumps = dict.fromkeys(group.dump for group in student.groups if group.dump is not None)
    teachers = dict.fromkeys(name for dump in dumps for name in report.dumps[dump]["teachers"])
    found = [(name, report.teachers[name]) for name in teachers if name in report.teachers]
    taught = [
        Column(name=name, seeds=(figures["classes"],), seed=None, confusions=figures["confusions"])
        for name, figures in found
    ]
    return [*taught, *(Column.of(report.label(group), group) for group in student.groups)]


def _hardness(columns: tuple[Column, ...], row: ClassRow) -> float:
    return statistics.fmean(column.recall(row.place) or 0.0 for column in columns)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
