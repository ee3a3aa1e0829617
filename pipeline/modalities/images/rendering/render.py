"""Rendering: packed images and a view's parameters to pixels, on the CPU or on any device, the same bytes.

uint8 in, uint8 out. What a sample's pixels are depends on its source, its parameters and the size alone,
never on its batch, on threads or on the device. Mixing needs two samples: it comes after (`pixel_ops.mix`).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from pipeline.core.arrays import Rows
from pipeline.core.progress import note
from pipeline.modalities.images.draw import ViewParameters
from pipeline.modalities.images.own_code import carry_out_own
from pipeline.modalities.images.rendering import cpu, resample
from pipeline.modalities.images.rendering.device import DeviceRenderer
from pipeline.modalities.images.rendering.pixel_ops import carry_out, erase
from pipeline.modalities.images.rendering.resample import Interpolation
from pipeline.samples.packed import Split


def render(
    images: Split,
    rows: Rows,
    parameters: ViewParameters,
    *,
    size: int,
    interpolation: Interpolation = "bilinear",
) -> Tensor:
    """Render one view of some samples on the CPU, not yet mixed.

    Args:
        images: where the source pixels are.
        rows: (B,) positions in `images`.
        parameters: of these rows, in this order.
        size: height and width of the result in pixels.
        interpolation: of crops that have another size.

    Returns:
        (B, size, size, channels) uint8 on the CPU.

    Example:
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from pipeline import PreparedData, ViewSpec, render, view_parameters
        >>> images, rows = PreparedData.open(Path("data/prepared")).train, np.arange(4)
        >>> spec = ViewSpec(seed=1, flip="random")
        >>> drawn = view_parameters(spec, view=0, keys=images.keys[rows], shapes=images.shapes[rows])
        >>> render(images, rows, drawn, size=16).shape
        torch.Size([4, 16, 16, 1])
    """
    pixels = cpu.crop_and_resize(images, rows, parameters, size, interpolation)
    pixels = carry_out(pixels, parameters.steps)
    if parameters.own is not None:
        pixels = carry_out_own(pixels, parameters.own)
    return pixels if parameters.erasure is None else erase(pixels, parameters.erasure)


class PixelRenderer(Protocol):
    """Renders one split's images in one size."""

    def render(self, rows: Rows, parameters: ViewParameters) -> Tensor:
        """Return the pixels (B, S, S, channels) uint8 of these rows (B,), not yet mixed."""

    def of_size(self, size: int, interpolation: Interpolation) -> PixelRenderer:
        """Return what renders the same images in another size, resized by another filter."""


class CpuRenderer:
    """Renders on the CPU, sample by sample.

    Args:
        images: the split.
        size: height and width of the result in pixels.
        interpolation: by which crops are resized.
    """

    def __init__(self, images: Split, size: int, interpolation: Interpolation = "bilinear") -> None:
        self._images, self._size, self._interpolation = images, size, interpolation

    def render(self, rows: Rows, parameters: ViewParameters) -> Tensor:
        """Return the pixels (B, S, S, channels) uint8 of these rows (B,), not yet mixed."""
        return render(self._images, rows, parameters, size=self._size, interpolation=self._interpolation)

    def of_size(self, size: int, interpolation: Interpolation) -> CpuRenderer:
        """Return what renders the same images in another size, resized by another filter."""
        return CpuRenderer(self._images, size, interpolation)


def make_renderer(
    images: Split,
    size: int,
    device: torch.device,
    *,
    on_device: bool | None,
    interpolation: Interpolation = "bilinear",
) -> PixelRenderer:
    """Return what renders a split.

    Args:
        images: the split.
        size: height and width of the result in pixels.
        device: where pixels are wanted.
        on_device: render there; None suits it: there if it is a GPU and images are of one size.
        interpolation: by which crops are resized.

    Raises:
        ConfigError: asked for there, and images are so large that sums would not be exact.
    """
    if not len(images):
        return CpuRenderer(images, size, interpolation)
    if on_device is None:
        side = int(images.shapes.max())
        exact = resample.is_exact(side, size, interpolation)
        on_device = device.type != "cpu" and images.uniform is not None and exact
        on_device = on_device and _has_room(images, device)
    if on_device:
        return DeviceRenderer(images, size, device, interpolation)
    return CpuRenderer(images, size, interpolation)


def _has_room(images: Split, device: torch.device) -> bool:
    """Whether images take at most half of what is free on a GPU; if not, it is said."""
    needed, free = images.size_bytes, torch.cuda.mem_get_info(device)[0]
    if needed > free // 2:
        note(
            f"images of {needed / 1e9:.1f} GB, and {device} has {free / 1e9:.1f} GB free: they are "
            "rendered on the CPU"
        )
    return needed <= free // 2
