"""Rendering: packed images and a view's parameters to pixels, the same bytes on the CPU and any device.

uint8 in, uint8 out. A sample's pixels depend only on its source, its parameters and the size, never on the
batch, threads or device. Mixing needs two samples and comes later (`pixel_ops.mix`).
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
        images: the split with the source pixels.
        rows: (B,) positions in `images`.
        parameters: parameters of these rows, in this order.
        size: height and width of the result in pixels.
        interpolation: filter of crops that are resized.

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
    """Renders one split's images at one size."""

    def render(self, rows: Rows, parameters: ViewParameters) -> Tensor:
        """Return the pixels (B, S, S, channels) uint8 of these rows (B,), not yet mixed."""

    def of_size(self, size: int, interpolation: Interpolation) -> PixelRenderer:
        """Return a renderer of the same images at a different size and with this filter."""


class CpuRenderer:
    """Renders on the CPU, sample by sample.

    Args:
        images: the split.
        size: height and width of the result in pixels.
        interpolation: filter of the resize.
    """

    def __init__(self, images: Split, size: int, interpolation: Interpolation = "bilinear") -> None:
        self._images, self._size, self._interpolation = images, size, interpolation

    def render(self, rows: Rows, parameters: ViewParameters) -> Tensor:
        """Return the pixels (B, S, S, channels) uint8 of these rows (B,), not yet mixed."""
        return render(self._images, rows, parameters, size=self._size, interpolation=self._interpolation)

    def of_size(self, size: int, interpolation: Interpolation) -> CpuRenderer:
        """Return a renderer of the same images at a different size and with this filter."""
        return CpuRenderer(self._images, size, interpolation)


def make_renderer(
    images: Split,
    size: int,
    device: torch.device,
    *,
    on_device: bool | None,
    interpolation: Interpolation = "bilinear",
) -> PixelRenderer:
    """Choose the renderer of a split.

    Args:
        images: the split.
        size: height and width of the result in pixels.
        device: device of the batches.
        on_device: render on it; None does so on a GPU if the images have one size and fit.
        interpolation: filter of the resize.

    Raises:
        ConfigError: on_device is True, but images are so large that float32 sums would be inexact.
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
    """Whether images take at most half of a GPU's free memory; prints a note if not."""
    needed, free = images.size_bytes, torch.cuda.mem_get_info(device)[0]
    if needed > free // 2:
        note(
            f"images need {needed / 1e9:.1f} GB, but {device} has {free / 1e9:.1f} GB free: rendering on "
            "the CPU"
        )
    return needed <= free // 2
