"""Images to a model: the one way pixels reach it, in dump, training and evaluation.

A feed looks at one split with one model's eyes. Views are drawn from a spec, or are the un-augmented
centre crop where there is none. Batches come by one of two paths: from a device that holds all images
(`resident.py`), or rendered ahead of need by threads (`staged.py`). What a row's pixels are depends on
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

from pipeline.core.errors import ConfigError, ModelError
from pipeline.core.random import Draws
from pipeline.loading.prefetch import Ring
from pipeline.modalities.images.draw import ViewParameters, centre_parameters, view_parameters
from pipeline.modalities.images.mixing import draw_mixture
from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.modalities.images.rendering.device import DeviceRenderer
from pipeline.modalities.images.rendering.pixel_ops import mix
from pipeline.modalities.images.rendering.render import Renderer, make_renderer
from pipeline.modalities.images.rendering.resident import ResidentViews
from pipeline.modalities.images.spec import ViewSpec
from pipeline.samples.packed import Images
from pipeline.views.pairing import GROUP, Pairing

Rows = NDArray[np.int64]


class Feed:
    """Rendered batches of one split for one model.

    Args:
        images: the split.
        spec: which views there are; None for the un-augmented image.
        preprocessing: the model's eyes.
        device: where batches go.
        workers: rendering threads.
        blocks: (N,) where views mix, which block each image lies in; None for blocks in the split's order.
        on_device: render on the device instead of the CPU, the same pixels; None where it suits.

    Raises:
        ModelError: the model takes neither one channel nor three.
        ConfigError: views that these images cannot have.
    """

    def __init__(
        self,
        images: Images,
        spec: ViewSpec | None,
        preprocessing: Preprocessing,
        *,
        device: torch.device,
        workers: int = 1,
        blocks: Rows | None = None,
        on_device: bool | None = None,
    ) -> None:
        _require_channels(preprocessing)
        _require_room(images, spec)
        self.images = images
        self.spec = spec
        self.preprocessing = preprocessing
        self.device = device
        self._workers = workers
        self.pairing = Pairing(spec.seed, images.keys, blocks) if spec and spec.mixes else None
        size, interpolation = preprocessing.size, preprocessing.interpolation
        self._use(make_renderer(images, size, device, on_device=on_device, interpolation=interpolation))

    def _use(self, renderer: Renderer) -> None:
        """Choose the path from a renderer to batches: resident, or staged."""
        self._renderer = renderer
        self._ring: Ring | None = None
        self._resident: ResidentViews | None = None
        if not isinstance(renderer, DeviceRenderer):
            size = self.preprocessing.size
            shape = size, size, self.images.channels
            self._ring = Ring(lambda *asked: self.pixels(*asked), shape, self.device, workers=self._workers)
        elif renderer.is_resident:
            every = np.arange(len(self.images))
            self._resident = ResidentViews(
                renderer, lambda view: self.parameters(view, every), self.pairing
            )

    @property
    def path(self) -> str:
        """Which way batches come, for people."""
        count = len(self.images)
        if self._ring is None:
            size = self.images.size_bytes
            where = "resident" if self._resident is not None else "copied batch by batch"
            return f"{count:,} images, {size / 1e6:,.0f} MB, {where} on {self.device}, rendered there"
        done = "decoded and rendered" if self.images.decodes_at_use else "rendered"
        return f"{count:,} images, staged for {self.device}, {done} ahead by {self._workers} threads"

    def seen_by(self, preprocessing: Preprocessing) -> Feed:
        """Return a feed of the same images and views for a model with other eyes."""
        _require_channels(preprocessing)
        other = copy(self)
        other.preprocessing = preprocessing
        other._use(self._renderer.of_size(preprocessing.size, preprocessing.interpolation))
        return other

    def parameters(self, view: int, rows: Rows) -> ViewParameters:
        """Return what one view does to these rows (B,)."""
        shapes = self.images.shapes[rows]
        if self.spec is None:
            return centre_parameters(shapes, self.preprocessing.crop_fraction)
        return view_parameters(self.spec, view=view, keys=self.images.keys[rows], shapes=shapes)

    def pixels(self, view: int, rows: Rows) -> Tensor:
        """Render these rows (B,) of one view: (B, S, S, channels) uint8 where rendering is done."""
        if self.pairing is None:
            return self._renderer.render(rows, self.parameters(view, rows))
        both = np.concatenate([rows, self.pairing.partners(view, rows)])
        needed, places = np.unique(both, return_inverse=True)
        parameters = self.parameters(view, needed)
        plain = self._renderer.render(needed, parameters)
        own, partners = np.split(places, 2)
        mixture = parameters[own].mixture
        return plain if mixture is None else mix(plain, own, partners, mixture)

    def shares(self, view: int, rows: Rows) -> tuple[Rows, NDArray[np.float64]] | None:
        """Return where views mix the partner of each row (B,), and how much of each row is in its image."""
        if self.pairing is None or self.spec is None:
            return None
        mixture = draw_mixture(self.spec, Draws(self.spec.seed, view, self.images.keys[rows]))
        return None if mixture is None else (self.pairing.partners(view, rows), mixture.shares)

    def arrange(self, view: int, rows: Rows) -> Rows:
        """Return positions in `rows` (B,) such that no image is rendered twice for its partner's sake."""
        return np.arange(len(rows)) if self.pairing is None else self.pairing.arrange(view, rows)

    def spread(self, view: int, count: int) -> Rows:
        """Return about so many rows, spread evenly over the split; where views mix, whole groups."""
        if self.pairing is not None:
            groups, _ = self.pairing.groups(view)
            if len(groups):
                chosen = np.linspace(0, len(groups) - 1, max(1, min(len(groups), count // GROUP)))
                return groups[chosen.astype(np.int64)].ravel()
        return np.linspace(0, len(self.images) - 1, count).astype(np.int64)

    def prefetch(self, view: int) -> None:
        """Prepare for a view that will be asked for soon."""
        if self._resident is not None:
            self._resident.prefetch(view)

    def batches(self, view: int, batches: Sequence[Rows]) -> Iterator[Tensor]:
        """Yield each batch of rows as (B, channels, S, S) float32 on the device, in order."""
        if self._resident is None:
            return self.stream((view, rows) for rows in batches)
        return map(self.preprocessing.normalise, self._resident.batches(view, batches))

    def stream(self, requests: Iterable[tuple[int, Rows]]) -> Iterator[Tensor]:
        """Yield a batch, as `batches` does, for each (view, rows); views may change on the way."""
        return map(self.preprocessing.normalise, self.rendered(requests))

    def rendered(self, requests: Iterable[tuple[int, Rows]]) -> Iterator[Tensor]:
        """Yield for each (view, rows) the pixels (B, S, S, channels) uint8 on the device.

        They last until the next ones are asked for.
        """
        if self._ring is None:
            return itertools.starmap(self.pixels, requests)
        return self._ring.stream(requests)


def consecutive(count: int, batch_size: int) -> list[Rows]:
    """Cut 0..count-1 into batches in order; the last may be smaller."""
    return [np.arange(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]


def _require_channels(preprocessing: Preprocessing) -> None:
    if preprocessing.channels not in (1, 3):
        raise ModelError(
            f"the model takes images of {preprocessing.channels} channels; expected 1 (grey) or 3 "
            "(colour); choose another model"
        )


def _require_room(images: Images, spec: ViewSpec | None) -> None:
    """Refuse shifts that can leave nothing of an image."""
    if spec is None or spec.pad_crop is None or not len(images):
        return
    sides, padding = images.shapes.min(1), spec.pad_crop.padding
    smallest = int(sides.argmin())
    if padding >= sides[smallest]:
        height, width = images.shapes[smallest].tolist()
        raise ConfigError(
            f"pad_crop.padding is {padding}, and sample {images.names[smallest]!r} has {height}x{width} "
            f"pixels, so that a crop could miss it; expected less than its shorter side; set it to at most "
            f"{sides[smallest] - 1}, or use random_resized_crop"
        )
