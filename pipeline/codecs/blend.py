"""Average the soft labels of several teachers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.codecs import Codec
from pipeline.codecs.base import FeatureDecoder, relative
from pipeline.core.errors import ConfigError

SEPARATOR = "/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Blend:
    """Average the logits of several teachers.

    Args:
        average: "probabilities": log of the weighted mean softmax at temperature 1; or "logits".
        weights: one per teacher, each more than 0; they are scaled to a sum of 1.
    """

    average: Literal["probabilities", "logits"] = "probabilities"
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.average not in ("probabilities", "logits"):
            raise ConfigError(f"average is {self.average!r}; expected probabilities or logits")
        if len(self.weights) < 2 or not all(0 < weight < float("inf") for weight in self.weights):
            raise ConfigError(f"weights are {list(self.weights)}; expected two or more, each more than 0")
        if not sum(self.weights) < float("inf"):
            raise ConfigError(f"weights are {list(self.weights)}; their sum is too large; scale them down")

    def blend(self, each: Sequence[Tensor]) -> Tensor:
        """Return averaged logits (B, C) float32, row maximum 0, from each teacher's logits (B, C)."""
        total = sum(self.weights)
        shares = [weight / total for weight in self.weights]
        if self.average == "logits":
            mean = sum(share * relative(logits) for share, logits in zip(shares, each, strict=True))
            return relative(torch.as_tensor(mean))
        logs = torch.stack([F.log_softmax(logits, dim=1) for logits in each])
        # log sum_i share_i softmax_i, without leaving log space: small probabilities do not underflow.
        scale = logs.new_tensor(shares).log()[:, None, None]
        return relative(torch.logsumexp(logs + scale, dim=0))


@dataclass(frozen=True, slots=True)
class BlendedDecoder:
    """Decode arrays of several codecs, named "0/...", "1/...", to their averaged logits.

    Args:
        codecs: in the order of the weights.
        blend: how their logits are averaged.
    """

    codecs: Sequence[Codec]
    blend: Blend

    @property
    def features(self) -> FeatureDecoder | None:
        """None: features of several teachers have no average."""
        return None

    @property
    def decode(self) -> Callable[[Mapping[str, Tensor]], Tensor]:
        """Function from arrays of B rows to (B, C) float32 logits; each row's maximum is 0."""
        return self._decode

    def _decode(self, arrays: Mapping[str, Tensor]) -> Tensor:
        each = []
        for place, codec in enumerate(self.codecs):
            own = {name: arrays[f"{place}{SEPARATOR}{name}"] for name in codec.arrays}
            each.append(codec.decode(own))
        return self.blend.blend(each)
