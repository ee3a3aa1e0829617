"""A model on disk: tensors in one file, everything else in a card beside it.

`NAME.pt` is a state dict for `torch.load(weights_only=True)`. `NAME.json`, the card, holds architecture,
preprocessing and classes. Pickled code is never written or read. State dicts from other programs have no
card; the user's parameters replace it. Owns the pair: `card.py` owns the card, `tensor_files.py` the tensor
files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.core.errors import ModelError, did_you_mean, quoted
from pipeline.core.failures import require_finite_weights
from pipeline.core.files import write_tensors
from pipeline.core.hashing import named_arrays_digest
from pipeline.core.progress import note
from pipeline.core.trust import NOTHING, Trust, require_plain_options
from pipeline.modalities.preprocessing import Preprocessing
from pipeline.models.architecture import Architecture, build, source_of
from pipeline.models.auxiliary import auxiliary_prefixes, plain, without_auxiliary
from pipeline.models.card import CardFile, ModelCard
from pipeline.models.heads import find_head, head_classes, head_of, match_head
from pipeline.models.own_code import OwnCode
from pipeline.models.states import Network, StateDict, complete, find_state, misfit, named_tensors
from pipeline.models.tensor_files import read_content

__all__ = [
    "ModelCard",
    "load_checkpoint",
    "load_found",
    "load_state",
    "read_tensors",
    "save_checkpoint",
    "state_digest",
    "tensors_digest",
]
# A placeholder until the weights tell the number of logits.
_SOME_CLASSES = 2
_IMAGENET_SIZE = 224


def save_checkpoint(path: Path, state: StateDict, card: ModelCard) -> None:
    """Write tensors to `path` and the card beside it, each atomically, without auxiliary heads."""
    kept = without_auxiliary(state, card.architecture)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in kept.items()}
    write_tensors(path, tensors)
    kept_card = replace(card, architecture=plain(card.architecture))
    CardFile(card=kept_card, weights_sha256=tensors_digest(tensors)).write(path.with_suffix(".json"))


def load_checkpoint(
    path: Path, *, expected: str | None = None, trust: Trust = NOTHING
) -> tuple[nn.Module, ModelCard]:
    """Load a checkpoint: return its network in eval mode, and its card.

    Args:
        path: tensor file; the card is expected beside it.
        expected: expected model name; a card with a different name is refused before anything is built.
        trust: code that the user named; a card that names different code is refused before any import.

    Raises:
        ModelError: a file is missing, damaged or not a checkpoint; the tensors do not fit the card's
            network; or the card names code that the user did not name.

    """
    card_path = path.with_suffix(".json")
    if not path.exists() and not card_path.exists():
        hint = did_you_mean(path.name, (other.name for other in path.parent.glob(f"*{path.suffix}")))
        raise ModelError(f"{path}: no such file; expected a checkpoint{hint}")
    file = CardFile.read(card_path)
    card, name = file.card, file.card.architecture.name
    if expected is not None and not _is_named(name, expected):
        raise ModelError(
            f"{path}: weights are for {quoted(name)[1:-1]}; expected {expected}; correct 'model' or "
            "'weights'"
        )
    _require_trusted(card.architecture, card_path, trust)
    content = read_content(path)
    _require_undamaged(content, file, path)
    network = build(card.architecture)
    # The user's own code may not accept a number of classes.
    load_found(network, content, path, any_classes=isinstance(source_of(name), OwnCode))
    return network.eval(), card


def read_tensors(path: Path) -> StateDict:
    """Read the named tensors of a file without executing anything.

    If a training script saved more, the part under e.g. `state_dict` or `model` is returned.

    Raises:
        ModelError: the file is missing or has no named tensors.

    """
    tensors = named_tensors(read_content(path))
    if tensors is None:
        raise ModelError(
            f"{path}: contains no named tensors; expected a plain state dict, or one under 'state_dict' "
            "or 'model'; save it in that form"
        )
    return tensors


def load_found(
    network: nn.Module,
    content: object,
    origin: Path,
    *,
    any_classes: bool = True,
    ignored: Collection[str] = (),
) -> None:
    """Find a network's tensors in a file's content, load them, and note the choice.

    Args:
        network: its last layer is replaced if the weights have a different number of classes.
        content: content of the file.
        origin: the file, for errors.
        any_classes: whether the last layer may be replaced.
        ignored: prefixes of names to skip silently.

    Raises:
        ModelError: tensors are missing, do not fit, or have a wrong type.
    """
    state, told = find_state(content, _asked_for(network), origin)
    if any_classes:
        match_head(network, state)
    _say(origin, told)
    load_state(network, state, origin, ignored=ignored)


def load_state(
    network: nn.Module, state: StateDict, origin: Path | str, *, ignored: Collection[str] = ()
) -> None:
    """Load tensors of the same names and shapes into a network, in any floating-point precision.

    Prefixes added by wrappers are stripped, e.g. `module.`.

    Raises:
        ModelError: names or shapes differ; the message lists them.
        NotFiniteError: tensors are NaN or infinite.

    """
    wanted, own = _asked_for(network), network.state_dict()
    found, told = find_state(state, wanted, origin) if state else (state, ())
    fitted, more = complete(found, wanted, own, ignored)
    given = {name: tuple(tensor.shape) for name, tensor in fitted.items()}
    problem = misfit(wanted.shapes, given, wanted.head)
    if problem is not None:
        raise ModelError(f"{origin}: does not fit the network: {problem}")
    _require_floats(fitted, own, origin)
    _say(origin, (*told, *more))
    try:
        network.load_state_dict(fitted)
    except (RuntimeError, TypeError) as error:  # e.g. of quantised or sparse tensors
        reason = " ".join(str(error).split())
        raise ModelError(f"{origin}: tensors cannot be loaded ({reason}); save them as float32") from None
    require_finite_weights(network, origin)


def _require_floats(state: StateDict, own: StateDict, origin: Path | str) -> None:
    """Refuse integer, boolean and complex weights, which torch would convert silently."""
    for name, tensor in state.items():
        if own[name].is_floating_point() and not tensor.is_floating_point():
            raise ModelError(
                f"{origin}: {name} is {str(tensor.dtype).removeprefix('torch.')}; expected floating-point "
                "numbers, because quantised weights have different values; save them as float32"
            )


def state_digest(network: nn.Module) -> str:
    """Return the SHA-256 (hex) of a network's tensors, on any device."""
    return tensors_digest(network.state_dict())


def tensors_digest(state: StateDict) -> str:
    """Return the SHA-256 (hex) of named tensors: their names, types, shapes and values."""
    return named_arrays_digest({name: _array(tensor.detach().cpu()) for name, tensor in state.items()})


def _array(tensor: Tensor) -> NDArray[np.generic]:
    """Return a tensor as a NumPy array, or as bytes if NumPy lacks the dtype."""
    try:
        array: NDArray[np.generic] = tensor.numpy()
    except TypeError:  # bfloat16, float8
        array = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return array


def _asked_for(network: nn.Module) -> Network:
    head = find_head(network)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    return Network(shapes=shapes, head=None if head is None else head[0])


def _is_named(name: str, expected: str) -> bool:
    """Whether a card's model is the expected one; timm may append a weights tag, `timm:NAME.TAG`."""
    return name == expected or (expected.startswith("timm:") and name.startswith(f"{expected}."))


def _require_trusted(architecture: Architecture, card: Path, trust: Trust) -> None:
    name, options = architecture.name, architecture.options
    source = source_of(name)
    if isinstance(source, OwnCode):
        trust.require_code(name, options, str(card))
        return
    require_plain_options(name, options, str(card))
    try:
        source.require_alone(name, options)
    except ModelError as error:
        raise ModelError(f"{card}: {error}") from None


def _require_undamaged(content: object, file: CardFile, path: Path) -> None:
    """Refuse tensors that contradict the card's digest, if it has one."""
    if file.weights_sha256 is None:
        return
    tensors = named_tensors(content)
    if tensors is None or tensors_digest(tensors) != file.weights_sha256:
        raise ModelError(
            f"{path}: weights do not match {path.stem}.json: the file has changed, or was replaced; copy "
            "both again, or run the stage that writes them (pipeline train-teacher or train-student)"
        )


def _say(origin: Path | str, told: Iterable[str]) -> None:
    if line := "; ".join(told):
        note(f"{origin}: {line}")


def load_foreign(
    path: Path,
    name: str,
    preprocessing: Preprocessing,
    *,
    stem_stride: int | None,
    options: Mapping[str, Any],
) -> tuple[nn.Module, ModelCard]:
    """Load a state dict without a card: return a network in eval mode, and a card with numbered classes.

    Args:
        path: tensor file.
        name: model name.
        preprocessing: preprocessing of its images.
        stem_stride: stem stride; None for the family's default.
        options: keyword arguments of the network's builder.

    Raises:
        ModelError: the file holds no tensors, or they do not fit this network.
    """
    source = source_of(name)
    content = read_content(path)
    architecture = plain(
        Architecture(
            name=name,
            num_classes=_SOME_CLASSES,
            channels=preprocessing.channels,
            stem_stride=stem_stride or source.stem_stride(name, _IMAGENET_SIZE),
            options={**source.size_options(name, preprocessing.side), **options},
        )
    )
    network = build(architecture)
    load_found(network, content, path, ignored=auxiliary_prefixes(architecture))
    num_classes = head_classes(head_of(network)[1])
    card = ModelCard(
        architecture=replace(architecture, num_classes=num_classes),
        preprocessing=preprocessing,
        classes=tuple(map(str, range(num_classes))),
    )
    return network.eval(), card
