"""Rendering: packed images and a view's parameters to pixels, on the CPU or on any device, the same bytes.

uint8 in, uint8 out. What a sample's pixels are depends on its source, its parameters and the size alone,
never on its batch, on threads or on the device. Mixing needs two samples: it comes after (`regions.mix`).
"""

from __future__ import annotations

from copy import copy
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.packed import PackedImages
from pipeline.errors import ConfigError
from pipeline.rendering import crops, resample
from pipeline.rendering.regions import erase
from pipeline.rendering.steps import carry_out, carry_out_masked, to_device
from pipeline.views.parameters import ViewParameters

Rows = NDArray[np.int64]


def render(images: PackedImages, rows: Rows, parameters: ViewParameters, *, size: int) -> Tensor:
    """Render one view of some samples on the CPU, not yet mixed.

    Args:
        images: where the source pixels are.
        rows: (B,) positions in `images`.
        parameters: of these rows, in this order.
        size: height and width of the result in pixels.

    Returns:
        (B, size, size, channels) uint8 on the CPU.

    """
    pixels = carry_out(crops.crop_and_resize(images, rows, parameters, size), parameters.steps)
    return pixels if parameters.erasure is None else erase(pixels, parameters.erasure)


class Renderer(Protocol):
    """Renders one split's images in one size."""

    def render(self, rows: Rows, parameters: ViewParameters) -> Tensor:
        """Return the pixels (B, S, S, channels) uint8 of these rows (B,), not yet mixed."""

    def of_size(self, size: int) -> Renderer:
        """Return what renders the same images in another size."""


class CpuRenderer:
    """Renders on the CPU, sample by sample.

    Args:
        images: the split.
        size: height and width of the result in pixels.
    """

    def __init__(self, images: PackedImages, size: int) -> None:
        self._images, self._size = images, size

    def render(self, rows: Rows, parameters: ViewParameters) -> Tensor:
        """Return the pixels (B, S, S, channels) uint8 of these rows (B,), not yet mixed."""
        return render(self._images, rows, parameters, size=self._size)

    def of_size(self, size: int) -> CpuRenderer:
        """Return what renders the same images in another size."""
        return CpuRenderer(self._images, size)


class DeviceRenderer:
    """Renders batches on a device. Images of one size lie there; others are copied for each batch.

    Nothing waits for the device, and shapes depend on the split, the size and the spec alone.

    Args:
        images: the split.
        size: height and width of the result in pixels.
        device: where pixels come out.

    Raises:
        ConfigError: images so much larger than the result that sums would not be exact.
    """

    def __init__(self, images: PackedImages, size: int, device: torch.device) -> None:
        self._images, self._device = images, device
        tallest, widest = images.shapes.max(0).tolist()
        self._shape = tallest, widest, images.channels
        self._size = self._exact(size)
        self._resident = None
        if images.uniform is not None:
            pixels, self._places = images.uniform
            # A copy: the source is a read-only map.
            self._resident = torch.from_numpy(np.array(pixels)).to(device)

    def render(self, rows: Rows, parameters: ViewParameters) -> Tensor:
        """Return the pixels (B, S, S, channels) uint8 of these rows (B,), not yet mixed."""
        sources = self._sources(rows)
        boxes = to_device(torch.from_numpy(parameters.boxes), self._device).long()
        flips = to_device(torch.from_numpy(parameters.flips), self._device)
        if (parameters.boxes[:, 2:] == self._size).all():
            pixels = resample.cut(sources, boxes, flips, self._size)
        else:
            pixels = resample.crop_and_resize(sources, boxes, flips, self._size)
        pixels = carry_out_masked(pixels, parameters.steps)
        return pixels if parameters.erasure is None else erase(pixels, parameters.erasure)

    def of_size(self, size: int) -> DeviceRenderer:
        """Return what renders the same images, which lie on the device once, in another size."""
        other = copy(self)
        other._size = self._exact(size)
        return other

    def _exact(self, size: int) -> int:
        tallest, widest, _ = self._shape
        if not resample.is_exact(max(tallest, widest), size):
            raise ConfigError(
                f"images of {tallest}x{widest} pixels are rendered at {size}; on a device, expected sides "
                f"of at most {_largest_source(size)}; use --render cpu"
            )
        return size

    def _sources(self, rows: Rows) -> Tensor:
        """Return whole images (B, H, W, C), smaller ones with black below and to the right."""
        if self._resident is not None:
            places = to_device(torch.from_numpy(self._places[rows]), self._device)
            return self._resident.index_select(0, places)
        sources = np.zeros((len(rows), *self._shape), np.uint8)
        for source, row in zip(sources, rows.tolist(), strict=True):
            image = self._images.image(row)
            source[: image.shape[0], : image.shape[1]] = image
        return to_device(torch.from_numpy(sources), self._device)


def make_renderer(
    images: PackedImages, size: int, device: torch.device, *, on_device: bool | None
) -> Renderer:
    """Return what renders a split.

    Args:
        images: the split.
        size: height and width of the result in pixels.
        device: where pixels are wanted.
        on_device: render there; None suits it: there if it is a GPU and images are of one size.

    Raises:
        ConfigError: asked for there, and images are so large that sums would not be exact.
    """
    if not len(images):
        return CpuRenderer(images, size)
    if on_device is None:
        side = int(images.shapes.max())
        on_device = device.type != "cpu" and images.uniform is not None and resample.is_exact(side, size)
    return DeviceRenderer(images, size, device) if on_device else CpuRenderer(images, size)


def _largest_source(size: int) -> int:
    side = size
    while resample.is_exact(side + size, size):
        side += size
    return side
