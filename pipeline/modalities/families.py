"""Define a source of models: a set of names, and a builder of their networks.

A family owns its names, the fit of its networks to the data, and their weights. Each modality lists its
families; `models/architecture.py` has the table of all.
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
# Stands for the default pretrained weights of a model, in place of a weights name.
OWN_WEIGHTS = "pretrained"
# Usual suffixes; a file is recognised by its content, whatever its suffix.
CHECKPOINT_SUFFIXES = (".pt", ".pth", ".pth.tar", ".ckpt", ".bin", ".safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretrained:
    """A network with its weights, in eval mode.

    Args:
        network: the network, as its library built it.
        name: name of the architecture.
        options: keyword arguments that rebuild the network.
        preprocessing: the preprocessing of these weights; None if unknown.
        classes: names of the logits, in order; None if unknown.
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
        weights: name of the weights.
        top1: accuracy on ImageNet's validation images, 0..1.
        forward_flops: floating-point operations of one forward pass per image, at the weights' input size.
    """

    model: str
    weights: str
    top1: float
    forward_flops: float


class Family(ABC):
    """A source of models, with defaults for the behaviour that most models share.

    Attributes:
        own_options: whether pretrained networks are also built with the user's options.
        described: description of its names, for messages.
    """

    own_options = False
    described = ""

    @abstractmethod
    def knows(self, name: str) -> bool:
        """Whether this source has a model of this name."""

    def require_name(self, name: str) -> None:
        """Refuse a name that `knows` accepts by its form, but the installed library does not have.

        Raises:
            ModelError: naming the model.
        """
        return

    @abstractmethod
    def build(
        self, name: str, *, num_classes: int, channels: int, stem_stride: int, options: Mapping[str, Any]
    ) -> nn.Module:
        """Build a network with fresh weights.

        Raises:
            ModelError: unknown name, an option that the builder rejects, or a stem that cannot be fitted.
        """

    @abstractmethod
    def pretrained(self, name: str, weights: str, options: Mapping[str, Any]) -> Pretrained:
        """Return a network with pretrained weights.

        Raises:
            ModelError: the weights do not exist or cannot be loaded.
        """

    def require_alone(self, name: str, options: Mapping[str, Any]) -> None:
        """Refuse the options of a card from which `build` would look for files.

        Raises:
            ModelError: an option is missing that `build` would read from a folder named by the card.
        """
        return

    def packaged(self, name: str, weights: str) -> tuple[Traversable, str] | None:
        """Return the folder in this package and the name of a weights file in it, or None."""
        return None

    def names(self) -> list[str]:
        """Return the names that can be listed, for suggestions."""
        return []

    def weight_names(self, name: str) -> Sequence[str]:
        """Return the names of a model's weights, besides `OWN_WEIGHTS`."""
        return ()

    def installed(self) -> Sequence[Installed]:
        """Return the pretrained classifiers of photographs that are installed on this machine."""
        return ()

    def image_size(self, name: str) -> int | None:
        """Return the only input side in pixels that a model accepts; None accepts any."""
        return None

    def smallest_size(self, name: str) -> int | None:
        """Return the smallest input side in pixels that survives a model's strides; None if unknown."""
        return None

    def stem_stride(self, name: str, image_size: int) -> int:
        """Return the total stride of the first layers for images of this side in pixels."""
        return IMAGENET_STEM_STRIDE

    def size_options(self, name: str, image_size: int) -> dict[str, Any]:
        """Return the builder's options for images of this side in pixels, if it needs any."""
        return {}

    def fitted(self, name: str, preprocessing: Any, given: Any) -> Preprocessing:
        """Return the preprocessing of a network with fresh weights.

        Args:
            name: name of the model.
            preprocessing: that of the data.
            given: the user's settings, a `GivenPreprocessing`.
        """
        fitted: Preprocessing = given.over(preprocessing)
        return fitted

    def fitted_options(self, name: str, preprocessing: Any) -> dict[str, Any]:
        """Return the builder's options for a preprocessing, if it needs any."""
        return self.size_options(name, preprocessing.side)

    def resize(self, network: nn.Module, image_size: int) -> None:
        """Fit a network to images of a different side in pixels, if its weights depend on the side."""
        return


class FreshNetworks(Family):
    """Networks of one table that read integers of a vocabulary, with fresh weights alone.

    Args:
        networks: name -> builder, which takes `num_classes`, `vocabulary` and options.
        noun: of the samples, in messages, e.g. texts.
    """

    def __init__(self, networks: Mapping[str, Callable[..., nn.Module]], noun: str) -> None:
        self._networks = networks
        self.described = f"{', '.join(networks)} ({noun})"

    def knows(self, name: str) -> bool:
        """Whether the table has this name."""
        return name in self._networks

    def names(self) -> list[str]:
        """Return the names of the table."""
        return list(self._networks)

    def build(
        self, name: str, *, num_classes: int, channels: int, stem_stride: int, options: Mapping[str, Any]
    ) -> nn.Module:
        """Build a network; `channels` is the number of ids.

        Raises:
            ModelError: an option that the builder rejects, or a stem stride.
        """
        require_own_stem(name, stem_stride)
        return call_builder(
            name, self._networks[name], options, num_classes=num_classes, vocabulary=channels
        )

    def pretrained(self, name: str, weights: str, options: Mapping[str, Any]) -> Pretrained:
        """Refuse: no weights have a name.

        Raises:
            ModelError: always.
        """
        raise unknown_weights(name, weights, [])


def call_builder(
    name: str, builder: Callable[..., nn.Module], options: Mapping[str, Any], **arguments: Any
) -> nn.Module:
    """Call a library's builder with fixed arguments and the user's options.

    Raises:
        ModelError: the builder rejects these options.
    """
    require_no_weights(name, options)
    try:
        return builder(**arguments, **options)
    except (TypeError, ValueError, AssertionError, RuntimeError, LookupError, ArithmeticError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"model {name} with options {dict(options)}: {reason}; expected arguments of its builder; "
            "correct the options"
        ) from None


def require_own_stem(name: str, stride: int, fitted: Collection[str] = ()) -> None:
    """Refuse a changed stem for a model whose first layers cannot be fitted to small samples.

    Args:
        name: name of the model.
        stride: requested stride.
        fitted: models of the same source with a stem that can be fitted.
    """
    if stride != IMAGENET_STEM_STRIDE:
        only = f"only {', '.join(fitted)} have" if fitted else "user-defined models do not have"
        raise ModelError(
            f"model {name} has stem_stride {stride}; expected 4: {only} a stem for small images; enlarge "
            f"data.image_size{' or choose one of these' if fitted else ''}"
        )


def require_config(name: str, options: Mapping[str, Any]) -> None:
    """Refuse options without a configuration, which the builder would read from the folder in the name.

    Raises:
        ModelError: naming the model.
    """
    if not options.get("config"):
        raise ModelError(
            f"model {quoted(name)} has no 'config' in its options; a card alone reads no folder; save the "
            "checkpoint again, by the stage that writes it (pipeline train-teacher or train-student)"
        )


def require_no_weights(name: str, options: Mapping[str, Any]) -> None:
    """Refuse builder options that select weights, e.g. `pretrained`.

    Raises:
        ModelError: the options select weights.
    """
    given = next((option for option in WEIGHT_OPTIONS if option in options), None)
    if given is not None:
        raise ModelError(
            f"model {name} has {given} in its options; set weights beside the model instead: weights: "
            f"{quoted(options[given])}"
        )


def unknown_weights(name: str, weights: str, known: Sequence[str]) -> ModelError:
    """Return the error for unknown weights of a model."""
    named = f"{', '.join(known)}, or " if known else ""
    return ModelError(
        f"model {name} has no weights {weights!r}; expected {named}the path of a checkpoint "
        f"({', '.join(CHECKPOINT_SUFFIXES)}){did_you_mean(weights, known)}"
    )
