"""State dicts without a card: weights that were trained elsewhere and saved by other programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.models.architecture import Architecture, build, source_of
from pipeline.models.auxiliary import auxiliary_prefixes, plain
from pipeline.models.checkpoint import ModelCard, load_found
from pipeline.models.heads import head_classes, head_of
from pipeline.models.tensor_files import read_content

# Of a network before it is known how many logits the weights are of.
_SOME_CLASSES = 2
_IMAGENET_SIZE = 224


def load_foreign(
    path: Path,
    name: str,
    eyes: Preprocessing,
    *,
    stem_stride: int | None,
    options: Mapping[str, Any],
) -> tuple[nn.Module, ModelCard]:
    """Build a network for a state dict and give it these weights, in eval mode; classes have no names.

    Args:
        path: of the tensors.
        name: of the model.
        eyes: how it wants its images.
        stem_stride: of the network; None for its source's own.
        options: keyword arguments of the network's builder.

    Raises:
        ModelError: not tensors, or not of this network.
    """
    source = source_of(name)
    content = read_content(path)
    architecture = plain(
        Architecture(
            name=name,
            num_classes=_SOME_CLASSES,
            channels=eyes.channels,
            stem_stride=stem_stride or source.stem_stride(name, _IMAGENET_SIZE),
            options={**source.size_options(name, eyes.size), **options},
        )
    )
    network = build(architecture)
    load_found(network, content, path, ignored=auxiliary_prefixes(architecture))
    num_classes = head_classes(head_of(network)[1])
    card = ModelCard(
        architecture=replace(architecture, num_classes=num_classes),
        preprocessing=eyes,
        classes=tuple(map(str, range(num_classes))),
    )
    return network.eval(), card
