"""What a run begins with: a network that fits the data, with fresh or pretrained weights, and its card."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from pipeline.core.errors import DataError, ModelError, require_finite_weights
from pipeline.modalities.images.preprocessing import GivenPreprocessing, Preprocessing
from pipeline.models.architecture import Architecture, build, source_of
from pipeline.models.auxiliary import require_room
from pipeline.models.checkpoint import ModelCard
from pipeline.models.class_map import ClassMap, with_classes
from pipeline.models.heads import SelectedLogits, replace_head
from pipeline.models.probe import count_logits
from pipeline.models.weights import load_pretrained
from pipeline.samples.dataset import PreparedData


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a run begins with.

    Args:
        model: name of the architecture.
        weights: pretrained weights by name or path; None for fresh ones.
        image_size: input side in pixels; None takes the weights', or else the images' own.
        channels: 1 or 3 that a network with fresh weights sees; None takes the images' own.
        stem_stride: 1, 2 or 4; None suits it to the image size.
        options: keyword arguments of the architecture's builder.
        preprocessing: what is said of how it wants its images; it stands over everything else.
        class_map: which of the weights' classes the data's are; None for the same ones.
    """

    model: str
    weights: str | None
    image_size: int | None = None
    channels: int | None = None
    stem_stride: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: GivenPreprocessing = field(default_factory=GivenPreprocessing)
    class_map: ClassMap | None = None


def initial_network(data: PreparedData, start: Start, seed: int) -> tuple[nn.Module, ModelCard]:
    """Return a network that fits a dataset, to be trained, and its card.

    Fresh weights are drawn from the seed. Pretrained weights of another number of classes get a fresh
    last layer.

    Raises:
        ModelError: unknown model or weights, or a network that cannot be fitted.
        DataError: the images differ in size and no `image_size` says what the network shall see.
    """
    torch.manual_seed(seed)
    if start.weights is None:
        card = _new_card(data, start)
        network = build(card.architecture)
    else:
        network, card = pretrained_network(data, start)
    return _with_logits(network, card, data.classes)


def pretrained_network(data: PreparedData, start: Start) -> tuple[nn.Module, ModelCard]:
    """Return a network with its pretrained weights as they are, in eval mode, and its card.

    Its classes are those of the weights, or the data's where a class map says which these are.

    Raises:
        ModelError: unknown model or weights, a class map that does not fit, or images it cannot take.
        NotFiniteError: weights are NaN or infinite.
    """
    if start.weights is None:
        raise ModelError(f"model {start.model} has no weights; expected some; set 'weights'")
    network, card = load_pretrained(
        start.model,
        start.weights,
        stem_stride=start.stem_stride,
        options=start.options,
        preprocessing=start.preprocessing,
    )
    require_finite_weights(network, f"model {start.model}, weights {start.weights}")
    eyes = card.preprocessing
    if start.image_size is not None:
        eyes = replace(eyes, size=start.image_size)
    card = _seen_by(network, card, start.preprocessing.over(eyes))
    found = count_logits(network, start.model, card.preprocessing)
    if found != len(card.classes):
        raise ModelError(
            f"model {start.model} gives {found} logits, and its card names {len(card.classes)} classes; "
            "expected the same; correct the card, or load other weights"
        )
    if start.class_map is not None:
        return with_classes(network, card, start.class_map, data.classes)
    return network, card


def _seen_by(network: nn.Module, card: ModelCard, eyes: Preprocessing) -> ModelCard:
    """Return the card of a network that sees its images otherwise; it is fitted to their size."""
    architecture, source = card.architecture, source_of(card.architecture.name)
    if eyes.size != card.preprocessing.size:
        source.resize(network, eyes.size)
        options = {**architecture.options, **source.size_options(architecture.name, eyes.size)}
        architecture = replace(architecture, options=options)
    return replace(card, architecture=architecture, preprocessing=eyes)


def _with_logits(
    network: nn.Module, card: ModelCard, classes: tuple[str, ...]
) -> tuple[nn.Module, ModelCard]:
    """Return a network with a logit for each class, its last layer a fresh one where they were others.

    Raises:
        ModelError: it cannot take its images, or has no last layer that makes its logits.
    """
    name, wanted = card.architecture.name, len(classes)
    if count_logits(network, name, card.preprocessing) != wanted:
        network = network.network if isinstance(network, SelectedLogits) else network
        replace_head(network, wanted)
        architecture = replace(card.architecture, num_classes=wanted, selected=())
        card = replace(card, architecture=architecture)
        found = count_logits(network, name, card.preprocessing)
        if found != wanted:
            raise ModelError(
                f"model {name} gives {found} logits whatever its last linear layer is; expected {wanted}, "
                "the data's classes; choose another model"
            )
    return network, replace(card, classes=classes)


def _new_card(data: PreparedData, start: Start) -> ModelCard:
    source = source_of(start.model)
    size = start.preprocessing.size or start.image_size or source.image_size(start.model) or _own_size(data)
    channels = start.channels or data.channels
    own = Preprocessing(
        size=size, mean=_as_channels(data.mean, channels), std=_as_channels(data.std, channels)
    )
    eyes = start.preprocessing.over(own)
    architecture = Architecture(
        name=start.model,
        num_classes=len(data.classes),
        channels=eyes.channels,
        stem_stride=start.stem_stride or source.stem_stride(start.model, size),
        options={**source.size_options(start.model, size), **start.options},
    )
    require_room(architecture, size)
    return ModelCard(architecture=architecture, preprocessing=eyes, classes=data.classes)


def _as_channels(moments: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Return moments of the images as those of what a network of one or three channels sees of them."""
    if len(moments) == channels:
        return moments
    return (statistics.mean(moments),) * channels


def _own_size(data: PreparedData) -> int:
    shapes = data.train.shapes
    if (shapes != shapes[0, 0]).any():
        low, high = shapes.min(0).tolist(), shapes.max(0).tolist()
        raise DataError(
            f"the images are {low[0]}x{low[1]} to {high[0]}x{high[1]} pixels and data.image_size is not "
            "set; expected the side of the models' square input; set it, for example to 64"
        )
    return int(shapes[0, 0])
