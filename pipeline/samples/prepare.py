"""A source becomes a prepared dataset: read every image once, split, digest; interrupted, it goes on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.core.errors import DataError, counted
from pipeline.core.files import write_atomic, written_beside
from pipeline.core.progress import note
from pipeline.modalities.images.damage import (
    DAMAGED_LIST,
    Ear,
    OnDamage,
    Remarks,
    refuse_damaged,
    tell_remarks,
)
from pipeline.modalities.images.decoding import MAX_PIXELS
from pipeline.modalities.images.images import Moments
from pipeline.samples.dataset import DESCRIPTION, SCHEMA, SPLITS, open_split, write_description
from pipeline.samples.draft import Draft, require_none, unfinished
from pipeline.samples.index import Form, Keep, relative_root, write_index
from pipeline.samples.labels import tell_unseen
from pipeline.samples.leaks import describe_leaks, find_leaks
from pipeline.samples.packed import Images
from pipeline.samples.samples import UNLABELLED, Names, Sample, Source
from pipeline.samples.splits import split_validation
from pipeline.samples.workshop import Progress, Workshop

# A finished draft becomes a split of a prepared dataset.


def deliver(draft: Draft, samples: Sequence[Sample], folder: Path, split: str, form: Form) -> Images:
    """Put a split into the folder of a prepared dataset, and open it.

    The draft stays: until all splits are delivered, the folder may be removed, as DVC does before it runs a
    stage.

    Args:
        draft: of all samples.
        samples: in its order.
        folder: where the split's files go.
        split: its name.
        form: of the images.

    Raises:
        DataError: two samples have one key.
    """
    rows, names = draft.rows(), Names.of(sample.name for sample in samples)
    _require_unique(rows["key"], names)
    columns = {
        "shapes": np.stack([rows["height"], rows["width"]], 1),
        "labels": rows["label"],
        "keys": rows["key"],
        "digests": rows["digest"],
    }
    target = folder / f"{split}.pixels"
    # The old file may be a link into DVC's cache.
    target.unlink(missing_ok=True)
    if form.keep == "pixels":
        _place(draft.pixels_path, target)
        columns["offsets"] = draft.offsets()[:-1]
    write_index(folder, split, columns, names)
    return open_split(folder, split, form)


def _place(source: Path, target: Path) -> None:
    """Give a file another name; on another file system, or one without links, copy it."""
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


# Images of each split that are decoded where images are not decoded anyway: for mean and deviation, and to
# find damaged ones.
MEASURED = 2048

# Of what is made of the same samples: another number makes drafts anew.
_READING = 3
# What is written into the folder of a prepared dataset.
_FILES = {
    DESCRIPTION,
    DAMAGED_LIST,
    *(f"{name}.{kind}" for name in SPLITS for kind in ("npz", "names", "pixels")),
}

Splits = Mapping[str, Sequence[Sample]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """What is to be made of a source.

    Args:
        origin: what to call the source in the description.
        validation: share of the training samples that validates, 0 <= validation < 1.
        seed: of the validation split.
        keep: pixels, packed, or encoded: files stay where they are and are decoded at use.
        short_side: largest shorter side in pixels; larger images are shrunk to it. None leaves all alone.
        max_pixels: of an image file; the source refuses larger ones.
        damaged: warn, images that are partly wrong are read and told; refuse, they are not, and of files
            that stay encoded all are decoded to find them.
        made_with: all that params.yaml asks for, by the keys of `DECISIVE` and `REFUSING`; written down.
    """

    origin: str
    validation: float = 0.0
    seed: int = 0
    keep: Keep = "pixels"
    short_side: int | None = None
    max_pixels: int = MAX_PIXELS
    damaged: OnDamage = "warn"
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
        reading = {"reading": _READING, "thorough": self.thorough, "max_pixels": self.max_pixels}
        return {"schema": SCHEMA, **split, **form.to_dict(), "torch": torch.__version__, **reading}

    @property
    def thorough(self) -> bool:
        """Whether files that stay encoded are decoded nevertheless."""
        return self.keep == "encoded" and self.damaged == "refuse"


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
    form = asked.form(source, folder)
    splits = _divide(source, asked)
    with unfinished(state, asked.plan(form)), Ear() as ear:
        _sweep(folder)
        shop = Workshop(
            form=form, state=state, workers=workers, progress=progress, ear=ear, thorough=asked.thorough
        )
        moments, remarks = _read(shop, splits)
        if asked.damaged == "refuse":
            refuse_damaged(remarks, sum(map(len, splits.values())), state)
        images, glances = {}, {}
        for name, samples in splits.items():
            with Draft(state, name, form) as draft:
                glances[name] = draft.rows()["glance"]
                images[name] = deliver(draft, samples, folder, name, form)
        tell_remarks(remarks, folder)
        left_out, leaks = source.left_out.to_dict(), find_leaks(images, glances).to_dict()
        _tell(source, leaks, images)
        return write_description(
            folder,
            source=asked.origin,
            classes=source.classes,
            form=form,
            mean_and_std=moments.mean_and_std(),
            splits=images,
            found={"left_out": left_out, "leaks": leaks, "remarks": remarks.to_dict()},
            made_with=asked.made_with,
        )


def _divide(source: Source, asked: Preparation) -> Splits:
    """Return the samples of each split; the source's own validation split, or one that is drawn."""
    if source.validation is None:
        train, held = split_validation(source.train, fraction=asked.validation, seed=asked.seed)
    else:
        train, held = source.train, source.validation
        note(f"validation: {counted(len(held), 'image')} of the source's own; data.validation is not used")
    return dict(zip(SPLITS, (train, held, source.test), strict=True))


def _sweep(folder: Path) -> None:
    """Make room for a dataset: no description, and nothing that an earlier call was killed over."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DESCRIPTION).unlink(missing_ok=True)
    for path in folder.iterdir():
        if written_beside(path.name) in _FILES:
            path.unlink(missing_ok=True)


def _read(shop: Workshop, splits: Splits) -> tuple[Moments, Remarks]:
    """Make the drafts of all splits; return the moments of the training images, and what is odd.

    Raises:
        DataError: images that are not readable.
    """
    unreadable = [line for name, samples in splits.items() for line in shop.make_draft(name, samples)]
    # Of files that stay, some are decoded.
    packs = shop.form.keep == "pixels"
    measured = {} if packs else {name: shop.measure(name, splits[name], MEASURED) for name in splits}
    unreadable += [line for some in measured.values() for line in some.unreadable]
    count = sum(map(len, splits.values()))
    require_none(list(dict.fromkeys(unreadable)), f"of {count:,} images are not readable", shop.state)
    bits = {name: shop.rows(name)["remarks"] for name in splits}
    if packs:
        moments = shop.moments("train")
    else:
        moments = measured["train"].moments
        bits = {name: bits[name] | some.remarks for name, some in measured.items()}
        _tell_measured(splits, thorough=shop.thorough)
    return moments, Remarks({name: (samples, bits[name]) for name, samples in splits.items()})


def _tell_measured(splits: Splits, *, thorough: bool) -> None:
    """Say of how many files that stay something is known that only decoding tells."""
    counts = {name: (min(MEASURED, len(samples)), len(samples)) for name, samples in splits.items()}
    some, every = counts["train"]
    if some < every:
        note(f"mean and deviation are estimated from {some:,} of {every:,} training images")
    some, every = (sum(part) for part in zip(*counts.values(), strict=True))
    if some < every and not thorough:
        note(
            f"damage is looked for in {some:,} of {every:,} images, the others are decoded at use; "
            "data.damaged: refuse looks at all"
        )


def _tell(source: Source, leaks: Mapping[str, Any], images: Mapping[str, Images]) -> None:
    if left_out := str(source.left_out):
        note(f"left out: {left_out}")
    trained, tested = (set(images[name].labels.tolist()) for name in ("train", "test"))
    if tested - {UNLABELLED}:
        tell_unseen(
            [source.classes[row] for row in sorted(trained - tested - {UNLABELLED})], "test", "image"
        )
    if leaks:
        counts = {name: len(split) for name, split in images.items()}
        note(f"leaks: {describe_leaks(leaks, counts)}")
