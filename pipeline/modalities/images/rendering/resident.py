"""The resident path: images and a whole view's parameters are on the device; a step gathers and renders.

Inside an epoch nothing is copied or awaited. The order of rows is sent before the epoch, and a thread
draws and sends the next view's parameters meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from pipeline.core.arrays import Rows
from pipeline.core.device import to_device
from pipeline.modalities.images.draw import ViewParameters
from pipeline.modalities.images.rendering.device import DeviceParameters, DeviceRenderer
from pipeline.modalities.images.rendering.pixel_ops import blend
from pipeline.views.pairing import Pairing, Singles


class ResidentViews:
    """Renders batches of whole views.

    Args:
        renderer: renderer with all images on the device.
        draw: function from a view to the parameters of all N samples.
        pairing: mixing partners.
    """

    def __init__(
        self, renderer: DeviceRenderer, draw: Callable[[int], ViewParameters], pairing: Pairing | Singles
    ) -> None:
        self._renderer, self._draw, self._pairing = renderer, draw, pairing
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="view-parameters")
        self._pending: dict[int, Future[DeviceParameters]] = {}

    def prefetch(self, view: int) -> None:
        """Start to draw a view's parameters in the thread."""
        if view not in self._pending:
            self._pending[view] = self._pool.submit(self._load, view)

    def batches(self, view: int, batches: Sequence[Rows]) -> Iterator[Tensor]:
        """Yield the pixels (B, S, S, channels) uint8 of each batch of rows."""
        self.prefetch(view)
        # Keep this view and the last one asked for; parameters of other views are freed.
        kept = {view, list(self._pending)[-1]}
        self._pending = {some: loading for some, loading in self._pending.items() if some in kept}
        parameters = self._pending[view].result()
        if not self._pairing.mixes:
            for rows in self._sent(batches):
                yield self._renderer.render_resident(rows, parameters[rows])
            return
        # With mixing, a batch of B rows is rendered together with its missing partners: n >= B samples.
        # The first B of them are the batch itself, so `own` is 0..B-1.
        partners = [self._pairing.partners(view, rows) for rows in batches]
        needed, places = zip(*map(_with_partners, batches, partners), strict=True)
        own = torch.arange(max(map(len, batches)), device=self._renderer.device)
        for rows, theirs, batch in zip(self._sent(needed), self._sent(places), batches, strict=True):
            # plain (n, S, S, C) -> mixed (B, S, S, C)
            plain = self._renderer.render_resident(rows, parameters[rows])
            yield self._mixed(plain, own[: len(batch)], theirs, parameters[rows[: len(batch)]])

    def _mixed(self, plain: Tensor, own: Tensor, partners: Tensor, parameters: DeviceParameters) -> Tensor:
        mixture = parameters.mixture
        return plain if mixture is None else blend(plain, own, partners, mixture.levels, mixture.boxes)

    def _load(self, view: int) -> DeviceParameters:
        return DeviceParameters.of(self._draw(view), self._renderer.device)

    def _sent(self, parts: Sequence[Rows]) -> Iterator[Tensor]:
        """Send arrays of rows in one transfer, and yield the part of each on the device."""
        if parts:
            whole = to_device(np.concatenate(parts), self._renderer.device)
            ends = np.cumsum([0, *map(len, parts)]).tolist()
            for start, stop in pairwise(ends):
                yield whole[start:stop]


def _with_partners(rows: Rows, partners: Rows) -> tuple[Rows, Rows]:
    """Return rows (n,) with the missing partners appended, and each partner's position (B,) in them."""
    # E.g. rows [7 3 9], partners [3 5 5]: 3 is at position 1 of the batch; 5 is missing and appended once.
    # Returned: [7 3 9 5] and [1 3 3]. Whole groups of four (`views/pairing.py`) bring all partners along.
    order = np.argsort(rows)
    place = np.minimum(np.searchsorted(rows, partners, sorter=order), len(rows) - 1)
    places = order[place]
    missing = rows[places] != partners
    extra, among = np.unique(partners[missing], return_inverse=True)
    places[missing] = len(rows) + among
    return np.concatenate([rows, extra]), places
