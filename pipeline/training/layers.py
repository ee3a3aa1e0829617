"""The layers of a network in order, from images to logits: for rates that differ with depth.

A layer is what the literature calls a block: a child of a stack (`nn.Sequential`, `ModuleList`,
`ModuleDict`), or else of the network itself. timm's models say themselves what theirs are.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from torch import nn

_STACKS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# A module with more of the network's parameters than this is no layer but holds the layers.
_MOST = 0.5


def depths(network: nn.Module) -> dict[str, int]:
    """Return for each parameter by name how many layers come after its own; 0 is the last layer."""
    matcher: Any = getattr(network, "group_matcher", None)
    layers = _timms(network, matcher) if callable(matcher) else _layers(network)
    last = max(layers.values())
    return {name: last - layer for name, layer in layers.items()}


def _timms(network: nn.Module, matcher: Any) -> dict[str, int]:
    group: Any = importlib.import_module("timm.models").group_parameters
    return dict(group(network, matcher(coarse=False), reverse=True))


def _layers(network: nn.Module) -> dict[str, int]:
    """Return the layer of each parameter, counted from the images.

    Vectors alone, such as a norm, belong to the layer before; parameters that lie beside the layers, such
    as a class token or position embeddings, to the first.
    """
    total = sum(p.numel() for p in network.parameters())
    layers: dict[str, int] = dict.fromkeys((name for name, _ in network.named_parameters()), 0)
    layer = -1
    for prefix, module in _opened("", network, total):
        parameters = dict(module.named_parameters())
        if layer < 0 or any(p.ndim > 1 for p in parameters.values()):
            layer += 1
        layers |= {f"{prefix}{name}": layer for name in parameters}
    return layers


def _opened(prefix: str, module: nn.Module, total: int) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers below a module that holds some, each with the prefix of its parameters' names."""
    for name, child in module.named_children():
        size = sum(p.numel() for p in child.parameters())
        if not size:
            continue
        inner = f"{prefix}{name}."
        if type(child) in _STACKS or (size > _MOST * total and _holds_blocks(child)):
            yield from _opened(inner, child, total)
        else:
            yield inner, child


def _holds_blocks(module: nn.Module) -> bool:
    """Whether somewhere in a module is a stack of modules that are more than one operation each."""
    stacks = (m for m in module.modules() if m is not module and type(m) in _STACKS)
    return any(sum(bool(list(child.children())) for child in stack.children()) > 1 for stack in stacks)
