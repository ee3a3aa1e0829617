"""The initial network of a run: fresh or pretrained weights, fitted to the data.

`python -m pipeline.models.pretrained CHECKPOINT.pt OUT.safetensors` converts a checkpoint to built-in form.
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
from pipeline.core.trust import NOTHING, Trust
from pipeline.modalities.families import CHECKPOINT_SUFFIXES, OWN_WEIGHTS, Pretrained
from pipeline.modalities.modality import Modality
from pipeline.modalities.prepared import PreparedData
from pipeline.modalities.preprocessing import GivenPreprocessing, Preprocessing
from pipeline.modalities.table import find_modality
from pipeline.models.architecture import Architecture, build, source_of
from pipeline.models.auxiliary import auxiliary_prefixes, plain, require_room
from pipeline.models.card import CardFile
from pipeline.models.checkpoint import (
    ModelCard,
    load_checkpoint,
    load_foreign,
    state_digest,
    tensors_digest,
)
from pipeline.models.class_map import ClassMap, count_logits, with_classes
from pipeline.models.embedder import EMBEDDING, Embedder, Normalise
from pipeline.models.heads import SelectedLogits, replace_head
from pipeline.models.own_code import OwnCode
from pipeline.samples.description import CLASSES
from pipeline.tasks.embedding import EMBEDDING as VECTORS
from pipeline.tasks.table import find_task


def load_pretrained(
    name: str,
    weights: str,
    *,
    stem_stride: int | None = None,
    options: Mapping[str, Any] | None = None,
    preprocessing: GivenPreprocessing | None = None,
    modality: Modality | None = None,
    task: str = CLASSES,
) -> tuple[nn.Module, ModelCard]:
    """Return a network with pretrained weights, in eval mode, and its card.

    Args:
        name: name of the architecture.
        weights: a built-in name, a name from the model's family (`pretrained` is its default), or the path
            of a checkpoint.
        stem_stride: stem stride for a state dict without a card; other weights define it themselves.
        options: keyword arguments of the builder, for such a state dict, a timm model or the user's code.
        preprocessing: required for a state dict without a card and for the user's code.
        modality: modality of its samples; None for images.
        task: of weights without a card, which does not tell it.

    Raises:
        ModelError: the weights are unknown, unavailable, or for a different architecture or modality.

    """
    modality = modality or find_modality()
    options, given = options or {}, preprocessing or modality.preprocessing_type()
    network, card, has_card = _loaded(name, weights, stem_stride, options, given, modality.name)
    card = card if has_card else replace(card, task=task)
    if card.modality != modality.name:
        raise ModelError(
            f"weights {weights} of {name} are for modality {quoted(card.modality)}; expected "
            f"{modality.name}; choose different weights"
        )
    return network, card


def _loaded(
    name: str,
    weights: str,
    stem_stride: int | None,
    options: Mapping[str, Any],
    given: GivenPreprocessing,
    modality: str,
) -> tuple[nn.Module, ModelCard, bool]:
    """Return a network, its card, and whether the card came with the weights."""
    source = source_of(name)
    packaged = source.packaged(name, weights)
    if packaged is not None:
        _require_own_form(weights, stem_stride, options)
        with as_file(packaged[0]) as folder:
            return *load_checkpoint(folder / packaged[1]), True
    if weights not in (OWN_WEIGHTS, *source.weight_names(name)) and _is_path(weights):
        path = Path(weights)
        found = _from_file(path, name, given, modality, stem_stride=stem_stride, options=options)
        return *found, path.with_suffix(".json").exists()
    _require_own_form(weights, stem_stride, {} if source.own_options else options)
    return *_complete(source.pretrained(name, weights, options), given, modality), False


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
        raise ModelError(f"{path}: {found}; expected a checkpoint; correct 'weights', or train it")
    if path.with_suffix(".json").exists():
        _require_own_form(str(path), stem_stride, options)
        return load_checkpoint(path, expected=name, trust=Trust(models={name: options}))
    preprocessing = given.alone(f"{path} has no card {path.stem}.json beside it, and")
    network, card = load_foreign(path, name, preprocessing, stem_stride=stem_stride, options=options)
    return network, replace(card, modality=modality)


def _complete(found: Pretrained, given: GivenPreprocessing, modality: str) -> tuple[nn.Module, ModelCard]:
    """Return a family's network and a card, completed from the user's preprocessing."""
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
    """Refuse a stem stride or options for weights that define them."""
    given = "stem_stride" if stem_stride is not None else "options" if options else None
    if given is not None:
        raise ModelError(
            f"{given} and weights ({weights}) are both set, but these weights fix it; remove one"
        )


def save_half(checkpoint: Path, out: Path, trust: Trust = NOTHING) -> str:
    """Write a checkpoint as half-precision safetensors with its card; return the network's digest.

    Batch-norm counters stay integers.

    Args:
        checkpoint: tensor file with its card beside it.
        out: safetensors file; the card beside it is written last.
        trust: code that the user named, for a card that names some.

    Raises:
        ModelError: the checkpoint cannot be loaded.
    """
    network, card = load_checkpoint(checkpoint, trust=trust)
    state = {n: t.half() if t.is_floating_point() else t for n, t in network.state_dict().items()}
    save_file(state, out)
    CardFile(card=card, weights_sha256=tensors_digest(state)).write(out.with_suffix(".json"))
    return state_digest(load_checkpoint(out, trust=trust)[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The starting point of a run: architecture, weights and preprocessing.

    Args:
        model: name of the architecture.
        weights: pretrained weights by name or path; None for fresh weights.
        size: extent of the input, e.g. pixels per side; None takes the weights' size, else the samples'.
        channels: 1 or 3 input channels of a network with fresh weights; None takes the images' number.
        stem_stride: 1, 2 or 4; None chooses by image size.
        options: keyword arguments of the architecture's builder.
        preprocessing: the user's preprocessing settings; they override all others.
        class_map: the data's classes -> the weights' classes; None if both are the same.
        output: the embedding that is the model's output, of a task of embeddings; None for the usual one.
        normalise: of embeddings: none, length or features.
    """

    model: str
    weights: str | None
    size: int | None = None
    channels: int | None = None
    stem_stride: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: GivenPreprocessing | None = None
    class_map: ClassMap | None = None
    output: str | None = None
    normalise: Normalise = "none"

    @property
    def embeds(self) -> bool:
        """Whether an embedding is asked for."""
        return self.output is not None or self.normalise != "none"

    def given(self, modality: Modality) -> GivenPreprocessing:
        """Return the user's preprocessing settings, empty if None."""
        given: GivenPreprocessing = self.preprocessing or modality.preprocessing_type()
        return given


def initial_network(data: PreparedData, start: Start, seed: int) -> tuple[nn.Module, ModelCard]:
    """Return a network for training on a dataset, and its card.

    Fresh weights are drawn from the seed. If pretrained weights have a different number of classes, their
    last layer is replaced by a fresh one.

    Raises:
        ModelError: the model or the weights are unknown, or the network cannot be fitted to the data.
        DataError: the images differ in size and `size` is not set.
    """
    torch.manual_seed(seed)
    if start.weights is None:
        card = _new_card(data, start)
        network, card = _as_task_asks(build(card.architecture), card, data, start)
    else:
        network, card = pretrained_network(data, start)
    if not find_task(data.task).names_outputs:
        return network, card
    return _with_logits(network, replace(card, task=data.task), data.classes)


def pretrained_network(
    data: PreparedData, start: Start, *, encodes: bool = False
) -> tuple[nn.Module, ModelCard]:
    """Return a network with unchanged pretrained weights, in eval mode, and its card.

    Its classes are those of the weights, or the data's classes if a class map is given. Under a task of
    embeddings, its output is an embedding.

    Args:
        data: the prepared data.
        start: the network and its weights.
        encodes: whether it may give embeddings under any task, if `output` or `normalise` asks for them.

    Raises:
        ModelError: the model or the weights are unknown, the class map does not fit, or the network fails
            on the images.
        NotFiniteError: weights are NaN or infinite.
    """
    if start.weights is None:
        raise ModelError(f"model {start.model} needs pretrained weights; set 'weights'")
    network, card = load_pretrained(
        start.model,
        start.weights,
        stem_stride=start.stem_stride,
        options=start.options,
        preprocessing=start.preprocessing,
        modality=data.modality,
        task=data.task,
    )
    require_finite_weights(network, f"model {start.model}, weights {start.weights}")
    preprocessing = card.preprocessing
    if start.size is not None:
        preprocessing = preprocessing.with_size(start.size)
    preprocessing = start.given(data.modality).over(preprocessing)
    card = _seen_by(network, card, data.modality.measured(preprocessing, data.train))
    found = count_logits(network, start.model, card.preprocessing)
    if found != len(card.classes):
        raise ModelError(
            f"model {start.model} returns {found} logits, but its card lists {len(card.classes)} classes; "
            "correct the card, or load different weights"
        )
    if start.class_map is not None:
        network, card = with_classes(network, card, start.class_map, data.classes)
    if encodes and start.embeds and find_task(data.task).names_outputs:
        return _encoder(network, card, start)
    return _as_task_asks(network, card, data, start)


def _as_task_asks(
    network: nn.Module, card: ModelCard, data: PreparedData, start: Start
) -> tuple[nn.Module, ModelCard]:
    """Return a network with the kind of output that the data's task is of, and its card.

    Raises:
        ModelError: the network's code says that it is of another task, an embedding is asked for under a
            task without one, or a class map without classes.
    """
    task, said = find_task(data.task), getattr(network, "task", None)
    if isinstance(said, str) and said != data.task:
        raise ModelError(
            f"model {start.model} says that it is of task {quoted(said)}, and the data is of task "
            f"{quoted(data.task)}; expected the same; set data.task, or use another model"
        )
    if task.names_outputs:
        if start.output is not None or start.normalise != "none":
            raise ModelError(
                f"model {start.model} has output {quoted(start.output)} and normalise {start.normalise}, "
                f"and task {data.task} takes an output per class; expected neither; remove them, or set "
                "data.task: embedding"
            )
        return network, card
    if start.class_map is not None:
        raise ModelError(
            f"model {start.model} has a class_map, and outputs of task {data.task} have no classes; "
            "expected none; remove it"
        )
    return _embedded(network, replace(card, task=data.task), _output_of(start), start.normalise)


def _encoder(network: nn.Module, card: ModelCard, start: Start) -> tuple[nn.Module, ModelCard]:
    """Return a network that gives embeddings under a task of other outputs, for dumps that get a head."""
    if start.class_map is not None:
        raise ModelError(
            f"model {start.model} has a class_map and output {quoted(start.output)}, and an embedding has "
            "no classes; expected one of them; remove one"
        )
    return _embedded(network, replace(card, task=VECTORS.name), _output_of(start), start.normalise)


def _output_of(start: Start) -> str:
    usual = "" if isinstance(source_of(start.model), OwnCode) else EMBEDDING
    return usual if start.output is None else start.output


def _embedded(
    network: nn.Module, card: ModelCard, output: str, normalise: Normalise
) -> tuple[nn.Module, ModelCard]:
    """Return a network whose output is an embedding, and its card, which numbers the features."""
    name, was_training = card.architecture.name, network.training
    for prefix in auxiliary_prefixes(card.architecture):
        # Auxiliary heads name classes, which an embedding does not have.
        setattr(network, prefix.removesuffix("."), None)
        network.aux_logits = False  # type: ignore[assignment]
    if output or normalise != "none":
        network = Embedder(network, output, normalise)
    width = count_logits(network, name, card.preprocessing)
    if isinstance(network, Embedder):
        network.widen(width)
    architecture = replace(
        plain(card.architecture),
        output=output,
        normalise=normalise,
        width=width if normalise == "features" else 0,
    )
    classes = tuple(map(str, range(width)))
    return network.train(was_training), replace(card, architecture=architecture, classes=classes)


def _seen_by(network: nn.Module, card: ModelCard, preprocessing: Preprocessing) -> ModelCard:
    """Return the card with a different preprocessing; the network is resized if the size differs."""
    architecture, source = card.architecture, source_of(card.architecture.name)
    if preprocessing.side != card.preprocessing.side:
        source.resize(network, preprocessing.side)
        options = {**architecture.options, **source.size_options(architecture.name, preprocessing.side)}
        architecture = replace(architecture, options=options)
    return replace(card, architecture=architecture, preprocessing=preprocessing)


def _with_logits(
    network: nn.Module, card: ModelCard, classes: tuple[str, ...]
) -> tuple[nn.Module, ModelCard]:
    """Return a network with one logit per class, and its card; a last layer of another size is replaced.

    Raises:
        ModelError: the network fails on its images, or its logits do not come from a last layer.
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
                f"model {name} always returns {found} logits, whatever its last linear layer; expected "
                f"{wanted}, one per class of the data; choose a different model"
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
    preprocessing = source.fitted(start.model, own, given)
    preprocessing = data.modality.measured(preprocessing, data.train)
    size = preprocessing.side
    architecture = Architecture(
        name=start.model,
        num_classes=len(data.classes),
        channels=preprocessing.channels,
        stem_stride=start.stem_stride or source.stem_stride(start.model, size),
        options={**source.fitted_options(start.model, preprocessing), **start.options},
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
