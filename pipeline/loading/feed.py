"""Deliver samples to a model: the single path for dump, training and evaluation.

A feed shows one split to one model. Views are drawn from a spec; without a spec, samples are un-augmented.
The modality's renderer offers one of three paths: all samples resident on the device, rendering on the
device, or threads that render ahead (`prefetch.py`). A row depends only on (spec, view, sample,
preprocessing) and, for mixed views, on the samples of its block. It never depends on batch, order, threads,
path or device.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.arrays import Rows
from pipeline.core.errors import counted
from pipeline.loading.prefetch import PrefetchQueue
from pipeline.modalities.preprocessing import Preprocessing, Renderer, Views
from pipeline.samples.packed import Split
from pipeline.views.pairing import pair_up


class Feed:
    """Rendered batches of one split for one model.

    Args:
        images: the split.
        spec: the views; None for un-augmented samples.
        preprocessing: the model's preprocessing.
        device: target device of batches.
        workers: number of rendering threads.
        blocks: (N,) block of each sample, for mixed views; None for blocks in the split's order.
        on_device: render on the device instead of the CPU, with the same bytes; None chooses.

    Raises:
        ModelError: the model does not fit these samples.
        ConfigError: the views do not fit these samples.

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
        """Choose the path by renderer."""
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
                used=renderer.used,
            )

    @property
    def path(self) -> str:
        """Description of the path, for progress output."""
        count = counted(len(self.images), "sample")
        if self._queue is None:
            size = self.images.size_bytes
            where = "resident" if self._resident is not None else "copied batch by batch"
            return f"{count}, {size / 1e6:,.0f} MB, {where} on {self.device}, rendered there"
        done = "decoded and rendered" if self.images.decodes_at_use else "rendered"
        threads = counted(self._workers, "thread")
        return f"{count}, {done} by {threads} ahead of {self.device}"

    @property
    def mixes(self) -> bool:
        """Whether samples are mixed with each other."""
        return self.pairing.mixes

    def seen_by(self, preprocessing: Preprocessing) -> Feed:
        """Return a feed of the same samples and views for a model with different preprocessing."""
        other = copy(self)
        other.preprocessing = preprocessing
        other._use(self._renderer.for_model(preprocessing))
        return other

    def pixels(self, view: int, rows: Rows) -> Tensor:
        """Render rows (B,) of one view to (B, S, S, channels) uint8, on the rendering device."""
        return self._renderer.render(view, rows)

    def shares(self, view: int, rows: Rows) -> tuple[Rows, NDArray[np.float64]] | None:
        """Return (partners (B,), own shares (B,)) for mixed views, else None."""
        shares = self._renderer.shares(view, rows)
        return None if shares is None else (self.pairing.partners(view, rows), shares)

    @property
    def checks_rendered(self) -> bool:
        """Whether a store's checksums are of the rendered samples; if not, they are of `evidence`."""
        return self._renderer.checks_rendered

    def evidence(self, view: int, rows: Rows) -> Sequence[NDArray[np.integer[Any]]]:
        """Return the integers that a view consists of, per row (B,), the same for every model."""
        return self._renderer.evidence(view, rows)

    def lengths(self, view: int, rows: Rows) -> NDArray[np.int64] | None:
        """Return the approximate lengths (B,) of padded samples, or None if none is padded."""
        return self._renderer.lengths(view, rows)

    def arrange(self, view: int, rows: Rows) -> Rows:
        """Return positions in `rows` (B,) in the cheapest order for batches.

        Groups that are mixed stand side by side, so that no partner is rendered twice. Padded samples
        stand beside those of similar length.
        """
        lengths = self.lengths(view, rows)
        if lengths is None or self.mixes:
            return self.pairing.arrange(view, rows)
        return np.argsort(lengths, kind="stable")

    def spread(self, view: int, count: int) -> Rows:
        """Return about `count` rows, spread evenly over the split; for mixed views whole groups."""
        return self.pairing.spread(view, count)

    def prefetch(self, view: int) -> None:
        """Prepare a view that is needed soon."""
        if self._resident is not None:
            self._resident.prefetch(view)

    def batches(self, view: int, batches: Sequence[Rows]) -> Iterator[Tensor]:
        """Yield each batch of rows as a model's input on the device, in order.

        Images are (B, channels, S, S) float32.
        """
        if self._resident is None:
            return self.stream((view, rows) for rows in batches)
        return map(self.preprocessing.normalise, self._resident.batches(view, batches))

    def stream(self, requests: Iterable[tuple[int, Rows]]) -> Iterator[Tensor]:
        """Yield a batch per (view, rows), like `batches`; the view may change between batches."""
        return map(self.preprocessing.normalise, self.rendered(requests))

    def rendered(self, requests: Iterable[tuple[int, Rows]]) -> Generator[Tensor, None, None]:
        """Yield the rendered samples (B, *shape) per (view, rows), on the device.

        Padding beyond a batch's longest sample is left out. Each tensor is valid until the next is
        requested. A consumer that may stop early closes it, which ends the rendering ahead.
        """
        if self._queue is None:
            return (self.pixels(view, rows) for view, rows in requests)
        return self._queue.stream(requests)


def consecutive(count: int, batch_size: int) -> list[Rows]:
    """Return 0..count-1 as consecutive batches; the last may be smaller."""
    return [np.arange(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
