"""The views of one split of images for one model: drawn, rendered at the model's size, mixed."""

from __future__ import annotations

from copy import copy
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.arrays import Rows
from pipeline.core.errors import ConfigError, ModelError
from pipeline.core.random import Draws
from pipeline.modalities.images.augmentations import OwnAugmentation
from pipeline.modalities.images.draw import ViewParameters, centre_parameters, view_parameters
from pipeline.modalities.images.mixing import draw_mixture
from pipeline.modalities.images.own_code import require_own
from pipeline.modalities.images.rendering.device import DeviceRenderer
from pipeline.modalities.images.rendering.pixel_ops import mix
from pipeline.modalities.images.rendering.render import make_renderer
from pipeline.modalities.images.rendering.resample import Interpolation
from pipeline.modalities.images.rendering.resident import ResidentViews
from pipeline.modalities.images.spec import ViewSpec
from pipeline.samples.packed import Split
from pipeline.views.pairing import Pairing, Singles


class Seen(Protocol):
    """The part of a model's preprocessing that decides rendering."""

    @property
    def size(self) -> int:
        """Height and width S in pixels."""

    @property
    def channels(self) -> int:
        """Channels of the model's input."""

    @property
    def interpolation(self) -> Interpolation:
        """Filter of the resize."""

    @property
    def crop_fraction(self) -> float:
        """Side of the un-augmented centre crop, as a share of the short side."""


class ImageViews:
    """Renders the views of a split for one model.

    Args:
        images: the split.
        spec: the views; None for the un-augmented centre crop.
        pairing: mixing partners.
        seen: the model's preprocessing.
        device: device of the batches.
        on_device: render on it, same pixels; None chooses.

    Raises:
        ModelError: the model's input has neither 1 nor 3 channels.
        ConfigError: these images cannot have such views.
    """

    dtype = torch.uint8
    checks_rendered = True

    def __init__(
        self,
        images: Split,
        spec: ViewSpec | None,
        pairing: Pairing | Singles,
        seen: Seen,
        *,
        device: torch.device,
        on_device: bool | None,
    ) -> None:
        _require_channels(seen)
        _require_room(images, spec)
        self._images, self._spec, self._pairing, self._seen = images, spec, pairing, seen
        if spec is not None and spec.own is not None:
            _require_cpu(spec.own, on_device=on_device)
            on_device = False
        self._renderer = make_renderer(
            images, seen.size, device, on_device=on_device, interpolation=seen.interpolation
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a rendered image: (S, S, channels)."""
        return self._seen.size, self._seen.size, self._images.form.unit[-1]

    @property
    def on_device(self) -> bool:
        """Whether rendering runs on the device of the batches."""
        return isinstance(self._renderer, DeviceRenderer)

    def for_model(self, seen: Seen) -> ImageViews:
        """Return a renderer of the same views for a different model."""
        _require_channels(seen)
        other = copy(self)
        other._seen = seen
        other._renderer = self._renderer.of_size(seen.size, seen.interpolation)
        return other

    def parameters(self, view: int, rows: Rows) -> ViewParameters:
        """Return the parameters of these rows (B,) in one view."""
        shapes = self._images.shapes[rows]
        if self._spec is None:
            return centre_parameters(shapes, self._seen.crop_fraction)
        return view_parameters(self._spec, view=view, keys=self._images.keys[rows], shapes=shapes)

    def render(self, view: int, rows: Rows) -> Tensor:
        """Render rows (B,) of one view: (B, S, S, channels) uint8 on the rendering device."""
        if not self._pairing.mixes:
            return self._renderer.render(rows, self.parameters(view, rows))
        both = np.concatenate([rows, self._pairing.partners(view, rows)])
        needed, places = np.unique(both, return_inverse=True)
        parameters = self.parameters(view, needed)
        plain = self._renderer.render(needed, parameters)
        own, partners = np.split(places, 2)
        mixture = parameters[own].mixture
        return plain if mixture is None else mix(plain, own, partners, mixture)

    def evidence(self, view: int, rows: Rows) -> list[NDArray[np.uint8]]:
        """Return the pixels (S, S, channels) of these rows (B,) of one view."""
        return list(self.render(view, rows).cpu().numpy())

    def lengths(self, view: int, rows: Rows) -> None:
        """Return None: images are not padded."""

    def used(self, rendered: Tensor) -> tuple[int, ...]:
        """Return the whole shape."""
        return tuple(rendered.shape)

    def shares(self, view: int, rows: Rows) -> NDArray[np.float64] | None:
        """Return each row's share (B,) in its own mixture, or None without mixing."""
        if self._spec is None:
            return None
        mixture = draw_mixture(self._spec, Draws(self._spec.seed, view, self._images.keys[rows]))
        return None if mixture is None else mixture.shares

    def resident(self) -> ResidentViews | None:
        """Return the faster path if all images are on the device, else None."""
        if not isinstance(self._renderer, DeviceRenderer) or not self._renderer.is_resident:
            return None
        every = np.arange(len(self._images))
        return ResidentViews(self._renderer, lambda view: self.parameters(view, every), self._pairing)


def _require_channels(seen: Seen) -> None:
    if seen.channels not in (1, 3):
        raise ModelError(
            f"the model expects {seen.channels} channels; images have 1 (grey) or 3 (colour); choose a "
            "different model"
        )


def _require_cpu(augmentation: OwnAugmentation, *, on_device: bool | None) -> None:
    """Refuse user code that cannot run, before threads start to render."""
    if on_device:
        raise ConfigError(
            f"the views run user code, {augmentation.code}, which renders on the CPU only; use --render cpu"
        )
    require_own(augmentation)


def _require_room(images: Split, spec: ViewSpec | None) -> None:
    """Refuse a padding that could shift an image out of its crop."""
    if spec is None or spec.pad_crop is None or not len(images):
        return
    sides, padding = images.shapes.min(1), spec.pad_crop.padding
    smallest = int(sides.argmin())
    if padding >= sides[smallest]:
        height, width = images.shapes[smallest].tolist()
        most = int(sides[smallest]) - 1
        mend = f"set it to at most {most}, or use" if most else "remove pad_crop, or use"
        raise ConfigError(
            f"pad_crop.padding is {padding}, but sample {images.names[smallest]!r} has {height}x{width} "
            "pixels, so a crop could miss it; expected less than the shorter side; "
            f"{mend} random_resized_crop"
        )
