"""Datasets for the benchmarks: prepared by the pipeline, or synthetic in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.core.hashing import content_digest, sample_key
from pipeline.modalities.images.form import image_form
from pipeline.modalities.prepared import PreparedData
from pipeline.samples.packed import PackedSplit
from pipeline.samples.samples import Names, Source
from tests.pipeline.preparing import asking, prepare


def prepared(source: Source, folder: Path, *, origin: str) -> PreparedData:
    """Pack a source, without a validation split."""
    prepare(
        source,
        folder,
        asking(origin=origin),
        state=folder.with_name(f"{folder.name}.state"),
        workers=2,
        progress=lambda samples, _: iter(samples),
    )
    return PreparedData.open(folder)


def first_images(source: Source, train: int, test: int = 0) -> Source:
    """Return a source of only the first images."""
    return replace(source, train=source.train[:train], test=source.test[:test])


def in_memory(pixels: NDArray[np.uint8], labels: NDArray[np.int64], name: str = "train") -> PackedSplit:
    """Return images (N, H, W, C) uint8 with labels (N,) as a split, named by split and row."""
    count, height, width, channels = pixels.shape
    names = [f"{name}/{row}" for row in range(count)]
    return PackedSplit(
        values=pixels.ravel(),
        form=image_form(channels),
        offsets=np.arange(count) * (height * width * channels),
        shapes=np.tile(np.array([[height, width]], np.int32), (count, 1)),
        labels=labels,
        keys=np.array([sample_key(some) for some in names], np.uint64),
        digests=np.array([content_digest(*one) for one in zip(pixels, labels, strict=True)], np.uint64),
        names=Names.of(names),
    )


def patterned(count: int, side: int, *, classes: int, name: str = "train") -> PackedSplit:
    """Return learnable colour images: noise over a pattern per class, the same pattern in every split."""
    coarse = np.random.default_rng(0).integers(0, 128, (classes, -(-side // 4), -(-side // 4), 3), np.uint8)
    patterns = coarse.repeat(4, 1).repeat(4, 2)[:, :side, :side]
    labels = np.arange(count) % classes
    pixels = np.random.default_rng(list(name.encode())).integers(0, 256, (count, side, side, 3), np.uint8)
    pixels //= 2
    pixels += patterns[labels]
    return in_memory(pixels, labels, name)


def made_up(train: int, side: int, *, classes: int, test: int = 0) -> PreparedData:
    """Return a dataset of patterned images, without a validation split."""
    images = patterned(train, side, classes=classes)
    return PreparedData(
        classes=tuple(f"pattern {label}" for label in range(classes)),
        statistics={"mean": (0.5,) * 3, "std": (0.2,) * 3},
        train=images,
        validation=images.subset(np.arange(0)),
        test=patterned(test, side, classes=classes, name="test"),
    )
