"""From samples to a model's input: views, rendering and preprocessing.

A view turns a sample into an array of integers, so rendering is exact. Preprocessing turns the rendered
sample into a model's input and holds all floating-point arithmetic. Each modality implements these
protocols.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
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
    """The views of a sample: the augmentation as data."""

    @property
    def seed(self) -> int:
        """Random seed of all draws, 64-bit unsigned."""

    @property
    def mixes(self) -> bool:
        """Whether the samples of a view are mixed with each other."""

    def canonical(self) -> dict[str, Any]:
        """Return the spec as plain values, with the version of the rendering's semantics."""

    def digest(self) -> str:
        """Return the SHA-256 (hex) of the canonical form."""

    def described(self) -> Described:
        """Return the canonical form with its digest."""


class Preprocessing(Protocol):
    """From rendered samples to a model's input. It is stored with the weights."""

    @property
    def size(self) -> int:
        """Extent of the model's input along each axis, e.g. the side of an image in pixels."""

    @property
    def side(self) -> int:
        """Shorter side of the model's input where it is a picture, e.g. a spectrogram; else its extent."""

    @property
    def channels(self) -> int:
        """Channels of the model's input."""

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as plain values, for the model card: a model then stands alone."""

    def identity(self) -> dict[str, Any]:
        """Return the plain values that identify it in a store, e.g. with the digest of a tokenizer."""

    def with_size(self, size: int) -> Preprocessing:
        """Return the same preprocessing for a different input extent."""

    def seen(self, rendered: Tensor) -> Tensor:
        """Map rendered samples (B, ...) to integers, as the network of `with_normalisation` takes them."""

    def normalise(self, rendered: Tensor) -> Tensor:
        """Map rendered samples (B, ...) to a model's input (B, ...), on the device of the samples."""

    def with_normalisation(self, network: nn.Module) -> nn.Module:
        """Return a network that takes the output of `seen` and normalises it internally."""

    def deployed(self, *, normalises: bool) -> dict[str, Any]:
        """Return the facts that users of an exported network need: "input" and "preprocessing"."""

    def attachments(self) -> dict[str, bytes]:
        """Return files for users of an exported network, by suffix, e.g. `tokenizer.json`."""

    def notes(self) -> dict[str, str]:
        """Return rules common to all models of this modality, for the model card."""

    def example(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Return artificial rendered samples (count, ...) on the CPU, e.g. to trace a network.

        Zeros, or noise if a generator is given.
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
        """Return a renderer of a split for a model with this preprocessing.

        Args:
            samples: the split.
            views: a spec of this modality; None for the un-augmented sample.
            pairing: mixing partners.
            device: device of the rendered batches.
            on_device: render on that device, same bytes; None chooses.

        Raises:
            ConfigError: these samples cannot have such views.
            ModelError: the model cannot take these samples.
        """


class GivenPreprocessing(Protocol):
    """A model's preprocessing settings from params.yaml."""

    @property
    def size(self) -> int | None:
        """Extent of the model's input, or None."""

    def said(self) -> dict[str, Any]:
        """Return the given settings as plain values, by attribute name of `Preprocessing`."""

    def over(self, known: Any) -> Preprocessing:
        """Return a known preprocessing with the given settings replaced.

        Raises:
            ModelError: the two are incompatible.
        """

    def alone(self, origin: str) -> Preprocessing:
        """Return the preprocessing of a model without a known one.

        Raises:
            ModelError: a required setting is missing.
        """


class Renderer(Protocol):
    """Renders one split for one model: the same bytes for any batch, thread or device."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a rendered sample."""

    @property
    def dtype(self) -> torch.dtype:
        """Integer dtype of a rendered sample."""

    @property
    def on_device(self) -> bool:
        """Whether rendering runs on the device of the batches; else on the CPU, from any thread."""

    @property
    def checks_rendered(self) -> bool:
        """Whether a store's checksums are of rendered samples; if not, they are of `evidence`."""

    def render(self, view: int, rows: Rows) -> Tensor:
        """Return the rows (B,) of one view, mixed: (B, *shape)."""

    def evidence(self, view: int, rows: Rows) -> Sequence[NDArray[np.integer[Any]]]:
        """Return the integers that a view consists of, per row (B,); the same for every model.

        Checksums and the report's pictures are of these: of an image its pixels, of a text its bytes,
        since token ids depend on a model's tokenizer.
        """

    def lengths(self, view: int, rows: Rows) -> NDArray[np.int64] | None:
        """Return the approximate lengths (B,) of padded samples, or None if none is padded.

        Batches of similar lengths are cheaper; nothing else depends on these numbers.
        """

    def used(self, rendered: Tensor) -> tuple[int | slice, ...]:
        """Return the part of rendered samples (B, *shape) on the CPU that is not padding.

        Per axis its length from the beginning, or a slice where padding stands in front.
        """

    def shares(self, view: int, rows: Rows) -> NDArray[np.float64] | None:
        """Return each row's share (B,) in its own mixture, or None without mixing."""

    def for_model(self, preprocessing: Any) -> Renderer:
        """Return a renderer of the same views for a different model of this modality."""

    def resident(self) -> Resident | None:
        """Return the faster path if all samples are on the device, else None."""


class Resident(Protocol):
    """Renders views of samples that are all on the device."""

    def prefetch(self, view: int) -> None:
        """Prepare the parameters of a view that is needed soon."""

    def batches(self, view: int, batches: Sequence[Rows]) -> Iterator[Tensor]:
        """Yield the rendered samples (B, *shape) of each batch of rows (B,)."""


class UsualViews(ABC):
    """Base class of view specs with the usual behaviour; a subclass gives `canonical`."""

    @abstractmethod
    def canonical(self) -> dict[str, Any]:
        """Return the spec as plain values, with the version of the rendering's semantics."""

    def digest(self) -> str:
        """Return the SHA-256 (hex) of the canonical form."""
        return spec_digest(self.canonical())

    def described(self) -> Described:
        """Return the canonical form with its digest."""
        return Described(self.digest(), self.canonical())


class UsualPreprocessing(ABC):
    """Base class of preprocessing with the usual behaviour, for frozen dataclasses.

    A subclass gives `size`, `channels`, `normalise`, `example` and `renderer`.
    """

    @property
    def side(self) -> int:
        """The extent of the input."""
        return self.size  # type: ignore[attr-defined,no-any-return]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)  # type: ignore[call-overload,no-any-return]

    def with_size(self, size: int) -> Self:
        """Return the same preprocessing for a different input extent."""
        return replace(self, size=size)  # type: ignore[type-var]

    @abstractmethod
    def normalise(self, rendered: Tensor) -> Tensor:
        """Map rendered samples (B, ...) to a model's input (B, ...), on the device of the samples."""

    def identity(self) -> dict[str, Any]:
        """Return all settings."""
        return self.to_dict()

    def seen(self, rendered: Tensor) -> Tensor:
        """Return rendered samples (B, ...) unchanged."""
        return rendered

    def with_normalisation(self, network: nn.Module) -> nn.Module:
        """Return a network that takes rendered samples and normalises them internally."""
        return _Normalising(network, self.normalise)

    def deployed(self, *, normalises: bool) -> dict[str, Any]:
        """Return the facts that users of an exported network need: "input" and "preprocessing"."""
        return {"input": {"normalised": not normalises}, "preprocessing": self.to_dict()}

    def attachments(self) -> dict[str, bytes]:
        """Return no files."""
        return {}

    def notes(self) -> dict[str, str]:
        """Return no rules."""
        return {}


class UsualRenderer(ABC):
    """Base class of renderers that run on the CPU and neither mix nor pad; a subclass gives `render`."""

    on_device = False
    checks_rendered = True

    @abstractmethod
    def render(self, view: int, rows: Rows) -> Tensor:
        """Return the rows (B,) of one view: (B, *shape)."""

    def evidence(self, view: int, rows: Rows) -> Sequence[NDArray[np.integer[Any]]]:
        """Return the rendered samples (*shape) of these rows (B,)."""
        return list(self.render(view, rows).numpy())

    def lengths(self, view: int, rows: Rows) -> NDArray[np.int64] | None:
        """Return None: nothing is padded."""
        return None

    def used(self, rendered: Tensor) -> tuple[int | slice, ...]:
        """Return the whole shape."""
        return tuple(rendered.shape)

    def shares(self, view: int, rows: Rows) -> NDArray[np.float64] | None:
        """Return None: nothing is mixed."""
        return None

    def resident(self) -> Resident | None:
        """Return None: samples stay on the CPU."""
        return None


class _Normalising(nn.Module):
    def __init__(self, network: nn.Module, normalise: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self._normalise = network, normalise

    def forward(self, rendered: Tensor) -> Tensor:
        """Return the network's output for rendered samples (B, ...)."""
        logits: Tensor = self.network(self._normalise(rendered))
        return logits
