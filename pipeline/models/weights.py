"""Pretrained weights by name: built-in files, torchvision's enums, and checkpoints on disk.

`python -m pipeline.models.weights CHECKPOINT.pt OUT.safetensors` makes a built-in file of a checkpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torchvision
from safetensors.torch import save_file
from torch import nn

from pipeline.errors import ModelError
from pipeline.files import write_json
from pipeline.models.architecture import Architecture, build
from pipeline.models.checkpoint import ModelCard, load_checkpoint, state_digest
from pipeline.models.preprocessing import Preprocessing

# (architecture, weights) -> the file in pipeline/models/builtin, with its card beside it.
BUILTIN: Mapping[tuple[str, str], str] = {
    ("wrn_16_2", "FASHION_MNIST_V1"): "wrn_16_2-fashion_mnist_v1.safetensors",
}
_CHECKPOINT_SUFFIXES = (".pt", ".pth", ".safetensors")


def load_pretrained(name: str, weights: str) -> tuple[nn.Module, ModelCard]:
    """Return a network with pretrained weights, in eval mode, and its card.

    Args:
        name: of the architecture.
        weights: a built-in name, a torchvision weight name, or the path of a checkpoint with a card.

    Raises:
        ModelError: there are no such weights, they cannot be had, or they are of another architecture.

    """
    if (name, weights) in BUILTIN:
        with as_file(files("pipeline.models") / "builtin") as folder:
            return load_checkpoint(folder / BUILTIN[name, weights])
    if weights.endswith(_CHECKPOINT_SUFFIXES):
        network, card = load_checkpoint(Path(weights))
        if card.architecture.name != name:
            raise ModelError(
                f"{weights}: weights of {card.architecture.name}; expected {name}; correct 'model' or "
                "'weights'"
            )
        return network, card
    return _torchvision(name, weights)


def _torchvision(name: str, weights: str) -> tuple[nn.Module, ModelCard]:
    available = _torchvision_names(name)
    if weights not in available:
        builtin = [known for model, known in BUILTIN if model == name]
        raise ModelError(
            f"weights {weights!r} of {name} are unknown; expected "
            f"{', '.join([*builtin, *available]) or 'a checkpoint (no weights have a name)'}, or the "
            f"path of a checkpoint ({', '.join(_CHECKPOINT_SUFFIXES)})"
        )
    entry = torchvision.models.get_model_weights(name)[weights]
    network = build(Architecture(name=name, num_classes=len(entry.meta["categories"])))
    try:
        network.load_state_dict(entry.get_state_dict(check_hash=True))
    except (URLError, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"weights {weights} of {name} could not be had from {entry.url}: {reason}; download the "
            "file there into torch's hub folder, or name a checkpoint"
        ) from None
    return network.eval(), _torchvision_card(name, entry)


def _torchvision_names(name: str) -> list[str]:
    if name not in torchvision.models.list_models(torchvision.models):
        return []
    return [entry.name for entry in torchvision.models.get_model_weights(name)]


def _torchvision_card(name: str, entry: Any) -> ModelCard:
    transforms = entry.transforms()
    size, resized = transforms.crop_size[0], transforms.resize_size[0]
    return ModelCard(
        architecture=Architecture(name=name, num_classes=len(entry.meta["categories"])),
        preprocessing=Preprocessing(
            size=size,
            mean=tuple(transforms.mean),
            std=tuple(transforms.std),
            crop_fraction=size / resized,
        ),
        classes=tuple(entry.meta["categories"]),
    )


def save_half(checkpoint: Path, out: Path) -> str:
    """Write a checkpoint as half-precision safetensors with its card; return the network's digest.

    Batch-norm counters, which evaluation does not use, keep their integers.
    """
    network, card = load_checkpoint(checkpoint)
    state = network.state_dict()
    save_file({n: t.half() if t.is_floating_point() else t for n, t in state.items()}, out)
    write_json(out.with_suffix(".json"), card.to_dict())
    return state_digest(load_checkpoint(out)[0])


if __name__ == "__main__":
    print(save_half(Path(sys.argv[1]), Path(sys.argv[2])))
