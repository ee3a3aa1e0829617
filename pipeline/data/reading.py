"""Samples of a source to entries of a draft, on threads and in order."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.data.decoding import image_shape, read_file
from pipeline.data.draft import IDENTITY, ROW, Entry, Spare
from pipeline.data.form import Form
from pipeline.data.resizing import shrink, shrunk_shape
from pipeline.data.sample import Sample
from pipeline.digests import content_digest, encoded_digest, sample_key
from pipeline.errors import DataError

T = TypeVar("T")
R = TypeVar("R")
_AHEAD_A_WORKER = 4
_NO_FILE = -1, -1


def in_order(
    work: Callable[[T], R], items: Sequence[T], workers: int, watched: Iterator[object]
) -> Iterator[R]:
    """Do work on threads, a bounded number of items ahead, and yield the results in order.

    Args:
        work: what is done, on any thread.
        items: to what.
        workers: threads.
        watched: yields once an item, and shows how far it is.
    """
    with ThreadPoolExecutor(workers) as pool:
        upcoming = iter(items)
        first = itertools.islice(upcoming, workers * _AHEAD_A_WORKER)
        pending: deque[Future[R]] = deque(pool.submit(work, item) for item in first)
        try:
            for _ in watched:
                result = pending.popleft().result()
                pending.extend(pool.submit(work, item) for item in itertools.islice(upcoming, 1))
                yield result
        finally:
            for future in pending:
                future.cancel()


def read_sample(sample: Sample, form: Form, spare: Spare) -> Entry | DataError:
    """Return what a draft keeps of a sample, from a spare draft if it is there.

    An image that is not readable is returned as the error that says so: there may be more of them.
    """
    # Before it is read: if the file is replaced meanwhile, a later run sees another one.
    identity = identity_of(sample)
    known = spare.find(identity)
    if known is not None:
        return known
    try:
        return (
            _scanned(sample, form, identity) if form.keep == "encoded" else _decoded(sample, form, identity)
        )
    except DataError as error:
        return error


def read_pixels(sample: Sample, form: Form) -> NDArray[np.uint8]:
    """Decode an image, and shrink it as the form says: (H, W, C) uint8."""
    return shrink(sample.load(), form.short_side)


def identity_of(sample: Sample) -> tuple[int, ...]:
    """Return the values of `IDENTITY` of a sample."""
    return sample_key(sample.name), sample.label, *_stamp(sample.file)


def count_unchanged(rows: NDArray[np.void], samples: Sequence[Sample], workers: int) -> int:
    """Return how many of a draft's rows, from the first on, are still what the source has there.

    Args:
        rows: (n,) of dtype `ROW`.
        samples: of the split.
        workers: threads that look at files.
    """
    count = min(len(rows), len(samples))
    if not count:
        return 0
    with ThreadPoolExecutor(workers) as pool:
        parts = pool.map(lambda part: _identities(samples, part), np.array_split(np.arange(count), workers))
        now = np.concatenate(list(parts))
    same = now["file_bytes"] >= 0
    for name, _ in IDENTITY:
        same &= rows[name][:count] == now[name]
    return count if same.all() else int(same.argmin())


def _identities(samples: Sequence[Sample], rows: NDArray[np.int64]) -> NDArray[np.void]:
    return np.fromiter((identity_of(samples[row]) for row in rows.tolist()), np.dtype(IDENTITY), len(rows))


def _stamp(file: str | None) -> tuple[int, int]:
    """Return a file's size and time of change; -1 where there is none."""
    if file is None:
        return _NO_FILE
    try:
        status = os.stat(file)
    except OSError:
        return _NO_FILE
    return status.st_size, status.st_mtime_ns


def _decoded(sample: Sample, form: Form, identity: tuple[int, ...]) -> Entry:
    pixels = read_pixels(sample, form)
    row = (*identity, *pixels.shape[:2], content_digest(pixels, sample.label))
    return Entry.of(np.array(row, ROW), pixels)


def _scanned(sample: Sample, form: Form, identity: tuple[int, ...]) -> Entry:
    """Look at a file without decoding it, unless its header does not tell its shape."""
    path = Path(sample.file or "")
    content = read_file(path)
    shape = shrunk_shape(*image_shape(content, form.channels, path), form.short_side)
    digest = encoded_digest(content, (*shape, form.channels), sample.label)
    return Entry.of(np.array((*identity, *shape, digest), ROW), None)
