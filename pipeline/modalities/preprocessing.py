"""From samples to a model's input: views, their rendering, and a model's preprocessing.

A view is integers that turn a sample into another array of integers: rendering is exact. Preprocessing
turns that into a model's input; everything with floating point happens there. Each modality has its own of
these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.core.arrays import Rows
from pipeline.core.hashing import Described, spec_digest
from pipeline.samples.packed import Split
from pipeline.views.pairing import Pairing, Singles


class Views(Protocol):
    """Which views of a sample exist: the augmentation as data."""

    @property
    def seed(self) -> int:
        """64-bit unsigned: of all that is drawn."""

    @property
    def mixes(self) -> bool:
        """Whether samples of a view are mixed with each other."""

    def canonical(self) -> dict[str, Any]:
        """Return the spec as plain values, with the version of the rendering's meaning."""

    def digest(self) -> str:
        """Return the SHA-256 (hex) of the canonical form."""

    def described(self) -> Described:
        """Return the canonical form with its digest."""


class Preprocessing(Protocol):
    """From rendered samples to a model's input. It travels with the weights."""

    @property
    def size(self) -> int:
        """Extent of the model's input along each axis: of an image, its side in pixels."""

    @property
    def channels(self) -> int:
        """Of the model's input."""

    def to_dict(self) -> dict[str, Any]:
        """Return everything that decides the input as plain values."""

    def with_size(self, size: int) -> Preprocessing:
        """Return the same for another extent of the model's input."""

    def seen(self, rendered: Tensor) -> Tensor:
        """Map rendered samples (B, ...) to the integers that a model's own normalisation takes."""

    def normalise(self, rendered: Tensor) -> Tensor:
        """Map rendered samples (B, ...) to a model's input (B, ...), on their own device."""

    def with_normalisation(self, network: nn.Module) -> nn.Module:
        """Return a network that takes samples as `seen` returns them, and normalises them itself."""

    def deployed(self, *, normalises: bool) -> dict[str, Any]:
        """Return what the user of an exported network must know: "input" and "preprocessing"."""

    def notes(self) -> dict[str, str]:
        """Return rules that hold for every model of this modality, for its card."""

    def example(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Return rendered samples (count, ...) on the CPU, for what needs any input at all.

        Zeros, or noise where a generator is given.
        """

    def renderer(
        self,
        samples: Split,
        views: Any,
        pairing: Pairing | Singles,
        *,
        device: torch.device,
        on_device: bool | None,
    ) -> Renderer:
        """Return what renders a split for a model of this preprocessing.

        Args:
            samples: the split.
            views: a spec of this modality; None for the un-augmented sample.
            pairing: who is mixed with whom.
            device: where batches are wanted.
            on_device: render there, the same bytes; None where it suits.

        Raises:
            ConfigError: views that these samples cannot have.
            ModelError: a model that these samples are nothing for.
        """


class GivenPreprocessing(Protocol):
    """What a user says of a model's preprocessing in params.yaml."""

    @property
    def size(self) -> int | None:
        """Extent of the model's input, where it is said."""

    def said(self) -> dict[str, Any]:
        """Return what is said, as plain values, by names of attributes of a `Preprocessing`."""

    def over(self, known: Any) -> Preprocessing:
        """Return a preprocessing with what is said here in place of its own.

        Raises:
            ModelError: the two do not go together.
        """

    def alone(self, origin: str) -> Preprocessing:
        """Return the preprocessing of a model that says nothing itself.

        Raises:
            ModelError: something that it needs is not said.
        """


class Renderer(Protocol):
    """The views of one split for one model: the same bytes whatever the batch, thread or device."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a rendered sample."""

    @property
    def dtype(self) -> torch.dtype:
        """Of a rendered sample: integers."""

    @property
    def on_device(self) -> bool:
        """Whether it renders where batches are wanted; otherwise on the CPU, from any thread."""

    def render(self, view: int, rows: Rows) -> Tensor:
        """Return these rows (B,) of one view, mixed: (B, *shape)."""

    def shares(self, view: int, rows: Rows) -> NDArray[np.float64] | None:
        """Return how much of each row (B,) is in its own rendering; None where nothing is mixed."""

    def for_model(self, preprocessing: Any) -> Renderer:
        """Return what renders the same views for another model of this modality."""

    def resident(self) -> Resident | None:
        """Return the faster path, where all samples lie on the device."""


class Resident(Protocol):
    """Views of samples that all lie on the device."""

    def prefetch(self, view: int) -> None:
        """Prepare for a view that will be asked for soon."""

    def batches(self, view: int, batches: Sequence[Rows]) -> Iterator[Tensor]:
        """Yield each batch of rows (B,), rendered: (B, *shape)."""


class UsualViews:
    """What views of most modalities have in common: a spec derives from this, and gives `canonical`."""

    def canonical(self) -> dict[str, Any]:
        """Return the spec as plain values, with the version of the rendering's meaning."""
        raise NotImplementedError

    def digest(self) -> str:
        """Return the SHA-256 (hex) of the canonical form."""
        return spec_digest(self.canonical())

    def described(self) -> Described:
        """Return the canonical form with its digest."""
        return Described(self.digest(), self.canonical())


class UsualPreprocessing:
    """What preprocessing of most modalities has in common: a frozen dataclass derives from this.

    It gives `size`, `channels`, `normalise`, `example` and `renderer`.
    """

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)  # type: ignore[call-overload,no-any-return]

    def with_size(self, size: int) -> Self:
        """Return the same for another extent of the model's input."""
        return replace(self, size=size)  # type: ignore[type-var]

    def normalise(self, rendered: Tensor) -> Tensor:
        """Map rendered samples (B, ...) to a model's input (B, ...), on their own device."""
        raise NotImplementedError

    def seen(self, rendered: Tensor) -> Tensor:
        """Return rendered samples (B, ...) as they are."""
        return rendered

    def with_normalisation(self, network: nn.Module) -> nn.Module:
        """Return a network that takes rendered samples, and normalises them itself."""
        return _Normalising(network, self.normalise)

    def deployed(self, *, normalises: bool) -> dict[str, Any]:
        """Return what the user of an exported network must know: "input" and "preprocessing"."""
        return {"input": {"normalised": not normalises}, "preprocessing": self.to_dict()}

    def notes(self) -> dict[str, str]:
        """Return no rules."""
        return {}


class UsualRenderer:
    """What renderers of most modalities have in common: they render on the CPU, and mix nothing."""

    on_device = False

    def shares(self, view: int, rows: Rows) -> NDArray[np.float64] | None:
        """Return None: nothing is mixed."""
        return None

    def resident(self) -> Resident | None:
        """Return None: samples stay where they are."""
        return None


class _Normalising(nn.Module):
    def __init__(self, network: nn.Module, normalise: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self._normalise = network, normalise

    def forward(self, rendered: Tensor) -> Tensor:
        """Return what the network gives for rendered samples (B, ...)."""
        logits: Tensor = self.network(self._normalise(rendered))
        return logits
