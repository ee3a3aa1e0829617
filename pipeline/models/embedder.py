"""Embeddings of a network: what enters its last layer, or what one of its layers gives, as its output.

`output` of a model in params.yaml is `embedding`, `layer:NAME` or `cls:NAME`:

    embedding    input of the last layer: pooled features, or the class token of a transformer
    layer:NAME   output of a layer, averaged over positions: (B, D, H, W) or (B, L, D) to (B, D)
    cls:NAME     output of a layer (B, L, D) at its first position, the class token

Own code that gives embeddings already needs no `output`. `normalise: length` scales each vector to length
1. With `features`, each feature has mean 0 and deviation 1: both are measured once, on training samples,
and kept with the weights.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core.errors import ConfigError, ModelError, did_you_mean
from pipeline.models.heads import head_of

EMBEDDING = "embedding"
Normalise = Literal["none", "length", "features"]
_PREFIXES = ("layer:", "cls:")


def require_output(output: str, normalise: str) -> None:
    """Refuse an output of another form.

    Raises:
        ConfigError: naming the forms.
    """
    if output and output != EMBEDDING and not (output.startswith(_PREFIXES) and output.partition(":")[2]):
        raise ConfigError(
            f"output is {output!r}; expected {EMBEDDING}, layer:NAME or cls:NAME; correct it, or remove it "
            "for the model's own output"
        )
    if normalise not in get_args(Normalise):
        raise ConfigError(f"normalise is {normalise!r}; expected {', '.join(get_args(Normalise))}")


class Embedder(nn.Module):
    """A network that gives an embedding (B, D).

    Args:
        network: any network; for `embedding`, its last layer is removed.
        output: as in params.yaml; "" for the network's own output.
        normalise: none, length or features.
        width: D, the length of the buffers of `features`; 0 before `widen`.

    Raises:
        ModelError: the network has no such layer.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: nn.Module, output: str, normalise: Normalise, width: int = 0) -> None:
        super().__init__()
        self.network, self._kind, self._normalise = network, output.partition(":")[0], normalise
        self._taken: list[Tensor] = []
        if output == EMBEDDING:
            network.set_submodule(head_of(network)[0], nn.Identity())
        elif output:
            _layer(network, output.partition(":")[2]).register_forward_hook(self._take)
        if normalise == "features":
            self.register_buffer("mean", torch.zeros(width))
            self.register_buffer("deviation", torch.ones(width))

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs (B, ...) to embeddings (B, D)."""
        outputs = self.network(inputs)
        vectors = self._pooled(self._taken.pop() if self._kind in ("layer", "cls") else outputs)
        if self._normalise == "length":
            return F.normalize(vectors.float(), dim=1)
        if self._normalise == "features" and len(self.mean):
            return (vectors.float() - self.mean) / self.deviation
        return vectors

    def widen(self, width: int) -> None:
        """Let the buffers of `features` fit embeddings of D features, unchanged so far."""
        if self._normalise == "features":
            self.mean, self.deviation = torch.zeros(width), torch.ones(width)

    def standardise(self, vectors_ND: Tensor) -> None:
        """Measure mean and deviation of each feature on outputs of this network without them."""
        vectors = vectors_ND.double()
        deviation = vectors.std(0, correction=0)
        self.mean = vectors.mean(0).float()
        self.deviation = torch.where(deviation > 0, deviation, 1.0).float()

    def _take(self, layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        self._taken.append(output)

    def _pooled(self, output: Tensor) -> Tensor:
        if output.ndim == 2:
            return output
        if output.ndim == 4:
            return output.mean((2, 3))
        if output.ndim == 3:
            return output[:, 0] if self._kind == "cls" else output.mean(1)
        raise ModelError(
            f"the layer of `output` gives {tuple(output.shape)}; expected (B, D), (B, D, H, W) or "
            "(B, L, D); name another layer"
        )


def _layer(network: nn.Module, name: str) -> nn.Module:
    layers: dict[str, nn.Module] = dict(network.named_modules())
    if name not in layers or not name:
        near = [known for known in layers if known]
        raise ModelError(
            f"output names the layer {name!r}, which the network does not have; expected one of its "
            f"{len(near)} layers, e.g. {', '.join(near[-3:])}{did_you_mean(name, near)}"
        )
    return layers[name]
