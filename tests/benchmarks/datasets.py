"""Datasets for the benchmarks, prepared as the pipeline prepares them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.data.dataset import PreparedData
from pipeline.data.prepare import Preparation, prepare
from pipeline.data.sample import Source


def prepared(source: Source, folder: Path, *, origin: str) -> PreparedData:
    """Pack a source, without a validation split."""
    prepare(
        source,
        folder,
        Preparation(origin=origin),
        state=folder.with_name(f"{folder.name}.state"),
        workers=2,
        progress=lambda samples, _: iter(samples),
    )
    return PreparedData.open(folder)


def first_images(source: Source, train: int, test: int = 0) -> Source:
    """Return a source of the first images alone."""
    return replace(source, train=source.train[:train], test=source.test[:test])
