"""Datasets for the benchmarks, prepared as the pipeline prepares them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.data.packed import PreparedData
from pipeline.data.prepare import prepare
from pipeline.data.sample import Source


def prepared(source: Source, folder: Path, *, origin: str) -> PreparedData:
    """Pack a source, without a validation split."""
    prepare(
        source,
        folder,
        origin=origin,
        validation=0.0,
        seed=0,
        workers=2,
        progress=lambda samples, _: iter(samples),
    )
    return PreparedData.open(folder)


def first_images(source: Source, train: int, test: int = 0) -> Source:
    """Return a source of the first images alone."""
    return replace(source, train=source.train[:train], test=source.test[:test])
