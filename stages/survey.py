"""Look at the data of a new project, and write its `params.yaml`.

Owns the choice of a modality and the reading of counts, lengths and file headers. `fit.py`, `fit_text.py`,
`fit_audio.py` and `fit_items.py` choose the parameters; `init.py` writes the files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.core.arrays import spread
from pipeline.core.errors import ConfigError, DataError, first_of
from pipeline.core.progress import note
from pipeline.modalities.modality import DataOptions, Modality, Recognised
from pipeline.modalities.table import MODALITIES, families, find_modality
from pipeline.samples.label_forms import LabelKind, kind_of
from pipeline.samples.samples import Sample, Source
from stages.fit import Survey, find_teacher, fit
from stages.fit_audio import ClipSurvey, fit_clips
from stages.fit_items import LogSurvey, fit_log
from stages.fit_text import TextSurvey, fit_text
from stages.render import render

# The task that labels of each kind are for.
_TASKS: Mapping[LabelKind, str] = {"index": "classes", "tags": "multilabel", "numbers": "scores"}
# Number of samples to look at; more would not change a choice.
_MOST = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A new project.

    Args:
        modality: of its samples.
        params: text of params.yaml.
        options: of the modality, as params.yaml has them; None for the defaults.
        told: lines about the data, for the user.
    """

    modality: Modality
    params: str
    told: Sequence[str]
    options: DataOptions | None = None


def begin(folder: Path, named: str) -> Project:
    """Return the project for the data at a path.

    Args:
        folder: folder, or file of a table.
        named: its name for params.yaml.

    Raises:
        DataError: there is no such folder, or no data in it.
    """
    for modality in MODALITIES:
        if found := modality.recognise(folder, named):
            return _SURVEYS[modality.name](modality, found, folder, named)
    require_folder(folder)
    return _photographs(find_modality(), Recognised(source=f"folder:{named}"), folder, named)


def require_folder(folder: Path) -> None:
    """Refuse a missing folder.

    Raises:
        DataError: not a folder.
    """
    if not folder.is_dir():
        found = "not a folder" if os.path.lexists(folder) else "no such folder"
        raise DataError(
            f"{folder}: {found}; expected photographs, sounds or texts in class folders, a table of "
            "texts (.csv, .tsv, .jsonl, .parquet), or a log of users and items (.inter, .csv); correct the "
            "path"
        )


def _photographs(modality: Modality, found: Recognised, folder: Path, named: str) -> Project:
    source = _opened(modality, found, of_classes=False)
    survey = Survey(
        source=found.source,
        options=found.options,
        watch=named,
        classes=len(source.classes),
        train=len(source.train),
        validation=None if source.validation is None else len(source.validation),
        test=len(source.test),
        sizes=_headers(folder, modality, source, "image"),
        task=_TASKS[kind_of(np.asarray(source.train[0].label)[None])],
        can_stay=any(getattr(source, place, None) is not None for place in ("root", "container")),
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    installed = [one for family in families() for one in family.installed()]
    told = [str(survey)]
    if known := find_teacher(installed, device):
        told.append(f"teacher: {known.model} with the weights {known.weights} of this machine")
    else:
        told.append(
            "teacher: trained from scratch, because this machine has no pretrained weights; those of "
            "ImageNet teach far better: params.yaml has the lines that download them"
        )
    params = render("params.yaml.j2", **fit(survey, installed, device))
    options = modality.options_type(**found.options)
    return Project(modality=modality, params=params, told=told, options=options)


def _clips(modality: Modality, found: Recognised, folder: Path, named: str) -> Project:
    source = _opened(modality, found)
    survey = ClipSurvey(
        source=found.source,
        watch=named,
        classes=len(source.classes),
        train=len(source.train),
        validation=None if source.validation is None else len(source.validation),
        test=len(source.test),
        headers=_headers(folder, modality, source, "sound"),
    )
    params = render("params-audio.yaml.j2", **fit_clips(survey))
    return Project(modality=modality, params=params, told=[str(survey)])


def _texts(modality: Modality, found: Recognised, folder: Path, named: str) -> Project:
    del folder  # Texts have no headers: some are read.
    source = _opened(modality, found)
    survey = TextSurvey(
        source=found.source,
        options=found.options,
        watch=named,
        classes=len(source.classes),
        train=len(source.train),
        validation=None if source.validation is None else len(source.validation),
        test=len(source.test),
        lengths=np.array([sample.load().size for sample in _some(source)], np.int64),
    )
    params = render("params-text.yaml.j2", **fit_text(survey))
    return Project(modality=modality, params=params, told=[str(survey)])


def _log(modality: Modality, found: Recognised, folder: Path, named: str) -> Project:
    del folder  # Histories have no headers: some are read.
    source = _opened(modality, found)
    tested = [source.test[row] for row in spread(len(source.test), _MOST).tolist()]
    survey = LogSurvey(
        source=found.source,
        options=found.options,
        watch=named,
        items=len(source.classes),
        users=len(source.test),
        train=len(source.train),
        lengths=np.array([sample.load().size for sample in tested], np.int64),
    )
    return Project(
        modality=modality, params=render("params-items.yaml.j2", **fit_log(survey)), told=[str(survey)]
    )


_SURVEYS: Mapping[str, Callable[[Modality, Recognised, Path, str], Project]] = {
    "images": _photographs,
    "text": _texts,
    "audio": _clips,
    "items": _log,
}


def _opened(modality: Modality, found: Recognised, *, of_classes: bool = True) -> Source:
    """Open the data, and tell which files are left out.

    Raises:
        ConfigError: the labels are tags or numbers, but the job is one of classes.
    """
    source = modality.open_source(found.source, modality.options_type(**found.options))
    if of_classes and np.ndim(source.train[0].label):
        raise ConfigError(
            f"{found.source}: its labels are tags or numbers, for which init writes jobs of images only; "
            "expected one class per sample; copy the params.yaml of a clone and set data.task"
        )
    if left_out := str(source.left_out):
        note(f"left out: {left_out}")
    return source


def _some(source: Source) -> list[Sample]:
    return [source.train[row] for row in spread(len(source.train), _MOST).tolist()]


def _headers(folder: Path, modality: Modality, source: Source, kind: str) -> NDArray[np.int64]:
    """Return the extents (n, k) in the headers of some files; tell of files without one."""
    looked_at = _some(source)
    extents = modality.extents(looked_at)
    known = extents.min(1) > 0
    if not known.all():
        names = [looked_at[row].name for row in np.flatnonzero(~known)]
        note(
            f"{folder}: {len(names):,} of {len(looked_at):,} inspected files have no {kind} header: "
            f"{first_of(names)}; pipeline prepare refuses unreadable files"
        )
    found: NDArray[np.int64] = extents[known]
    return found
