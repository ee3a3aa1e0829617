"""Images as a modality: where the rest of the library finds what is theirs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.errors import DataError
from pipeline.modalities.images.encoded import open_encoded
from pipeline.modalities.images.models.cifar import Literature
from pipeline.modalities.images.models.timm import Timm
from pipeline.modalities.images.models.torchvision import Torchvision
from pipeline.modalities.images.preprocessing import GivenPreprocessing, Preprocessing
from pipeline.modalities.images.spec import ViewSpec
from pipeline.samples.index import Form
from pipeline.samples.packed import Split, open_packed


class Images:
    """Pixels (H, W, C) uint8, 1 or 3 channels."""

    name = "images"
    families = (Literature(), Torchvision(), Timm())

    def open_split(self, folder: Path, name: str, form: Form) -> Split:
        """Open one split, kept as pixels or as files."""
        return open_packed(folder, name, form) if form.packs else open_encoded(folder, name, form)

    def views(self, plain: Mapping[str, Any]) -> ViewSpec:
        """Return the views that a canonical form describes."""
        return ViewSpec.from_canonical(plain)

    def preprocessing(self, plain: Mapping[str, Any]) -> Preprocessing:
        """Return the preprocessing that plain values describe."""
        return Preprocessing.parse(plain)

    def given_preprocessing(self, plain: Mapping[str, Any]) -> GivenPreprocessing:
        """Return what a user says of a preprocessing."""
        return GivenPreprocessing(**plain)

    def fresh_preprocessing(
        self, samples: Split, known: Mapping[str, Any], *, size: int | None, channels: int | None
    ) -> Preprocessing:
        """Return how a model without weights wants images: normalised by their own mean and deviation."""
        channels = channels or samples.channels
        return Preprocessing(
            size=size or _common_side(samples),
            mean=_as_channels(known["mean"], channels),
            std=_as_channels(known["std"], channels),
        )


def _as_channels(moments: Sequence[float], channels: int) -> tuple[float, ...]:
    """Return moments of the images as those of what a network of one or three channels sees of them."""
    if len(moments) == channels:
        return tuple(moments)
    return (statistics.mean(moments),) * channels


def _common_side(samples: Split) -> int:
    shapes = samples.shapes
    if (shapes != shapes[0, 0]).any():
        low, high = shapes.min(0).tolist(), shapes.max(0).tolist()
        raise DataError(
            f"the images are {low[0]}x{low[1]} to {high[0]}x{high[1]} pixels and data.image_size is not "
            "set; expected the side of the models' square input; set it, for example to 64"
        )
    return int(shapes[0, 0])


IMAGES = Images()
