"""What a run begins with: fresh or pretrained weights, by name or from a checkpoint, that fit the data.

`python -m pipeline.models.pretrained CHECKPOINT.pt OUT.safetensors` makes a built-in file of a checkpoint.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import as_file
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.core.errors import ModelError, quoted
from pipeline.core.failures import require_finite_weights
from pipeline.core.trust import Trust
from pipeline.modalities.families import CHECKPOINT_SUFFIXES, OWN_WEIGHTS, Pretrained
from pipeline.modalities.modality import Modality
from pipeline.modalities.prepared import PreparedData
from pipeline.modalities.preprocessing import GivenPreprocessing, Preprocessing
from pipeline.modalities.table import find_modality
from pipeline.models.architecture import Architecture, build, source_of
from pipeline.models.auxiliary import require_room
from pipeline.models.card import CardFile
from pipeline.models.checkpoint import (
    ModelCard,
    load_checkpoint,
    load_foreign,
    state_digest,
    tensors_digest,
)
from pipeline.models.class_map import ClassMap, count_logits, with_classes
from pipeline.models.heads import SelectedLogits, replace_head


def load_pretrained(
    name: str,
    weights: str,
    *,
    stem_stride: int | None = None,
    options: Mapping[str, Any] | None = None,
    preprocessing: GivenPreprocessing | None = None,
    modality: Modality | None = None,
) -> tuple[nn.Module, ModelCard]:
    """Return a network with pretrained weights, in eval mode, and its card.

    Args:
        name: of the architecture.
        weights: a built-in name; one of the model's source, `pretrained` for its default; or the path of a
            checkpoint.
        stem_stride: of a state dict without a card; other weights have their own.
        options: keyword arguments of the builder: of such a state dict, a timm model or one's own code.
        preprocessing: of a state dict without a card or one's own code, which do not say theirs.
        modality: of its samples; None for images.

    Raises:
        ModelError: there are no such weights, they cannot be had, or they are of another architecture or
            modality.

    """
    modality = modality or find_modality()
    options, given = options or {}, preprocessing or modality.preprocessing_type()
    network, card = _loaded(name, weights, stem_stride, options, given, modality.name)
    if card.modality != modality.name:
        raise ModelError(
            f"weights {weights} of {name} are of a model of {quoted(card.modality)}; expected one of "
            f"{modality.name}; choose others"
        )
    return network, card


def _loaded(
    name: str,
    weights: str,
    stem_stride: int | None,
    options: Mapping[str, Any],
    given: GivenPreprocessing,
    modality: str,
) -> tuple[nn.Module, ModelCard]:
    source = source_of(name)
    packaged = source.packaged(name, weights)
    if packaged is not None:
        _require_own_form(weights, stem_stride, options)
        with as_file(packaged[0]) as folder:
            return load_checkpoint(folder / packaged[1])
    if weights not in (OWN_WEIGHTS, *source.weight_names(name)) and _is_path(weights):
        return _from_file(Path(weights), name, given, modality, stem_stride=stem_stride, options=options)
    _require_own_form(weights, stem_stride, {} if source.own_options else options)
    return _complete(source.pretrained(name, weights, options), given, modality)


def _is_path(weights: str) -> bool:
    return os.sep in weights or weights.endswith(CHECKPOINT_SUFFIXES) or Path(weights).exists()


def _from_file(
    path: Path,
    name: str,
    given: GivenPreprocessing,
    modality: str,
    *,
    stem_stride: int | None,
    options: Mapping[str, Any],
) -> tuple[nn.Module, ModelCard]:
    if not path.is_file():
        found = "not a file" if path.exists() else "no such file"
        raise ModelError(f"{path}: {found}; expected a checkpoint; correct 'weights', or make it")
    if path.with_suffix(".json").exists():
        _require_own_form(str(path), stem_stride, options)
        return load_checkpoint(path, expected=name, trust=Trust(models={name: options}))
    preprocessing = given.alone(f"{path} has no card {path.stem}.json beside it, and")
    network, card = load_foreign(path, name, preprocessing, stem_stride=stem_stride, options=options)
    return network, replace(card, modality=modality)


def _complete(found: Pretrained, given: GivenPreprocessing, modality: str) -> tuple[nn.Module, ModelCard]:
    """Return a source's network with a card, and the user's word for what the source does not say."""
    preprocessing, classes = found.preprocessing, found.classes
    if preprocessing is None:
        preprocessing = given.alone(f"model {found.name}")
    if classes is None:
        classes = tuple(map(str, range(count_logits(found.network, found.name, preprocessing))))
    architecture = Architecture(
        name=found.name, num_classes=len(classes), channels=preprocessing.channels, options=found.options
    )
    card = ModelCard(
        architecture=architecture, preprocessing=preprocessing, classes=classes, modality=modality
    )
    return found.network, card


def _require_own_form(weights: str, stem_stride: int | None, options: Mapping[str, Any]) -> None:
    """Refuse to change the form of a network whose weights say it."""
    given = "stem_stride" if stem_stride is not None else "options" if options else None
    if given is not None:
        raise ModelError(
            f"{given} and weights ({weights}) are both set; these weights have their own form; remove one"
        )


def save_half(checkpoint: Path, out: Path) -> str:
    """Write a checkpoint as half-precision safetensors with its card; return the network's digest.

    Batch-norm counters, which evaluation does not use, keep their integers.
    """
    network, card = load_checkpoint(checkpoint)
    state = {n: t.half() if t.is_floating_point() else t for n, t in network.state_dict().items()}
    save_file(state, out)
    CardFile(card=card, weights_sha256=tensors_digest(state)).write(out.with_suffix(".json"))
    return state_digest(load_checkpoint(out)[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a run begins with.

    Args:
        model: name of the architecture.
        weights: pretrained weights by name or path; None for fresh ones.
        size: extent of its input, of images a side in pixels; None takes the weights', or else the
            samples' own.
        channels: 1 or 3 that a network with fresh weights sees; None takes the images' own.
        stem_stride: 1, 2 or 4; None suits it to the image size.
        options: keyword arguments of the architecture's builder.
        preprocessing: what is said of how it wants its images; it stands over everything else.
        class_map: which of the weights' classes the data's are; None for the same ones.
    """

    model: str
    weights: str | None
    size: int | None = None
    channels: int | None = None
    stem_stride: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: GivenPreprocessing | None = None
    class_map: ClassMap | None = None

    def given(self, modality: Modality) -> GivenPreprocessing:
        """Return what is said of the preprocessing; nothing where it is None."""
        given: GivenPreprocessing = self.preprocessing or modality.preprocessing_type()
        return given


def initial_network(data: PreparedData, start: Start, seed: int) -> tuple[nn.Module, ModelCard]:
    """Return a network that fits a dataset, to be trained, and its card.

    Fresh weights are drawn from the seed. Pretrained weights of another number of classes get a fresh
    last layer.

    Raises:
        ModelError: unknown model or weights, or a network that cannot be fitted.
        DataError: the images differ in size and no `size` says what the network shall see.
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
        modality=data.modality,
    )
    require_finite_weights(network, f"model {start.model}, weights {start.weights}")
    preprocessing = card.preprocessing
    if start.size is not None:
        preprocessing = preprocessing.with_size(start.size)
    card = _seen_by(network, card, start.given(data.modality).over(preprocessing))
    found = count_logits(network, start.model, card.preprocessing)
    if found != len(card.classes):
        raise ModelError(
            f"model {start.model} gives {found} logits, and its card names {len(card.classes)} classes; "
            "expected the same; correct the card, or load other weights"
        )
    if start.class_map is not None:
        return with_classes(network, card, start.class_map, data.classes)
    return network, card


def _seen_by(network: nn.Module, card: ModelCard, preprocessing: Preprocessing) -> ModelCard:
    """Return the card of a network that sees its images otherwise; it is fitted to their size."""
    architecture, source = card.architecture, source_of(card.architecture.name)
    if preprocessing.size != card.preprocessing.size:
        source.resize(network, preprocessing.size)
        options = {**architecture.options, **source.size_options(architecture.name, preprocessing.size)}
        architecture = replace(architecture, options=options)
    return replace(card, architecture=architecture, preprocessing=preprocessing)


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
    given = start.given(data.modality)
    own = data.modality.fresh_preprocessing(
        data.train,
        data.statistics,
        size=given.size or start.size or source.image_size(start.model),
        channels=start.channels,
    )
    preprocessing, size = given.over(own), own.size
    architecture = Architecture(
        name=start.model,
        num_classes=len(data.classes),
        channels=preprocessing.channels,
        stem_stride=start.stem_stride or source.stem_stride(start.model, size),
        options={**source.size_options(start.model, size), **start.options},
    )
    require_room(architecture, size)
    return ModelCard(
        architecture=architecture,
        preprocessing=preprocessing,
        classes=data.classes,
        modality=data.modality.name,
        task=data.task,
    )


if __name__ == "__main__":
    print(save_half(Path(sys.argv[1]), Path(sys.argv[2])))
