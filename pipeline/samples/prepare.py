"""Turn a source into a prepared dataset: split, read every sample once, digest; resumable."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError, counted, plural
from pipeline.core.files import write_atomic, written_beside
from pipeline.core.progress import note
from pipeline.core.team import Elsewhere
from pipeline.samples.description import DESCRIPTION, SCHEMA, SPLITS, write_description
from pipeline.samples.draft import Draft, require_none, unfinished
from pipeline.samples.drafting import DraftBuilder, Progress
from pipeline.samples.elsewhere import Reopened
from pipeline.samples.index import Form, write_index
from pipeline.samples.intake import ArrayIntake, Intake, Remarks
from pipeline.samples.label_forms import Wanted, gather_labels
from pipeline.samples.labels import occurring, tell_unseen
from pipeline.samples.leaks import describe_leaks, find_leaks
from pipeline.samples.packed import Split
from pipeline.samples.samples import Names, Sample, Source
from pipeline.samples.splits import split_validation

# If files stay, this many samples per split are decoded, for statistics and to find damaged files.
MEASURED = 2048
# Version of the reading code: a new number discards existing drafts.
_READING = 5
# Files of a prepared dataset that every modality has.
_INDEX = {DESCRIPTION, *(f"{name}.{kind}" for name in SPLITS for kind in ("npz", "names"))}
Splits = Mapping[str, Sequence[Sample]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """The parameters of a preparation.

    Args:
        origin: name of the source in dataset.json, e.g. folder:photos.
        validation: share of the training samples for validation, 0 <= validation < 1.
        seed: of the validation split.
        made_with: values that decide or restrict the content, by keys of params.yaml's `data`; recorded.
        kinds: modality and task, without the defaults.
        labels: the labels that the task takes.
    """

    origin: str
    validation: float = 0.0
    seed: int = 0
    made_with: Mapping[str, Any] = field(default_factory=dict)
    kinds: Mapping[str, str] = field(default_factory=dict)
    labels: Wanted = field(default_factory=Wanted)

    def plan(self, intake: Intake) -> dict[str, Any]:
        """Return all values that decide the content of drafts, except their samples."""
        split = {"source": self.origin, "validation": self.validation, "seed": self.seed}
        return {
            "schema": SCHEMA,
            "reading": _READING,
            **self.kinds,
            **split,
            **intake.form.to_dict(),
            **intake.plan(),
        }


def prepare(
    source: Source,
    folder: Path,
    asked: Preparation,
    intake: Intake,
    *,
    state: Path,
    workers: int,
    progress: Progress,
    elsewhere: Elsewhere[Reopened] | None = None,
) -> dict[str, Any]:
    """Prepare a source in `folder`; `dataset.json`, written last, makes it complete.

    Args:
        source: the dataset as found.
        folder: of the prepared dataset.
        asked: parameters of the preparation.
        intake: reads the samples.
        state: folder of the drafts; a later call with the same source resumes from it.
        workers: threads that read, or processes: see `processes.py`.
        progress: called with samples and the name of a step; yields the samples and shows the progress.
        elsewhere: reads the samples in other processes instead.

    Returns:
        The content of dataset.json.

    Raises:
        DataError: unreadable samples; a file in `state` names all of them.

    """
    kind = asked.labels.require(source, asked.origin)
    splits = divide(source, asked, intake.form.noun)
    with unfinished(state, asked.plan(intake), intake), intake:
        _sweep(folder, intake)
        builder = DraftBuilder(
            intake=intake,
            state=state,
            workers=workers,
            progress=progress,
            forks=source.forks,
            elsewhere=elsewhere,
        )
        if isinstance(intake, ArrayIntake):
            intake.workers = workers
        statistics, remarks = _read(builder, splits)
        intake.require_sound(remarks, sum(map(len, splits.values())), state)
        opened, glances = {}, {}
        for name, samples in splits.items():
            with Draft(state, name, intake) as draft:
                glances[name] = draft.rows()["glance"]
                labels = gather_labels(samples, kind, len(source.classes))
                opened[name] = publish_split(draft, samples, labels, folder, name, intake)
        intake.tell(remarks, folder)
        left_out = source.left_out.to_dict()
        leaks = {} if intake.form.repeats else find_leaks(opened, glances).to_dict()
        _tell(source, leaks, opened, intake.form)
        return write_description(
            folder,
            source=asked.origin,
            kinds=asked.kinds,
            classes=source.classes,
            form=intake.form,
            statistics=intake.describe(statistics),
            splits=opened,
            found={"left_out": left_out, "leaks": leaks, "remarks": intake.count(remarks)},
            made_with=asked.made_with,
        )


def divide(source: Source, asked: Preparation, noun: str) -> Splits:
    """Return the samples of each split; draw a validation split if the source has none."""
    if source.validation is None:
        train, held = split_validation(source.train, fraction=asked.validation, seed=asked.seed)
    else:
        train, held = source.train, source.validation
        note(
            f"validation: {counted(len(held), noun)} from the source's own split; data.validation is not "
            "used"
        )
    return dict(zip(SPLITS, (train, held, source.test), strict=True))


def _sweep(folder: Path, intake: Intake) -> None:
    """Remove the description, and temporary files of a killed call, from the folder of the dataset."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DESCRIPTION).unlink(missing_ok=True)
    arrays = [f"{name}.{intake.form.suffix}" for name in SPLITS]
    for path in folder.iterdir():
        if written_beside(path.name) in {*_INDEX, *arrays, *intake.files}:
            path.unlink(missing_ok=True)


def _read(builder: DraftBuilder, splits: Splits) -> tuple[Any, Remarks]:
    """Make the drafts of all splits; return the training samples' statistics, and all remarks.

    Raises:
        DataError: unreadable samples.
    """
    unreadable = [line for name, samples in splits.items() for line in builder.make_draft(name, samples)]
    # If files stay, only some are decoded.
    packs = builder.intake.form.packs
    measured = {} if packs else {name: builder.measure(name, splits[name], MEASURED) for name in splits}
    unreadable += [line for some in measured.values() for line in some.unreadable]
    count = sum(map(len, splits.values()))
    fault = f"of {count:,} {plural(builder.intake.form.noun)} cannot be read"
    require_none(list(dict.fromkeys(unreadable)), fault, builder.state)
    bits = {name: builder.rows(name)["remarks"] for name in splits}
    if packs:
        statistics = builder.statistics("train")
    else:
        statistics = measured["train"].statistics
        bits = {name: bits[name] | some.remarks for name, some in measured.items()}
        counts = {name: (min(MEASURED, len(samples)), len(samples)) for name, samples in splits.items()}
        builder.intake.tell_measured(counts)
    return statistics, Remarks({name: (samples, bits[name]) for name, samples in splits.items()})


def _tell(source: Source, leaks: Mapping[str, Any], opened: Mapping[str, Split], form: Form) -> None:
    if left_out := str(source.left_out):
        note(f"left out: {left_out}")
    trained, tested = (set(occurring(opened[name].labels).tolist()) for name in ("train", "test"))
    if tested and not form.repeats:
        tell_unseen([source.classes[row] for row in sorted(trained - tested)], "test", form.noun)
    if leaks:
        counts = {name: len(split) for name, split in opened.items()}
        note(f"leaks: {describe_leaks(leaks, counts)}")


# Publish a finished draft as a split of a prepared dataset.


def publish_split(
    draft: Draft,
    samples: Sequence[Sample],
    labels: NDArray[Any],
    folder: Path,
    split: str,
    intake: Intake,
) -> Split:
    """Put a split into the folder of a prepared dataset, and open it.

    The draft stays until all splits are published: DVC may remove the folder before it runs a stage.

    Args:
        draft: of all samples.
        samples: in the order of the draft.
        labels: of these samples.
        folder: of the prepared dataset.
        split: its name.
        intake: opens the split.

    Raises:
        DataError: two samples have the same key.
    """
    rows, names = draft.rows(), Names.of(sample.name for sample in samples)
    _require_unique(rows["key"], names)
    columns = {
        "shapes": rows["shape"],
        "labels": labels,
        "keys": rows["key"],
        "digests": rows["digest"],
        "contents": rows["content"],
        **intake.places(samples),
    }
    target = folder / f"{split}.{intake.form.suffix}"
    # The old file may be a link into DVC's cache.
    target.unlink(missing_ok=True)
    if intake.form.packs:
        _place(draft.arrays_path, target)
        columns["offsets"] = draft.offsets()[:-1]
    write_index(folder, split, columns, names)
    return intake.open_split(folder, split)


def _place(source: Path, target: Path) -> None:
    """Hard-link a file to a second name; copy it if the file system cannot link."""
    try:
        os.link(source, target)
    except OSError:
        with source.open("rb") as file:
            write_atomic(target, partial(shutil.copyfileobj, file))


def _require_unique(keys: NDArray[Any], names: Names) -> None:
    order = np.argsort(keys, kind="stable")
    same = np.flatnonzero(keys[order][1:] == keys[order][:-1])
    if len(same):
        first, second = (names[int(order[place])] for place in (same[0], same[0] + 1))
        raise DataError(
            f"samples {first!r} and {second!r} have the same key; expected unique names; rename one"
        )
