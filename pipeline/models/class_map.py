"""Map the data's classes to those of a teacher with different classes; probe a network with two samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.core.errors import ConfigError, ModelError, did_you_mean
from pipeline.core.text import read_yaml
from pipeline.modalities.preprocessing import Preprocessing
from pipeline.models.architecture import source_of
from pipeline.models.checkpoint import ModelCard
from pipeline.models.heads import SelectedLogits, find_head, select_classes

# The data's class name -> the teacher's class name or index, e.g. {"cat": 281}.
ClassMap = Mapping[str, str | int]
_RELATIVE_DIFFERENCE = 1e-3


def count_logits(network: nn.Module, name: str, preprocessing: Preprocessing) -> int:
    """Return the number of logits per image of a network on the CPU.

    Args:
        network: its mode is restored afterwards.
        name: model name, for errors.
        preprocessing: preprocessing of its images.

    Raises:
        ModelError: the network fails on such images, or its output is not logits (B, C).
    """
    outputs = try_out(network, name, preprocessing.normalise(preprocessing.example(2)))
    if outputs.ndim != 2 or len(outputs) != 2:
        raise ModelError(
            f"model {name} returns shape {tuple(outputs.shape)} for two samples; expected logits (2, C); "
            "choose a different model"
        )
    return outputs.shape[1]


@torch.inference_mode()
def try_out(network: nn.Module, name: str, inputs: Tensor) -> Tensor:
    """Return a network's output for one batch in evaluation mode, e.g. images (B, channels, S, S).

    Raises:
        ModelError: the network fails on the input, or returns no tensor.
    """
    was_training = network.training
    network.eval()
    try:
        outputs = network(inputs)
    except Exception as error:  # a network may raise anything for unsuitable images
        smallest = source_of(name).smallest_size(name)
        small = smallest is not None and inputs.shape[-1] < smallest
        need = f"at least {smallest} pixels" if small else "a size that it supports"
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(
            f"model {name} cannot take {_in_words(inputs)} ({reason}); expected {need}; set "
            "data.image_size, or size in the model's preprocessing"
        ) from error
    finally:
        network.train(was_training)
    if not isinstance(outputs, Tensor):
        raise ModelError(
            f"model {name} returns a {type(outputs).__name__} in evaluation; expected a tensor of logits "
            "(B, C)"
        )
    return outputs


def _in_words(inputs: Tensor) -> str:
    if inputs.ndim != 4:
        return f"an input of shape {tuple(inputs.shape)}"
    _, channels, height, width = inputs.shape
    return f"images of {height}x{width} pixels and {channels} channels"


def read_class_map(path: Path) -> ClassMap:
    """Read a class map from YAML or JSON.

    Raises:
        ConfigError: the file is missing or not a class map.
    """
    try:
        content = read_yaml(path)  # JSON is YAML
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; expected a class map (YAML or JSON)") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not YAML or JSON ({error})") from None
    if not isinstance(content, dict) or not all(
        isinstance(value, str | int) and not isinstance(value, bool) for value in content.values()
    ):
        raise ConfigError(
            f"{path}: expected a mapping from each class of the data to a name or number of the teacher's "
            "classes"
        )
    return {str(key): value for key, value in content.items()}


def chosen_classes(mapping: ClassMap, theirs: Sequence[str], ours: Sequence[str]) -> tuple[int, ...]:
    """Return the teacher's class index for each class of the data.

    Args:
        mapping: the data's class names -> the teacher's names or indices.
        theirs: the teacher's class names, in the order of its logits.
        ours: the data's class names, in order.

    Raises:
        ModelError: a class is missing or unknown, or two classes map to the same one.
    """
    missing = [name for name in ours if name not in mapping]
    unknown = next((name for name in mapping if name not in ours), None)
    if unknown is not None:
        hint = did_you_mean(unknown, missing or ours)
        raise ModelError(
            f"class_map has {unknown!r}, which is not a class of the data; remove or rename it{hint}"
        )
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(
            f"class_map lacks the data's class {missing[0]!r}{more}; expected every class once; add it"
        )
    chosen = tuple(_place(name, mapping[name], theirs) for name in ours)
    for place, name in zip(chosen, ours, strict=True):
        first = ours[chosen.index(place)]
        if first != name:
            raise ModelError(
                f"class_map maps both {first!r} and {name!r} to the teacher's {theirs[place]!r}; expected "
                "a different class for each; change one"
            )
    return chosen


def _place(name: str, wanted: str | int, theirs: Sequence[str]) -> int:
    if isinstance(wanted, int):
        if not 0 <= wanted < len(theirs):
            raise ModelError(
                f"class_map maps {name!r} to the teacher's class {wanted}; expected 0 to "
                f"{len(theirs) - 1}, or a name"
            )
        return wanted
    places = [place for place, known in enumerate(theirs) if known == wanted]
    if not places:
        raise ModelError(
            f"class_map maps {name!r} to {wanted!r}, which the teacher does not have; expected one of its "
            f"{len(theirs)} class names, or a number{did_you_mean(wanted, theirs)}"
        )
    if len(places) > 1:
        raise ModelError(
            f"class_map maps {name!r} to {wanted!r}, but the teacher has several such classes, "
            f"{' and '.join(map(str, places))}; use a number instead"
        )
    return places[0]


def with_classes(
    network: nn.Module, card: ModelCard, mapping: ClassMap, classes: tuple[str, ...]
) -> tuple[nn.Module, ModelCard]:
    """Return a network with the data's classes only, and its card.

    If the last layer produces the logits, its rows are selected: the network gets smaller, and its features
    still yield the logits. Otherwise the logits are selected.

    Args:
        network: on the CPU, in eval mode.
        card: the network's card.
        mapping: the data's class names -> the teacher's names or indices.
        classes: the data's class names, in order.

    Raises:
        ModelError: the mapping does not fit.
    """
    chosen = chosen_classes(mapping, card.classes, classes)
    narrow = _narrowed(network, card, chosen)
    if narrow is not None:
        architecture = replace(card.architecture, num_classes=len(chosen))
        return narrow, replace(card, architecture=architecture, classes=classes)
    kept = (
        tuple(card.architecture.selected[place] for place in chosen)
        if card.architecture.selected
        else chosen
    )
    inner = network.network if isinstance(network, SelectedLogits) else network
    architecture = replace(card.architecture, selected=kept)
    return SelectedLogits(inner, kept), replace(card, architecture=architecture, classes=classes)


def _narrowed(network: nn.Module, card: ModelCard, chosen: tuple[int, ...]) -> nn.Module | None:
    """Return a network with the chosen rows of its last layer, or None if they do not yield its logits."""
    if find_head(network) is None or isinstance(network, SelectedLogits):
        return None
    preprocessing, name = card.preprocessing, card.architecture.name
    noise = torch.Generator().manual_seed(0)
    images = preprocessing.normalise(preprocessing.example(2, noise))
    expected = try_out(network, name, images)[:, list(chosen)]
    narrow = deepcopy(network)
    select_classes(narrow, chosen)
    found = try_out(narrow, name, images)
    alike = found.shape == expected.shape and torch.allclose(
        found, expected, rtol=_RELATIVE_DIFFERENCE, atol=_RELATIVE_DIFFERENCE * float(expected.abs().max())
    )
    return narrow if alike else None
