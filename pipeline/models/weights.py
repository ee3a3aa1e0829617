"""Pretrained weights by name: built-in files, torchvision's enums, and checkpoints on disk.

`python -m pipeline.models.weights CHECKPOINT.pt OUT.safetensors` makes a built-in file of a checkpoint.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from pipeline.core.errors import ModelError
from pipeline.core.trust import Trust
from pipeline.modalities.images.models.cifar import BUILTIN
from pipeline.modalities.images.preprocessing import GivenPreprocessing
from pipeline.models.architecture import Architecture, source_of
from pipeline.models.card import CardFile
from pipeline.models.checkpoint import ModelCard, load_checkpoint, state_digest, tensors_digest
from pipeline.models.foreign import load_foreign
from pipeline.models.probe import count_logits
from pipeline.models.source import CHECKPOINT_SUFFIXES, OWN_WEIGHTS, Pretrained


def load_pretrained(
    name: str,
    weights: str,
    *,
    stem_stride: int | None = None,
    options: Mapping[str, Any] | None = None,
    preprocessing: GivenPreprocessing | None = None,
) -> tuple[nn.Module, ModelCard]:
    """Return a network with pretrained weights, in eval mode, and its card.

    Args:
        name: of the architecture.
        weights: a built-in name; one of the model's source, `pretrained` for its default; or the path of a
            checkpoint.
        stem_stride: of a state dict without a card; other weights have their own.
        options: keyword arguments of the builder: of such a state dict, a timm model or one's own code.
        preprocessing: of a state dict without a card or one's own code, which do not say theirs.

    Raises:
        ModelError: there are no such weights, they cannot be had, or they are of another architecture.

    """
    options, given = options or {}, preprocessing or GivenPreprocessing()
    if (name, weights) in BUILTIN:
        _require_own_form(weights, stem_stride, options)
        with as_file(files("pipeline.models") / "builtin") as folder:
            return load_checkpoint(folder / BUILTIN[name, weights])
    source = source_of(name)
    if weights not in (OWN_WEIGHTS, *source.weight_names(name)) and _is_path(weights):
        return _from_file(Path(weights), name, given, stem_stride=stem_stride, options=options)
    _require_own_form(weights, stem_stride, {} if source.own_options else options)
    return _complete(source.pretrained(name, weights, options), given)


def _is_path(weights: str) -> bool:
    return os.sep in weights or weights.endswith(CHECKPOINT_SUFFIXES) or Path(weights).exists()


def _from_file(
    path: Path, name: str, given: GivenPreprocessing, *, stem_stride: int | None, options: Mapping[str, Any]
) -> tuple[nn.Module, ModelCard]:
    if not path.is_file():
        found = "not a file" if path.exists() else "no such file"
        raise ModelError(f"{path}: {found}; expected a checkpoint; correct 'weights', or make it")
    if path.with_suffix(".json").exists():
        _require_own_form(str(path), stem_stride, options)
        return load_checkpoint(path, expected=name, trust=Trust(models={name: options}))
    eyes = given.alone(f"{path} has no card {path.stem}.json beside it, and")
    return load_foreign(path, name, eyes, stem_stride=stem_stride, options=options)


def _complete(found: Pretrained, given: GivenPreprocessing) -> tuple[nn.Module, ModelCard]:
    """Return a source's network with a card, and the user's word for what the source does not say."""
    eyes, classes = found.preprocessing, found.classes
    if eyes is None:
        eyes = given.alone(f"model {found.name}")
    if classes is None:
        classes = tuple(map(str, range(count_logits(found.network, found.name, eyes))))
    architecture = Architecture(
        name=found.name, num_classes=len(classes), channels=eyes.channels, options=found.options
    )
    return found.network, ModelCard(architecture=architecture, preprocessing=eyes, classes=classes)


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


if __name__ == "__main__":
    print(save_half(Path(sys.argv[1]), Path(sys.argv[2])))
