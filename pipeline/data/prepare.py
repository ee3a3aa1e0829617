"""A source becomes a prepared dataset: read every image once, split, digest; interrupted, it goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.data.dataset import DESCRIPTION, SCHEMA, SPLITS, write_description
from pipeline.data.delivery import deliver
from pipeline.data.draft import Draft, Spare
from pipeline.data.form import Form, Keep, relative_root
from pipeline.data.moments import Moments
from pipeline.data.reading import count_unchanged, in_order, read_pixels, read_sample
from pipeline.data.sample import Sample, Source
from pipeline.data.splits import split_validation
from pipeline.data.unfinished import require_readable, unfinished
from pipeline.errors import DataError
from pipeline.progress import note

# Training images that mean and deviation are estimated from where images are not decoded anyway.
MEASURED = 2048

Progress = Callable[[Sequence[Sample], str], Iterator[Sample]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """What is to be made of a source.

    Args:
        origin: what to call the source in the description.
        validation: share of the training samples that validates, 0 <= validation < 1.
        seed: of the validation split.
        keep: pixels, packed, or encoded: files stay where they are and are decoded at use.
        short_side: largest shorter side in pixels; larger images are shrunk to it. None leaves all alone.
        made_with: all that params.yaml asks for, by the keys of `DECISIVE`; written down.
    """

    origin: str
    validation: float = 0.0
    seed: int = 0
    keep: Keep = "pixels"
    short_side: int | None = None
    made_with: Mapping[str, Any] = field(default_factory=dict)

    def form(self, source: Source, folder: Path) -> Form:
        """Return the form of a source's images in a prepared dataset in `folder`."""
        root = None
        if self.keep == "encoded":
            if source.root is None:
                raise ValueError(f"{self.origin}: samples are no files, and cannot stay encoded")
            root = relative_root(source.root, folder)
        return Form(
            channels=source.channels,
            decoder=source.decoder,
            keep=self.keep,
            short_side=self.short_side,
            root=root,
        )

    def plan(self, form: Form) -> dict[str, Any]:
        """Return what decides the content of drafts, beside their samples."""
        split = {"source": self.origin, "validation": self.validation, "seed": self.seed}
        return {"schema": SCHEMA, **split, **form.to_dict(), "torch": torch.__version__}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Workshop:
    """Where drafts are made, by how many threads, and who is told.

    Args:
        form: of the images.
        state: folder of the drafts.
        workers: threads.
        progress: wraps samples to show how far a step is.
    """

    form: Form
    state: Path
    workers: int
    progress: Progress


def prepare(
    source: Source, folder: Path, asked: Preparation, *, state: Path, workers: int, progress: Progress
) -> dict[str, Any]:
    """Prepare a source in `folder`; `dataset.json`, written last, makes it complete.

    Args:
        source: the dataset as found.
        folder: where the prepared dataset goes.
        asked: what is to be made of the source.
        state: folder of what is not finished; a later call with the same source goes on from it.
        workers: reading threads.
        progress: wraps the samples of a step, which it is told the name of, to show how far it is.

    Returns:
        The description that was written.

    Raises:
        DataError: images that are not readable, all of them named in a file in `state`.

    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DESCRIPTION).unlink(missing_ok=True)
    form = asked.form(source, folder)
    train, held = split_validation(source.train, fraction=asked.validation, seed=asked.seed)
    splits = dict(zip(SPLITS, (train, held, source.test), strict=True))
    shop = _Workshop(form=form, state=state, workers=workers, progress=progress)
    with unfinished(state, asked.plan(form)):
        unreadable = [line for name, samples in splits.items() for line in _draft(shop, name, samples)]
        moments, others = _moments(shop, train)
        count = sum(map(len, splits.values()))
        require_readable(list(dict.fromkeys([*unreadable, *others])), count, state)
        images = {}
        for name, samples in splits.items():
            with Draft(state, name, form) as draft:
                images[name] = deliver(draft, samples, folder, name, form)
        return write_description(
            folder,
            source=asked.origin,
            classes=source.classes,
            form=form,
            mean_and_std=moments.mean_and_std(),
            splits=images,
            made_with=asked.made_with,
        )


def _draft(shop: _Workshop, name: str, samples: Sequence[Sample]) -> list[str]:
    """Make a split's draft, or go on with it; return a message for each image that is not readable."""
    unreadable: list[str] = []
    with ExitStack() as drafts:
        draft = drafts.enter_context(Draft(shop.state, name, shop.form))
        spare = drafts.enter_context(Draft(shop.state, f"{name}.spare", shop.form))
        _go_on(shop, draft, spare, name, samples)
        read = partial(read_sample, form=shop.form, spare=Spare(spare))
        rest, step = samples[len(draft) :], "scan" if shop.form.keep == "encoded" else "decode"
        for entry in in_order(read, rest, shop.workers, shop.progress(rest, f"{step} {name}")):
            if not isinstance(entry, DataError):
                draft.add(entry)
                continue
            if not unreadable:
                note(f"{entry}; going on, to find them all")
            unreadable.append(str(entry))
    return unreadable


def _go_on(shop: _Workshop, draft: Draft, spare: Draft, name: str, samples: Sequence[Sample]) -> None:
    """Keep of a draft what is still true: the first samples where they are, others in a spare draft."""
    rows, offsets = draft.rows(), draft.offsets()
    kept = count_unchanged(rows, samples, shop.workers)
    if kept < len(rows):
        has_room = offsets[-1] - offsets[kept] < shutil.disk_usage(shop.state).free // 2
        can_be_told = (rows["file_bytes"][kept:] >= 0).any()
        draft.shorten(kept, spare if has_room and can_be_told else None)
    if len(rows) or len(spare):
        moved_too = f", up to {len(spare):,} others are moved" if len(spare) else ""
        note(f"resuming: {kept:,} of {len(samples):,} {name} images are there{moved_too}")


def _moments(shop: _Workshop, train: Sequence[Sample]) -> tuple[Moments, list[str]]:
    """Return the moments of the training images, and a message for each that is not readable.

    Of images that are kept encoded a sample is decoded, spread evenly.
    """
    if shop.form.keep == "pixels":
        with Draft(shop.state, "train", shop.form) as draft:
            return draft.moments, []
    rows = np.linspace(0, len(train) - 1, min(MEASURED, len(train))).astype(np.int64)
    if len(rows) < len(train):
        note(f"mean and deviation are estimated from {len(rows):,} of {len(train):,} training images")
    chosen = [train[row] for row in rows.tolist()]
    total, unreadable = Moments.none(shop.form.channels), []
    measured = in_order(
        partial(_moments_of, form=shop.form), chosen, shop.workers, shop.progress(chosen, "measure train")
    )
    for found in measured:
        if isinstance(found, DataError):
            unreadable.append(str(found))
        else:
            total += found
    return total, unreadable


def _moments_of(sample: Sample, form: Form) -> Moments | DataError:
    try:
        return Moments.of(read_pixels(sample, form))
    except DataError as error:
        return error
