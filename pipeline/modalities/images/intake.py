"""Reading images in `pipeline prepare`: decode and pack them, or scan files that stay in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.core.errors import ConfigError, DataError
from pipeline.core.hashing import bytes_glance, encoded_digests
from pipeline.core.progress import note
from pipeline.modalities.images.damage import (
    DAMAGED_LIST,
    Ear,
    count_remarks,
    refuse_damaged,
    remark_on,
    tell_remarks,
)
from pipeline.modalities.images.decoding import ImageFile, shrink, shrunk_shape
from pipeline.modalities.images.encoded import Moments, open_encoded
from pipeline.modalities.images.form import (
    Contained,
    ImageForm,
    ImageSource,
    image_form,
    relative_root,
)
from pipeline.modalities.images.options import ImageOptions
from pipeline.samples.containers import Cell, Content, cell_columns
from pipeline.samples.index import Columns
from pipeline.samples.intake import Entry, Identity, Remarks, load_array, row_dtype
from pipeline.samples.label_forms import label_word
from pipeline.samples.packed import Split, open_packed
from pipeline.samples.reading import Seat
from pipeline.samples.samples import Sample

# The end of an encoded file shows whether it may be a copy of another one.
_GLANCE_BYTES = 4096


class ImageIntake:
    """Reads images; an `Ear` records the decoder's warnings about damaged files.

    Args:
        source: source of the images.
        folder: folder of the prepared dataset.
        options: storage options.

    Raises:
        ConfigError: samples are not files, but are to stay encoded.
    """

    files = (DAMAGED_LIST,)

    def __init__(self, source: ImageSource, folder: Path, options: ImageOptions) -> None:
        self._options, self._ear = options, Ear()
        root, contained = None, None
        if options.keep == "encoded":
            root, contained = _places_of(source, folder)
        self.form: ImageForm = image_form(
            source.channels,
            source.decoder,
            keep=options.keep,
            short_side=options.short_side,
            root=root,
            contained=contained,
        )

    def __enter__(self) -> Self:
        self._ear.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._ear.__exit__(*error)

    @property
    def step(self) -> str:
        """Description of the reading step, for the progress bar."""
        return "decode" if self.form.packs else "scan"

    @property
    def _thorough(self) -> bool:
        """Whether encoded files are decoded as well, to find damaged ones."""
        return not self.form.packs and self._options.damaged == "refuse"

    def plan(self) -> dict[str, Any]:
        """Return the options that change drafts, besides form and samples."""
        reading = {"thorough": self._thorough, "max_pixels": self._options.max_pixels}
        return {"torch": torch.__version__, **reading}

    def goes_on(self, found: Mapping[str, Any], plan: Mapping[str, Any]) -> bool:
        """Whether drafts of one plan serve another; a larger pixel bound admits all images of a smaller.

        The files around images may be others: a draft has no places, which come from the source.
        """
        bound = found.get("max_pixels")
        if not isinstance(bound, int) or bound > plan["max_pixels"]:
            return False
        free = {name: plan[name] for name in ("max_pixels", "contained") if name in plan}
        return {**found, **free} == plan

    def nothing(self) -> Moments:
        """Return the moments of zero images."""
        return Moments.none(self.form.channels)

    def restored(self, plain: Any) -> Moments:
        """Return the moments described by `to_plain`."""
        return Moments(np.array(plain, np.int64))

    def statistics(self, array: NDArray[Any]) -> Moments:
        """Return the moments of one image."""
        return Moments.of(array)

    def read(self, sample: Sample, seat: Seat, identity: Identity) -> Entry:
        """Decode an image, or scan a file that stays in place.

        Raises:
            DataError: the file cannot be read.
        """
        return (self._decoded if self.form.packs else self._scanned)(sample, seat, identity)

    def measure(self, sample: Sample, seat: Seat) -> tuple[Moments, int]:
        """Decode a file that stays in place; return its moments and remarks.

        Raises:
            DataError: the file cannot be read.
        """
        pixels, remarks = self._pixels(sample, seat)
        return Moments.of(pixels), remarks

    def tell_measured(self, counts: Mapping[str, tuple[int, int]]) -> None:
        """Report the number of files in place that were decoded for statistics and damage."""
        some, every = counts["train"]
        if some < every:
            note(f"mean and standard deviation are estimated from {some:,} of {every:,} training images")
        some, every = (sum(part) for part in zip(*counts.values(), strict=True))
        if some < every and not self._thorough:
            note(
                f"checked {some:,} of {every:,} images for damage; the rest are decoded on use; set "
                "data.damaged: refuse to check all"
            )

    def require_sound(self, remarks: Remarks, count: int, state: Path) -> None:
        """Refuse to finish with damaged files if `damaged` is refuse; see `Intake.require_sound`."""
        if self._options.damaged == "refuse":
            refuse_damaged(remarks, count, state)

    def tell(self, remarks: Remarks, folder: Path) -> None:
        """Print remarks on stderr, one line each; list damaged files in the prepared dataset's folder."""
        tell_remarks(remarks, folder)

    def count(self, remarks: Remarks) -> dict[str, int]:
        """Return the number of images per remark, without zeros."""
        return count_remarks(remarks)

    def describe(self, statistics: Moments) -> dict[str, Any]:
        """Return mean and deviation of the training images, per channel, of pixels scaled to 0..1."""
        mean, std = statistics.mean_and_std()
        return {"mean": mean, "std": std}

    def places(self, samples: Sequence[Sample]) -> Columns:
        """Return the places of images that stay inside larger files, as columns of the index."""
        if self.form.contained is None:
            return {}
        return cell_columns([_cell(sample) for sample in samples])

    def open_split(self, folder: Path, name: str) -> Split:
        """Open a split just written."""
        if self.form.packs:
            return open_packed(folder, name, self.form)
        return open_encoded(folder, name, self.form)

    def _decoded(self, sample: Sample, seat: Seat, identity: Identity) -> Entry:
        pixels, remarks = self._pixels(sample, seat)
        moments = Moments.of(pixels)
        digests = encoded_digests(pixels, pixels.shape, label_word(sample.label))
        row = (*identity, pixels.shape[:2], *digests, moments.glance(), remarks)
        return Entry(np.array(row, row_dtype(self.form)), pixels, moments)

    def _pixels(self, sample: Sample, seat: Seat) -> tuple[NDArray[np.uint8], int]:
        """Decode and shrink an image according to the form; return (H, W, C) uint8 and remarks."""
        file = sample.load
        if not isinstance(file, ImageFile):
            array = load_array(sample)
            is_image = array.dtype == np.uint8 and array.ndim == 3 and array.size
            if not is_image or array.shape[2] != self.form.channels:
                raise DataError(
                    f"{sample.name}: {array.dtype} of shape {array.shape}; expected uint8 (height, width, "
                    f"{self.form.channels}); correct its source"
                )
            return shrink(array, self.form.short_side), 0
        content = file.read()
        seat.take(file.pixels(content))
        pixels, damaged = self._ear.listen(partial(file.decode, content))
        return shrink(pixels, self.form.short_side), remark_on(content, pixels, damaged=damaged)

    def _scanned(self, sample: Sample, seat: Seat, identity: Identity) -> Entry:
        """Scan a file without decoding it, unless its header lacks the shape."""
        file, form, remarks = sample.load, self.form, 0
        if not isinstance(file, ImageFile):
            raise TypeError(f"{sample.name} is not a file, so it cannot stay encoded")
        content = file.read()
        seat.take(file.pixels(content))
        if self._thorough:
            pixels, damaged = self._ear.listen(partial(file.decode, content))
            remarks = remark_on(content, pixels, damaged=damaged)
        shape = shrunk_shape(*file.shape(content), form.short_side)
        digests = encoded_digests(content, (*shape, form.channels), label_word(sample.label))
        glance = bytes_glance(content[-_GLANCE_BYTES:])
        row = (*identity, shape, *digests, glance, remarks)
        return Entry(np.array(row, row_dtype(form)), None, None)


def _places_of(source: ImageSource, folder: Path) -> tuple[str, Contained | None]:
    """Return the root, relative to a prepared dataset, and the larger files of images that stay."""
    if source.container is not None:
        return relative_root(source.container.root, folder), Contained.of(source.container)
    if source.root is None:
        raise ConfigError(
            "keep is encoded, but the samples of data.source are no files; expected image files; set keep: "
            "pixels"
        )
    return relative_root(source.root, folder), None


def _cell(sample: Sample) -> Cell:
    if not isinstance(sample.load, ImageFile) or not isinstance(sample.load.content, Content):
        raise TypeError(f"{sample.name} is not inside a larger file")
    return sample.load.content.cell
