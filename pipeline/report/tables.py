"""Tables and galleries of the page: classes and confusions, examples of views, suspect labels."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.core.progress import note
from pipeline.core.team import Elsewhere
from pipeline.evaluation.label_errors import LabelError, LabelErrors, Reopened, find_label_errors
from pipeline.loading.feed import Feed
from pipeline.modalities.picture import Picture
from pipeline.modalities.prepared import PreparedData
from pipeline.modalities.table import mixed_blocks, preprocessing_of, views_of
from pipeline.report.figures import Example, Mixed, make_examples, spread_rows
from pipeline.report.results import Group, Report, StudentResults
from pipeline.samples.packed import Split
from pipeline.store.soft_labels import SoftLabels
from pipeline.tasks.class_figures import ClassFigures, Confusion
from pipeline.tasks.table import find_task

SHOWN_CLASSES = 20
EXAMPLES = 6
EXAMPLE_VIEWS = 3
SUSPECTS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A teacher, or the seeds of one recipe.

    Args:
        name: name of the teacher or recipe.
        seeds: per seed, the classes in the data's order; a teacher has one entry.
        seed: the first seed; None for a teacher.
        confusions: the most frequent confusions of that seed.
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
        """Return a class's mean precision over the seeds that predict it at all."""
        return _mean(classes[place].precision for classes in self.seeds)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassRow:
    """A class: its index in the data, its name, and its number of test images."""

    place: int
    name: str
    support: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassTable:
    """One student's classes.

    Args:
        columns: the student's teachers, then its groups.
        rows: all classes in order, or only the hardest, hardest first, if there are too many.
        n_classes: number of classes in the data.
    """

    columns: tuple[Column, ...]
    rows: tuple[ClassRow, ...]
    n_classes: int


def class_table(report: Report, student: StudentResults, shown: int = SHOWN_CLASSES) -> ClassTable | None:
    """Return a student's table with at most `shown` classes; None without per-class figures."""
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


# Images in the report: examples as a teacher saw them, and samples with suspect labels.


@dataclass(frozen=True, slots=True, kw_only=True)
class SuspectLabel:
    """A sample whose label its teacher contradicts.

    Args:
        found: the label error.
        picture: the un-augmented picture.
    """

    found: LabelError
    picture: Picture


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpGallery:
    """Images of a dump for the page.

    Args:
        examples: training samples as the teacher saw them.
        label_errors: findings about labels; None without the logits, or if the task doubts no labels.
        suspects: the samples with the worst labels.
    """

    examples: tuple[Example, ...] = ()
    label_errors: LabelErrors | None = None
    suspects: tuple[SuspectLabel, ...] = ()


def make_gallery(
    name: str,
    store: SoftLabels,
    data: PreparedData,
    workers: int = 1,
    elsewhere: Elsewhere[Reopened] | None = None,
) -> DumpGallery:
    """Collect images and label errors of a dump, with a few views of logits in memory at a time.

    Args:
        name: the dump's name.
        store: the dump's store or ensemble, possibly a manifest without its shards.
        data: the samples.
        workers: threads that read views side by side.
        elsewhere: other processes, which read the training views instead.
    """
    if not all(m.location.exists(file) for m in store.members for file in m.manifest.shard_files()):
        note(
            f"{name}: no examples or label errors, because its logits are not on this machine; fetch them "
            "with: dvc pull"
        )
        return DumpGallery()
    note(f"collecting examples and suspect labels of {name}")
    if store.measures.is_absolute or not find_task(data.task).doubts_labels:
        return DumpGallery(examples=_examples(name, store, data))
    errors = find_label_errors(store, data, SUSPECTS, workers, elsewhere)
    return DumpGallery(
        examples=_examples(name, store, data),
        label_errors=errors,
        suspects=tuple(_suspect(error, store, data) for error in errors.worst),
    )


def _suspect(error: LabelError, store: SoftLabels, data: PreparedData) -> SuspectLabel:
    images: Split = getattr(data, error.split)
    feed = Feed(images, None, preprocessing_of(store), device=torch.device("cpu"))
    (shown,) = feed.evidence(0, np.array([error.row]))
    return SuspectLabel(found=error, picture=data.modality.picture(shown, form=images.form))


def _examples(name: str, store: SoftLabels, data: PreparedData) -> tuple[Example, ...]:
    if views_of(store).mixes and len(data.train) < store.n_samples:
        note(f"{name}: no examples, because some mixed samples are no longer in the data")
        return ()
    rows = spread_rows(data.train.labels, EXAMPLES)
    blocks, device = mixed_blocks(store, data.train), torch.device("cpu")
    feed = Feed(data.train, views_of(store), preprocessing_of(store), device=device, blocks=blocks)
    plain = Feed(data.train, None, preprocessing_of(store), device=device).evidence(0, rows)
    places = torch.from_numpy(store.rows_of(data.train)[rows])
    views = range(min(EXAMPLE_VIEWS, store.n_views))
    picture = partial(data.modality.picture, form=data.train.form)
    examples = make_examples(
        data.train.labels[rows],
        classes=data.classes,
        pictures=[list(map(picture, feed.evidence(view, rows), plain)) for view in views],
        logits=[store.view(view)[places].numpy() for view in views],
        mixtures=[_mixture(feed, view, rows) for view in views],
        link=store.measures.link,
    )
    return tuple(examples)


def _mixture(feed: Feed, view: int, rows: NDArray[np.int64]) -> Mixed | None:
    """Return the partners' labels and the samples' own shares, for rows of a view that mixes images."""
    shares = feed.shares(view, rows)
    return None if shares is None else (feed.images.labels[shares[0]], shares[1])
