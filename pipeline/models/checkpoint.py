"""A model on disk: tensors alone in one file, a card with everything else beside it.

`NAME.pt` is a state dict that `torch.load(weights_only=True)` reads; `NAME.json` says how to build the
network, how it wants its images, and which classes it knows. No pickle of code is ever written or read.
"""

from __future__ import annotations

import json
import pickle
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from pipeline.digests import named_arrays_digest
from pipeline.errors import ModelError
from pipeline.failures import require_finite_weights
from pipeline.files import write_json, write_tensors
from pipeline.models.architecture import Architecture, build, source_of
from pipeline.models.auxiliary import plain, without_auxiliary
from pipeline.models.heads import find_head, match_head
from pipeline.models.own_code import OwnCode
from pipeline.models.preprocessing import Preprocessing
from pipeline.models.states import StateDict, misfit, unwrapped, without_prefix


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What the tensors of a checkpoint are.

    Args:
        architecture: how to build the network.
        preprocessing: how it wants its images.
        classes: names of its logits, in order.

    """

    architecture: Architecture
    preprocessing: Preprocessing
    classes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the card as plain values."""
        return {
            "architecture": self.architecture.to_dict(),
            "preprocessing": self.preprocessing.to_dict(),
            "classes": list(self.classes),
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> ModelCard:
        """Return the card that `to_dict` described."""
        return cls(
            architecture=Architecture.from_dict(value["architecture"]),
            preprocessing=Preprocessing.from_dict(value["preprocessing"]),
            classes=tuple(value["classes"]),
        )


def save_checkpoint(path: Path, state: StateDict, card: ModelCard) -> None:
    """Write `path` (tensors) and its `.json` card, each atomically; auxiliary heads are left out."""
    kept = without_auxiliary(state, card.architecture)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in kept.items()}
    write_tensors(path, tensors)
    write_json(path.with_suffix(".json"), replace(card, architecture=plain(card.architecture)).to_dict())


def load_checkpoint(path: Path, *, expected: str | None = None) -> tuple[nn.Module, ModelCard]:
    """Build the network of a checkpoint and its card, with the checkpoint's weights, in eval mode.

    A card may name a model of somebody's own code, which is run then.

    Args:
        path: of the tensors; the card lies beside it.
        expected: name of the model; a card of another one is refused before anything is built.

    Raises:
        ModelError: a file is missing, not a checkpoint, or not of the network that its card names.

    """
    card = _read_card(path)
    name = card.architecture.name
    # timm's weights have a tag behind the name.
    if expected is not None and name != expected and not name.startswith(f"{expected}."):
        raise ModelError(f"{path}: weights of {name}; expected {expected}; correct 'model' or 'weights'")
    network, state = build(card.architecture), read_tensors(path)
    if isinstance(source_of(name), OwnCode):
        # It may not take the number of classes.
        match_head(network, state)
    load_state(network, state, path)
    return network.eval(), card


def _read_card(path: Path) -> ModelCard:
    card_path = path.with_suffix(".json")
    try:
        return ModelCard.from_dict(json.loads(card_path.read_text()))
    except FileNotFoundError:
        raise ModelError(
            f"{card_path}: no such file; expected the card beside {path.name}; run the stage that "
            "writes it (pipeline train-teacher or train-student)"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{card_path}: not a model card ({error}); write it again") from None


def read_tensors(path: Path) -> StateDict:
    """Read a state dict from `.safetensors` or from a torch file without executing anything.

    Of what training scripts save, the part under `state_dict`, `model` or the like.

    Raises:
        ModelError: no such file, or not tensors alone.

    """
    if path.is_dir():
        raise ModelError(f"{path}: a folder; expected a checkpoint, a file; name it")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols, before it refuses them
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; expected a checkpoint") from None
    except (
        # What torch's restricted unpickler raises depends on the first wrong byte.
        *(pickle.UnpicklingError, RuntimeError, EOFError, SafetensorError),
        *(LookupError, ValueError, TypeError, AttributeError),
    ) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(
            f"{path}: not a checkpoint of tensors alone ({reason}); expected a state dict or "
            "safetensors; save it again as one"
        ) from None
    tensors = unwrapped(state)
    if tensors is None:
        raise ModelError(
            f"{path}: holds more than tensors; expected a plain state dict, or one under 'state_dict' or "
            "'model'; save it again as one"
        )
    return tensors


def load_state(network: nn.Module, state: StateDict, origin: Path | str) -> None:
    """Put tensors into a network of the same names and shapes, whatever their precision.

    Prefixes that wrappers put before all names are taken off.

    Raises:
        ModelError: names or shapes differ; the message lists them.
        NotFiniteError: tensors are NaN or infinite.

    """
    own = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    state = without_prefix(state, own)
    head = find_head(network)
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    problem = misfit(own, given, None if head is None else head[0])
    if problem is not None:
        raise ModelError(f"{origin}: does not fit the network: {problem}")
    network.load_state_dict(state)
    require_finite_weights(network, origin)


def state_digest(network: nn.Module) -> str:
    """Return the SHA-256 (hex) of a network's tensors, whatever device they are on."""
    state = network.state_dict()
    return named_arrays_digest({name: tensor.cpu().numpy() for name, tensor in state.items()})
