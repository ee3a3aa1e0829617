"""Images to a model: the one way pixels reach it, in dump, training and evaluation.

A feed looks at one split with one model's eyes. Views are drawn from a spec, or are the un-augmented
centre crop where there is none; batches are rendered ahead of need on threads. What a row's pixels are
depends on (spec, view, sample, preprocessing) alone, never on batch, order or threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.packed import PackedImages
from pipeline.errors import ModelError
from pipeline.models.preprocessing import Preprocessing
from pipeline.views.parameters import ViewParameters, centre_parameters, view_parameters
from pipeline.views.render import render
from pipeline.views.spec import ViewSpec

Rows = NDArray[np.int64]


class Feed:
    """Rendered batches of one split for one model.

    Args:
        images: the split.
        spec: which views there are; None for the un-augmented image.
        preprocessing: the model's eyes.
        device: where batches go.
        workers: rendering threads.
        ahead: batches rendered before they are asked for.

    Raises:
        ModelError: the data has more channels than the model takes.
    """

    def __init__(
        self,
        images: PackedImages,
        spec: ViewSpec | None,
        preprocessing: Preprocessing,
        *,
        device: torch.device,
        workers: int = 1,
        ahead: int = 2,
    ) -> None:
        if images.channels > preprocessing.channels:
            raise ModelError(
                f"the model takes images of {preprocessing.channels} channel, the data has "
                f"{images.channels}; expected no more; set data.channels to {preprocessing.channels}, or "
                "choose another model"
            )
        self.images = images
        self.spec = spec
        self.preprocessing = preprocessing
        self.device = device
        self._workers, self._ahead = workers, ahead

    def parameters(self, view: int, rows: Rows) -> ViewParameters:
        """Return what one view does to these rows (B,)."""
        shapes = self.images.shapes[rows]
        if self.spec is None:
            return centre_parameters(shapes, self.preprocessing.crop_fraction)
        return view_parameters(self.spec, view=view, keys=self.images.keys[rows], shapes=shapes)

    def pixels(self, view: int, rows: Rows) -> Tensor:
        """Render these rows (B,) of one view: (B, S, S, channels) uint8 on the CPU."""
        return render(self.images, rows, self.parameters(view, rows), size=self.preprocessing.size)

    def batches(self, view: int, batches: Iterable[Rows]) -> Iterator[Tensor]:
        """Yield each batch of rows as (B, channels, S, S) float32 on the device, in order."""
        return self.stream((view, rows) for rows in batches)

    def stream(self, requests: Iterable[tuple[int, Rows]]) -> Iterator[Tensor]:
        """Yield a batch, as `batches` does, for each (view, rows); views may change on the way."""
        with ThreadPoolExecutor(self._workers) as pool:
            pending: deque[Future[Tensor]] = deque()
            upcoming = iter(requests)

            def submit() -> None:
                request = next(upcoming, None)
                if request is not None:
                    pending.append(pool.submit(self.pixels, *request))

            for _ in range(self._workers + self._ahead):
                submit()
            try:
                while pending:
                    pixels = pending.popleft().result()
                    submit()
                    yield self.preprocessing.normalise(pixels.to(self.device))
            finally:
                for future in pending:
                    future.cancel()


def consecutive(count: int, batch_size: int) -> list[Rows]:
    """Cut 0..count-1 into batches in order; the last may be smaller."""
    return [np.arange(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
