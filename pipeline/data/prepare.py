"""A source becomes a prepared dataset: decode every image once, pack, split, digest."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.packed import SPLITS, Moments, PackedImages, SplitWriter, write_description
from pipeline.data.sample import Sample, Source
from pipeline.data.splits import split_validation

_AHEAD_A_WORKER = 8


def prepare(
    source: Source,
    folder: Path,
    *,
    origin: str,
    validation: float,
    seed: int,
    workers: int,
    progress: Callable[[Sequence[Sample], str], Iterator[Sample]],
) -> dict[str, Any]:
    """Decode and pack a source into `folder`; `dataset.json`, written last, makes it complete.

    Args:
        source: the dataset as found.
        folder: where the prepared dataset goes.
        origin: what to call the source in the description.
        validation: share of the training samples that validates, 0 <= validation < 1.
        seed: of the validation split.
        workers: decoding threads.
        progress: wraps a split's samples to show how far it is.

    Returns:
        The description that was written.

    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").unlink(missing_ok=True)
    train, held = split_validation(source.train, fraction=validation, seed=seed)
    moments = Moments(source.channels)
    splits: dict[str, PackedImages] = {}
    for name, samples in zip(SPLITS, (train, held, source.test), strict=True):
        with SplitWriter(folder, name, source.channels, source.decoder) as writer:
            for sample, image in _decoded(samples, workers, progress(samples, name)):
                writer.add(sample, image)
                if name == "train":
                    moments.add(image)
            splits[name] = writer.finish()
    return write_description(
        folder,
        source=origin,
        classes=source.classes,
        channels=source.channels,
        decoder=source.decoder,
        moments=moments,
        splits=splits,
    )


def _decoded(
    samples: Sequence[Sample], workers: int, watched: Iterator[Sample]
) -> Iterator[tuple[Sample, NDArray[np.uint8]]]:
    """Decode on threads, a bounded number ahead, and yield in order."""
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[NDArray[np.uint8]]] = deque()
        upcoming = iter(samples)
        for sample in itertools.islice(upcoming, workers * _AHEAD_A_WORKER):
            pending.append(pool.submit(sample.load))
        try:
            for sample in watched:
                image = pending.popleft().result()
                following = next(upcoming, None)
                if following is not None:
                    pending.append(pool.submit(following.load))
                yield sample, image
        finally:
            for future in pending:
                future.cancel()
