"""What `params.yaml` may say of the dataset: where it comes from, how it is kept, and how it is split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray

from pipeline.core.errors import ConfigError
from pipeline.modalities.images.damage import OnDamage
from pipeline.modalities.images.decoding import MAX_PIXELS
from pipeline.modalities.images.intake import ImageOptions
from pipeline.modalities.prepared import PreparedData
from pipeline.samples.description import DECISIVE, REFUSING
from pipeline.samples.index import Keep
from pipeline.samples.labels import keep_labels
from pipeline.samples.prepare import Preparation

Seed = Annotated[int, pydantic.Field(ge=0, lt=1 << 32)]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataParams:
    """The dataset.

    Args:
        source: fashion-mnist-10k, npz:PATH, folder:PATH or torchvision:NAME.
        watch: file or folder whose change makes DVC import the data again.
        root: folder for torchvision's downloads.
        image_size: input side of models trained here, in pixels; None takes the images' own.
        channels: 1 or 3, how image files are decoded; arrays keep their own.
        short_side: largest shorter side in pixels, larger images are shrunk to it; None leaves all alone.
        keep: pixels, decoded once and packed, or encoded: files stay and are decoded at use.
        max_pixels: image files of more are refused before they are decoded, at least 1.
        damaged: warn, JPEG files with corrupt data are read and named, or refuse.
        validation: share of the training images that chooses epochs, at least 0 and below 1; not used
            where the source has a validation split.
        labels_per_class: how many labels of each class students are given, at least 1; None for all.
        seed: of the validation split, and of which labels are given.

    """

    source: str = "fashion-mnist-10k"
    watch: str = ""
    root: str = "data/raw"
    image_size: int | None = None
    channels: Literal[1, 3] = 3
    short_side: int | None = None
    keep: Keep = "pixels"
    max_pixels: int = MAX_PIXELS
    damaged: OnDamage = "warn"
    validation: float = 0.1
    labels_per_class: int | None = None
    seed: Seed = 0

    def __post_init__(self) -> None:
        if self.image_size is not None and not 8 <= self.image_size <= 1024:
            raise ConfigError(f"image_size is {self.image_size}; expected 8 to 1024 pixels")
        if self.max_pixels < 1:
            raise ConfigError(f"max_pixels is {self.max_pixels}; expected at least 1")
        if not 0 <= self.validation < 1:
            raise ConfigError(f"validation is {self.validation}; expected at least 0 and below 1")
        if self.labels_per_class is not None and self.labels_per_class < 1:
            raise ConfigError(
                f"labels_per_class is {self.labels_per_class}; expected at least 1, or null for all"
            )
        if self.short_side is not None and not 16 <= self.short_side <= 4096:
            raise ConfigError(f"short_side is {self.short_side}; expected 16 to 4096 pixels, or null")
        if self.keep == "encoded" and not self.source.startswith("folder:"):
            raise ConfigError(
                f"keep is encoded and source {self.source!r}; expected folder:PATH, whose files can stay "
                "where they are; set keep to pixels"
            )

    def told_labels(self, data: PreparedData) -> NDArray[np.int64]:
        """Return the labels (N,) of the training split that students are given, -1 for none."""
        if self.labels_per_class is None:
            return data.train.labels
        return keep_labels(data.train, data.classes, per_class=self.labels_per_class, seed=self.seed)

    def preparation(self) -> Preparation:
        """Return what is to be made of the source."""
        return Preparation(
            origin=self.source, validation=self.validation, seed=self.seed, made_with=self.asked()
        )

    def image_options(self) -> ImageOptions:
        """Return how images are to be kept."""
        return ImageOptions(
            keep=self.keep,
            short_side=self.short_side,
            max_pixels=self.max_pixels,
            damaged=self.damaged,
        )

    def decisive(self) -> dict[str, Any]:
        """Return what decides the content of prepared data."""
        return {name: getattr(self, name) for name in DECISIVE}

    def asked(self) -> dict[str, Any]:
        """Return what prepared data is compared with: what decides its content, or refuses some of it."""
        return {**self.decisive(), **{name: getattr(self, name) for name in REFUSING}}
