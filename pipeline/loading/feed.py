"""Samples to a model: the one way they reach it, in dump, training and evaluation.

A feed shows one split to one model. Views are drawn from a spec; without one, samples are un-augmented.
Batches come by one of three paths, whichever the modality's renderer offers: from a device that holds all
samples, rendered on the device, or rendered ahead of need by threads (`prefetch.py`). A row depends on
(spec, view, sample, preprocessing) alone, and where views mix on who is in the sample's block; never on
batch, order, threads, path or device.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from copy import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.arrays import Rows
from pipeline.loading.prefetch import PrefetchQueue
from pipeline.modalities.preprocessing import Preprocessing, Renderer, Views
from pipeline.samples.packed import Split
from pipeline.views.pairing import pair_up


class Feed:
    """Rendered batches of one split for one model.

    Args:
        images: the split.
        spec: which views there are; None for the un-augmented samples.
        preprocessing: the model's.
        device: where batches go.
        workers: rendering threads.
        blocks: (N,) where views mix, which block each sample lies in; None for blocks in the split's order.
        on_device: render on the device instead of the CPU, the same bytes; None where it suits.

    Raises:
        ModelError: a model that these samples are nothing for.
        ConfigError: views that these samples cannot have.

    Example:
        >>> from pathlib import Path
        >>> import numpy as np, torch
        >>> from pipeline import Feed, PreparedData, ViewSpec
        >>> from pipeline.modalities.images.preprocessing import Preprocessing
        >>> data = PreparedData.open(Path("data/prepared"))
        >>> preprocessing = Preprocessing(size=8, **data.statistics)
        >>> feed = Feed(data.train, ViewSpec(flip="random"), preprocessing, device=torch.device("cpu"))
        >>> [images.shape for images in feed.batches(view=0, batches=[np.arange(4), np.arange(4, 6)])]
        [torch.Size([4, 1, 8, 8]), torch.Size([2, 1, 8, 8])]
    """

    def __init__(
        self,
        images: Split,
        spec: Views | None,
        preprocessing: Preprocessing,
        *,
        device: torch.device,
        workers: int = 1,
        blocks: Rows | None = None,
        on_device: bool | None = None,
    ) -> None:
        self.images = images
        self.spec = spec
        self.preprocessing = preprocessing
        self.device = device
        self._workers = workers
        seed, mixes = (0, False) if spec is None else (spec.seed, spec.mixes)
        self.pairing = pair_up(images.keys, seed, mixes=mixes, blocks=blocks)
        self._use(preprocessing.renderer(images, spec, self.pairing, device=device, on_device=on_device))

    def _use(self, renderer: Renderer) -> None:
        """Choose the path from a renderer to batches."""
        self._renderer = renderer
        self._resident = renderer.resident()
        self._queue: PrefetchQueue | None = None
        if not renderer.on_device:
            self._queue = PrefetchQueue(
                lambda *asked: self.pixels(*asked),
                renderer.shape,
                self.device,
                workers=self._workers,
                dtype=renderer.dtype,
            )

    @property
    def path(self) -> str:
        """Which way batches come, for people."""
        count = len(self.images)
        if self._queue is None:
            size = self.images.size_bytes
            where = "resident" if self._resident is not None else "copied batch by batch"
            return f"{count:,} images, {size / 1e6:,.0f} MB, {where} on {self.device}, rendered there"
        done = "decoded and rendered" if self.images.decodes_at_use else "rendered"
        return f"{count:,} images, staged for {self.device}, {done} ahead by {self._workers} threads"

    @property
    def mixes(self) -> bool:
        """Whether samples are mixed with each other."""
        return self.pairing.mixes

    def seen_by(self, preprocessing: Preprocessing) -> Feed:
        """Return a feed of the same samples and views for a model of another preprocessing."""
        other = copy(self)
        other.preprocessing = preprocessing
        other._use(self._renderer.for_model(preprocessing))
        return other

    def pixels(self, view: int, rows: Rows) -> Tensor:
        """Render these rows (B,) of one view: (B, S, S, channels) uint8 where rendering is done."""
        return self._renderer.render(view, rows)

    def shares(self, view: int, rows: Rows) -> tuple[Rows, NDArray[np.float64]] | None:
        """Return where views mix the partner of each row (B,), and how much of each row is its own."""
        shares = self._renderer.shares(view, rows)
        return None if shares is None else (self.pairing.partners(view, rows), shares)

    def arrange(self, view: int, rows: Rows) -> Rows:
        """Return positions in `rows` (B,) such that no sample is rendered twice for its partner's sake."""
        return self.pairing.arrange(view, rows)

    def spread(self, view: int, count: int) -> Rows:
        """Return about so many rows, spread evenly over the split; where views mix, whole groups."""
        return self.pairing.spread(view, count)

    def prefetch(self, view: int) -> None:
        """Prepare for a view that will be asked for soon."""
        if self._resident is not None:
            self._resident.prefetch(view)

    def batches(self, view: int, batches: Sequence[Rows]) -> Iterator[Tensor]:
        """Yield each batch of rows as a model's input on the device, in order.

        Images come as (B, channels, S, S) float32.
        """
        if self._resident is None:
            return self.stream((view, rows) for rows in batches)
        return map(self.preprocessing.normalise, self._resident.batches(view, batches))

    def stream(self, requests: Iterable[tuple[int, Rows]]) -> Iterator[Tensor]:
        """Yield a batch, as `batches` does, for each (view, rows); views may change on the way."""
        return map(self.preprocessing.normalise, self.rendered(requests))

    def rendered(self, requests: Iterable[tuple[int, Rows]]) -> Iterator[Tensor]:
        """Yield for each (view, rows) the rendered samples (B, *shape) on the device.

        They last until the next ones are asked for.
        """
        if self._queue is None:
            return itertools.starmap(self.pixels, requests)
        return self._queue.stream(requests)


def consecutive(count: int, batch_size: int) -> list[Rows]:
    """Cut 0..count-1 into batches in order; the last may be smaller."""
    return [np.arange(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
