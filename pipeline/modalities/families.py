"""What a source of models is: it knows some names, and builds the networks they stand for.

Each owns its names, how their networks are fitted to the data, and their weights. A modality has sources of
its own; `models/architecture.py` has the table of all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from typing import Any

from torch import nn

from pipeline.core.errors import ModelError, did_you_mean, quoted
from pipeline.core.trust import WEIGHT_OPTIONS
from pipeline.modalities.preprocessing import Preprocessing

IMAGENET_STEM_STRIDE = 4
# In place of weights' name: those that a model comes with.
OWN_WEIGHTS = "pretrained"
# Usual ones; a file is read by its content, whatever its name ends in.
CHECKPOINT_SUFFIXES = (".pt", ".pth", ".pth.tar", ".ckpt", ".bin", ".safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretrained:
    """A network with its weights, in eval mode.

    Args:
        network: as it came.
        name: of its architecture.
        options: keyword arguments that build it again.
        preprocessing: how it wants its images; None if it does not say.
        classes: names of its logits, in order; None if it does not say.
    """

    network: nn.Module
    name: str
    options: Mapping[str, Any]
    preprocessing: Preprocessing | None
    classes: tuple[str, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """Pretrained weights that need no download.

    Args:
        model: name of the architecture.
        weights: their name.
        top1: accuracy on ImageNet's validation images, a fraction.
        forward_flops: floating-point operations of one forward pass per image, at the weights' own size.
    """

    model: str
    weights: str
    top1: float
    forward_flops: float


class Family(ABC):
    """Where models of some names come from. What most models have in common is said here.

    Attributes:
        own_options: whether pretrained networks, too, are built with the user's options.
        described: its names, for people.
    """

    own_options = False
    described = ""

    @abstractmethod
    def knows(self, name: str) -> bool:
        """Whether a name is one of this source's."""

    @abstractmethod
    def build(
        self, name: str, *, num_classes: int, channels: int, stem_stride: int, options: Mapping[str, Any]
    ) -> nn.Module:
        """Build a network with fresh weights.

        Raises:
            ModelError: unknown name, an option the builder does not take, or a stem that cannot be fitted.
        """

    @abstractmethod
    def pretrained(self, name: str, weights: str, options: Mapping[str, Any]) -> Pretrained:
        """Return a network with weights of this source.

        Raises:
            ModelError: there are no such weights, or they cannot be had.
        """

    def packaged(self, name: str, weights: str) -> tuple[Traversable, str] | None:
        """Return the folder in this package and the file in it that has weights of a name."""
        return None

    def names(self) -> list[str]:
        """Return names that can be listed, for suggestions."""
        return []

    def weight_names(self, name: str) -> Sequence[str]:
        """Return names of a model's weights, beside the one for its own."""
        return ()

    def installed(self) -> Sequence[Installed]:
        """Return the pretrained classifiers of photographs that are on this machine."""
        return ()

    def image_size(self, name: str) -> int | None:
        """Return the side in pixels that a model insists on; None takes the images' own."""
        return None

    def smallest_size(self, name: str) -> int | None:
        """Return the side in pixels below which a model has nothing left to look at, where known."""
        return None

    def stem_stride(self, name: str, image_size: int) -> int:
        """Return how far the first layers shall shrink images of this side in pixels."""
        return IMAGENET_STEM_STRIDE

    def size_options(self, name: str, image_size: int) -> dict[str, Any]:
        """Return the options by which a builder is told the side of its images, where it must know it."""
        return {}

    def resize(self, network: nn.Module, image_size: int) -> None:
        """Fit a network to images of another side in pixels, where its weights depend on it."""
        return


def call_builder(
    name: str, builder: Callable[..., nn.Module], options: Mapping[str, Any], **arguments: Any
) -> nn.Module:
    """Call a library's builder with arguments and the user's options.

    Raises:
        ModelError: it does not take these options.
    """
    require_no_weights(name, options)
    try:
        return builder(**arguments, **options)
    except (TypeError, ValueError, AssertionError, RuntimeError, LookupError, ArithmeticError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"model {name} with options {dict(options)}: {reason}; expected what its builder takes; "
            "correct the options"
        ) from None


def require_own_stem(name: str, stride: int, fitted: Collection[str] = ()) -> None:
    """Refuse another stem for a model whose first layers cannot be fitted to small samples.

    Args:
        name: of the model.
        stride: that is asked for.
        fitted: names of models of its source that can.
    """
    if stride != IMAGENET_STEM_STRIDE:
        only = f"only {', '.join(fitted)} have" if fitted else "models of your own code do not have"
        raise ModelError(
            f"model {name} has stem_stride {stride}; expected 4: {only} a stem for small images; enlarge "
            f"data.image_size{' or choose one of these' if fitted else ''}"
        )


def require_no_weights(name: str, options: Mapping[str, Any]) -> None:
    """Refuse options of a library's builder that name weights.

    Raises:
        ModelError: there is one.
    """
    given = next((option for option in WEIGHT_OPTIONS if option in options), None)
    if given is not None:
        raise ModelError(
            f"model {name} has {given} among its options; expected them beside the model; write weights: "
            f"{quoted(options[given])}"
        )


def unknown_weights(name: str, weights: str, known: Sequence[str]) -> ModelError:
    """Return the error of weights that a model does not have."""
    named = ", ".join(known) or "a checkpoint (no weights have a name)"
    return ModelError(
        f"weights {weights!r} of {name} are unknown; expected {named}, or the path of a checkpoint "
        f"({', '.join(CHECKPOINT_SUFFIXES)}){did_you_mean(weights, known)}"
    )
