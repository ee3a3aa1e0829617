"""Prepare images as the command does, with what is asked of split and images in one object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.modalities.images.intake import ImageIntake, ImageOptions
from pipeline.samples import prepare as samples
from pipeline.samples.samples import Source

OPTIONS = "keep", "short_side", "max_pixels", "damaged"


@dataclass(frozen=True)
class Preparation:
    origin: str
    validation: float = 0.0
    seed: int = 0
    made_with: Mapping[str, Any] = field(default_factory=dict)
    options: ImageOptions = field(default_factory=ImageOptions)


def asking(**given: Any) -> Preparation:
    """Return what is asked, by the names of `data` in params.yaml."""
    options = ImageOptions(**{name: given.pop(name) for name in OPTIONS if name in given})
    return Preparation(options=options, **given)


def prepare(source: Source, folder: Path, asked: Preparation, **given: Any) -> dict[str, Any]:
    split = samples.Preparation(
        origin=asked.origin, validation=asked.validation, seed=asked.seed, made_with=asked.made_with
    )
    return samples.prepare(source, folder, split, ImageIntake(source, folder, asked.options), **given)
