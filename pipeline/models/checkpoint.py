"""A model on disk: tensors alone in one file, a card with everything else beside it.

`NAME.pt` is a state dict that `torch.load(weights_only=True)` reads; `NAME.json` says how to build the
network, how it wants its images, and which classes it knows. No pickle of code is ever written or read.
"""

from __future__ import annotations

import json
import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.digests import named_arrays_digest
from pipeline.errors import ModelError
from pipeline.files import write_atomic, write_json
from pipeline.models.architecture import Architecture, build
from pipeline.models.preprocessing import Preprocessing

StateDict = dict[str, Tensor]


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
            architecture=Architecture(**value["architecture"]),
            preprocessing=Preprocessing.from_dict(value["preprocessing"]),
            classes=tuple(value["classes"]),
        )


def save_checkpoint(path: Path, state: StateDict, card: ModelCard) -> None:
    """Write `path` (tensors) and its `.json` card, each atomically."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_atomic(path, lambda file: torch.save(tensors, file))
    write_json(path.with_suffix(".json"), card.to_dict())


def load_checkpoint(path: Path) -> tuple[nn.Module, ModelCard]:
    """Build the network of a checkpoint and its card, with the checkpoint's weights, in eval mode.

    Raises:
        ModelError: a file is missing, not a checkpoint, or not of the network that its card names.

    """
    card_path = path.with_suffix(".json")
    try:
        card = ModelCard.from_dict(json.loads(card_path.read_text()))
    except FileNotFoundError:
        raise ModelError(
            f"{card_path}: no such file; expected the card beside {path.name}; run the stage that "
            "writes it (pipeline train-teacher or train-student)"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{card_path}: not a model card ({error}); write it again") from None
    network = build(card.architecture)
    load_state(network, read_tensors(path), path)
    return network.eval(), card


def read_tensors(path: Path) -> StateDict:
    """Read a state dict from `.safetensors` or from a torch file without executing anything.

    Raises:
        ModelError: no such file, or not tensors alone.

    """
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
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ModelError(f"{path}: holds more than tensors; expected a plain state dict")
    return state


def load_state(network: nn.Module, state: StateDict, origin: Path | str) -> None:
    """Put tensors into a network of the same names and shapes, whatever their precision.

    Raises:
        ModelError: names or shapes differ; the message lists them.

    """
    own = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if own != given:
        missing, extra = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
        wrong = [f"{n} {given[n]} (expected {own[n]})" for n in own if n in given and own[n] != given[n]]
        raise ModelError(
            f"{origin}: does not fit the network: missing {missing[:4]}, unexpected {extra[:4]}, other "
            f"shapes {wrong[:4]}; expected weights of the same architecture and classes"
        )
    network.load_state_dict(state)


def state_digest(network: nn.Module) -> str:
    """Return the SHA-256 (hex) of a network's tensors, whatever device they are on."""
    state = network.state_dict()
    return named_arrays_digest({name: tensor.cpu().numpy() for name, tensor in state.items()})
