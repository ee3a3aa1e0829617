"""Average the outputs of several teachers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.codecs import Codec
from pipeline.codecs.base import FeatureDecoder, relative
from pipeline.codecs.rule import Link
from pipeline.core.errors import ConfigError

SEPARATOR = "/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Blend:
    """Average the outputs of several teachers.

    Args:
        average: "probabilities": logits of the weighted mean probability at temperature 1; or "logits", the
            weighted mean of the outputs themselves.
        weights: one per teacher, each more than 0; they are scaled to a sum of 1.
        link: of all outputs.
    """

    average: Literal["probabilities", "logits"] = "probabilities"
    weights: tuple[float, ...]
    link: Link = "softmax"

    def __post_init__(self) -> None:
        if self.average not in ("probabilities", "logits"):
            raise ConfigError(f"average is {self.average!r}; expected probabilities or logits")
        if len(self.weights) < 2 or not all(0 < weight < float("inf") for weight in self.weights):
            raise ConfigError(f"weights are {list(self.weights)}; expected two or more, each more than 0")
        if not sum(self.weights) < float("inf"):
            raise ConfigError(f"weights are {list(self.weights)}; their sum is too large; scale them down")

    def decoder(self, codecs: Sequence[Codec]) -> BlendedDecoder:
        """Return the decoder of rows of these codecs; see `Derivation`."""
        return BlendedDecoder(codecs, self)

    def blend(self, each: Sequence[Tensor]) -> Tensor:
        """Return averaged outputs (B, C) float32 from each teacher's; of a softmax, row maximum 0."""
        total = sum(self.weights)
        shares = [weight / total for weight in self.weights]
        if self.link == "sigmoid" and self.average == "probabilities":
            return _mean_of_sigmoids(torch.stack(list(each)), shares)
        if self.link != "softmax":
            return torch.as_tensor(sum(share * one for share, one in zip(shares, each, strict=True)))
        if self.average == "logits":
            mean = sum(share * relative(logits) for share, logits in zip(shares, each, strict=True))
            return relative(torch.as_tensor(mean))
        # (M, B, C) for M teachers. Two teachers of equal shares, one sample, two classes:
        #   probabilities  (0.9, 0.1) and (0.5, 0.5)  ->  mean (0.7, 0.3)
        #   outputs        log (0.7, 0.3) less its maximum  =  (0, -0.847)
        #   for comparison, average "logits": (0, -2.197) and (0, 0) give (0, -1.099)
        logs = torch.stack([F.log_softmax(logits, dim=1) for logits in each])
        # log sum_i share_i softmax_i, without leaving log space: small probabilities do not underflow.
        scale = logs.new_tensor(shares).log()[:, None, None]
        return relative(torch.logsumexp(logs + scale, dim=0))


def _mean_of_sigmoids(each_MBC: Tensor, shares: Sequence[float]) -> Tensor:
    """Return the logit of the weighted mean probability (B, C), from log p and log (1 - p)."""
    # Probabilities 0.9 and 0.3 with shares 1/3 and 2/3: p = 0.5, q = 0.5, so the output is 0. Both p and q
    # are summed: 1 - p would lose all digits of a p near 1.
    scale = each_MBC.new_tensor(shares).log()[:, None, None]
    log_p, log_q = ((F.logsigmoid(sign * each_MBC) + scale).logsumexp(0) for sign in (1, -1))
    return log_p - log_q


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
        """Function from arrays of B rows to (B, C) float32 outputs; see `Blend.blend`."""
        return self._decode

    def _decode(self, arrays: Mapping[str, Tensor]) -> Tensor:
        each = []
        for place, codec in enumerate(self.codecs):
            own = {name: arrays[f"{place}{SEPARATOR}{name}"] for name in codec.arrays}
            each.append(codec.decode(own))
        return self.blend.blend(each)
