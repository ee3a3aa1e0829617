"""Rendering on any device: parameters as tensors on the device, pixels without synchronisation.

Shapes depend only on the split, the size and the spec, and nothing is read back. A CUDA graph needs
exactly this, but capturing a step has not been tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.arrays import Rows
from pipeline.core.device import to_device
from pipeline.core.errors import ConfigError
from pipeline.modalities.images.draw import ViewParameters
from pipeline.modalities.images.mixing import Mixture
from pipeline.modalities.images.operations import Op, Step
from pipeline.modalities.images.rendering import resample
from pipeline.modalities.images.rendering.pixel_ops import KERNELS, paint
from pipeline.modalities.images.rendering.resample import Interpolation
from pipeline.samples.packed import Split

# Images are sent in parts of this size: a whole copy could exceed the host's memory.
_SENT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class DeviceStep:
    """One operation on each of N samples; see `pipeline.modalities.images.operations.Step`.

    Args:
        ops: (N,) uint8.
        operands: (N, 6) int32.
        possible: operations that the step may hold; known without reading `ops` back.
    """

    ops: Tensor
    operands: Tensor
    possible: tuple[Op, ...]

    @classmethod
    def of(cls, step: Step, device: torch.device) -> DeviceStep:
        """Copy a step to a device."""
        return cls(to_device(step.ops, device), to_device(step.operands, device), step.possible)

    def __getitem__(self, rows: Tensor) -> DeviceStep:
        return DeviceStep(
            self.ops.index_select(0, rows), self.operands.index_select(0, rows), self.possible
        )


@dataclass(frozen=True, slots=True)
class DeviceMixture:
    """Mixing of N samples; see `pipeline.modalities.images.mixing.Mixture`.

    Args:
        levels: (N,) int32.
        boxes: (N, 4) int32.
    """

    levels: Tensor
    boxes: Tensor

    @classmethod
    def of(cls, mixture: Mixture, device: torch.device) -> DeviceMixture:
        """Copy a mixture to a device."""
        return cls(to_device(mixture.levels, device), to_device(mixture.boxes, device))

    def __getitem__(self, rows: Tensor) -> DeviceMixture:
        return DeviceMixture(self.levels.index_select(0, rows), self.boxes.index_select(0, rows))


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceParameters:
    """One view of N samples on a device; see `pipeline.modalities.images.draw.ViewParameters`.

    Args:
        boxes: (N, 4) int64.
        flips: (N,) bool.
        side: side of all boxes in pixels if they are known to be squares of one size, else None.
        steps: operations in execution order.
        erased: (N, 4) int32 erased boxes, or None.
        paint: grey level of erased boxes.
        mixture: mixing of the samples, the last operation, or None.
    """

    boxes: Tensor
    flips: Tensor
    side: int | None
    steps: tuple[DeviceStep, ...]
    erased: Tensor | None
    paint: int
    mixture: DeviceMixture | None

    @classmethod
    def of(cls, parameters: ViewParameters, device: torch.device) -> DeviceParameters:
        """Copy a view's parameters to a device."""
        # int64: the boxes are added to index tensors.
        erasure, mixture = parameters.erasure, parameters.mixture
        return cls(
            boxes=to_device(parameters.boxes.astype(np.int64), device),
            flips=to_device(parameters.flips, device),
            side=parameters.side,
            steps=tuple(DeviceStep.of(step, device) for step in parameters.steps),
            erased=None if erasure is None else to_device(erasure.boxes, device),
            paint=0 if erasure is None else erasure.value,
            mixture=None if mixture is None else DeviceMixture.of(mixture, device),
        )

    def __getitem__(self, rows: Tensor) -> DeviceParameters:
        return DeviceParameters(
            boxes=self.boxes.index_select(0, rows),
            flips=self.flips.index_select(0, rows),
            side=self.side,
            steps=tuple(step[rows] for step in self.steps),
            erased=None if self.erased is None else self.erased.index_select(0, rows),
            paint=self.paint,
            mixture=None if self.mixture is None else self.mixture[rows],
        )


class DeviceRenderer:
    """Renders batches on a device. Images of one size stay there; others are copied for each batch.

    Args:
        images: the split.
        size: height and width of the result in pixels.
        device: device of the pixels.
        interpolation: filter of the resize.

    Raises:
        ConfigError: images too large for this result: float32 sums would be inexact.
    """

    def __init__(
        self,
        images: Split,
        size: int,
        device: torch.device,
        interpolation: Interpolation = "bilinear",
    ) -> None:
        self._images, self.device, self._interpolation = images, device, interpolation
        tallest, widest = images.shapes.max(0).tolist()
        self._shape = tallest, widest, images.form.unit[-1]
        self._size = self._exact(size)
        self._resident: tuple[Tensor, Tensor] | None = None
        # Resident: all pixels (n, H, W, C) and the index of each row among them (N,).
        if images.uniform is not None:
            pixels, places = images.uniform
            self._resident = _sent(pixels, device), torch.from_numpy(places).to(device)

    @property
    def is_resident(self) -> bool:
        """Whether all images are on the device."""
        return self._resident is not None

    def of_size(self, size: int, interpolation: Interpolation) -> DeviceRenderer:
        """Return a renderer of the same images at a different size; resident images are shared."""
        other = copy(self)
        other._interpolation = interpolation
        other._size = self._exact(size)
        return other

    def render(self, rows: Rows, parameters: ViewParameters) -> Tensor:
        """Return the pixels (B, S, S, channels) uint8 of these rows (B,), not yet mixed."""
        if parameters.own is not None:
            raise ValueError("user code runs on the CPU")
        there = DeviceParameters.of(parameters, self.device)
        if self.is_resident:
            return self.render_resident(to_device(rows, self.device), there)
        return self._rendered(self._copied(rows), there)

    def render_resident(self, rows: Tensor, parameters: DeviceParameters) -> Tensor:
        """Render rows (B,) int64 when rows, images and parameters of these rows are on the device."""
        if self._resident is None:
            raise ValueError("the images are not on the device")
        whole, places = self._resident
        # (B,) rows to (B,) indices to (B, H, W, C) pixels: two gathers, no copy from the host.
        return self._rendered(whole.index_select(0, places.index_select(0, rows)), parameters)

    def _rendered(self, sources: Tensor, parameters: DeviceParameters) -> Tensor:
        # Boxes of the result's size need one gather instead of the matrix products of a resize.
        fits = parameters.side == self._size or not len(sources)
        where = sources, parameters.boxes, parameters.flips, self._size
        pixels = resample.cut(*where) if fits else resample.crop_and_resize(*where, self._interpolation)
        pixels = carry_out(pixels, parameters.steps)
        return pixels if parameters.erased is None else paint(pixels, parameters.erased, parameters.paint)

    def _copied(self, rows: Rows) -> Tensor:
        """Return whole images (B, H, W, C), smaller images padded with black below and to the right."""
        # H and W are the largest in the split, so every batch has the same shape.
        sources = np.zeros((len(rows), *self._shape), np.uint8)
        for source, row in zip(sources, rows.tolist(), strict=True):
            image = self._images.array(row)
            source[: image.shape[0], : image.shape[1]] = image
        return to_device(sources, self.device)

    def _exact(self, size: int) -> int:
        tallest, widest, _ = self._shape
        if not resample.is_exact(max(tallest, widest), size, self._interpolation):
            raise ConfigError(
                f"images of {tallest}x{widest} pixels are too large to render at {size} pixels on a "
                f"device; expected sides of at most {_largest_source(size, self._interpolation)}; use "
                "--render cpu"
            )
        return size


def carry_out(pixels: Tensor, steps: Sequence[DeviceStep]) -> Tensor:
    """Run steps: each possible operation on all samples, keeping the samples that drew it.

    Args:
        pixels: (B, S, S, C) uint8.
        steps: steps of these samples.
    """
    for step in steps:
        # Selecting samples would read a count back and wait. The cost is one pass per possible operation:
        # RandAugment runs nine kernels on the whole batch in each step.
        before = pixels
        for op in step.possible:
            chosen = step.ops == op
            # Operands of other operations become 0: e.g. a factor of 1024 is no number of bits.
            done = KERNELS[op](before, step.operands * chosen[:, None])
            pixels = torch.where(chosen.view(-1, 1, 1, 1), done, pixels)
    return pixels


def _sent(pixels: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Copy images to a device in parts: they may exceed the host's memory."""
    there = torch.empty(pixels.shape, dtype=torch.uint8, device=device)
    at_once = max(1, _SENT_BYTES // max(1, pixels[0].nbytes))
    for start in range(0, len(pixels), at_once):
        # A copy: the source is a read-only map.
        there[start : start + at_once] = torch.from_numpy(pixels[start : start + at_once].copy())
    return there


def _largest_source(size: int, interpolation: Interpolation) -> int:
    # In whole multiples of the size: the limit for bilinear, a safe bound for bicubic.
    side = size
    while resample.is_exact(side + size, size, interpolation):
        side += size
    return side
