"""Another last layer over stored features: the outputs of a dump for other classes, without its teacher.

With features x (D) of a row and the head's weight W (K, D) and bias b (K):

    linear        z = W x + b
    prototypes    z = W x / |x|; the rows of W are class vectors of length 1 / temperature
    groups        of either, or of the teacher's own last layer: z_g = log sum_{k in g} exp(z_k)

A merged class has the sum of its members' probabilities. Its logit is the logarithm of that sum, which is
no linear function of x, so it is computed from all K logits of a row. Classes in no group are left out, and
the others share their probability: the softmax runs over the groups alone. Groups merge at temperature 1.
A student's temperature then softens the merged classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.codecs.base import Codec, FeatureDecoder, relative
from pipeline.codecs.rule import Link
from pipeline.core.errors import ConfigError
from pipeline.core.hashing import named_arrays_digest, spec_digest

DROPPED = -1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Head:
    """A last layer of K rows with C outputs: as many as rows, or as groups of rows.

    Args:
        weight: (K, D) float32.
        bias: (K,) float32.
        classes: C names of the outputs.
        unit: whether features are scaled to length 1 first.
        groups: (K,) int64, the output of each row, `DROPPED` for none; None if rows are outputs.
        of_outputs: whether the features are a store's outputs, i.e. embeddings, not its codec's features.
        link: of the outputs.

    Example:
        >>> import torch
        >>> from pipeline.codecs.head import Head
        >>> weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> groups = torch.tensor([0, 0, 1])
        >>> head = Head(weight=weight, bias=torch.zeros(3), classes=("one", "both"), groups=groups)
        >>> merged = head.outputs(torch.tensor([[2.0, 1.0]]))
        >>> each = torch.tensor([[2.0, 1.0, 3.0]]).softmax(1)
        >>> torch.allclose(merged.softmax(1)[0, 0], each[0, 0] + each[0, 1])
        True
    """

    weight: Tensor
    bias: Tensor
    classes: tuple[str, ...]
    unit: bool = False
    groups: Tensor | None = None
    of_outputs: bool = False
    link: Link = "softmax"

    def __post_init__(self) -> None:
        if self.groups is not None and self.link != "softmax":
            raise ConfigError(
                f"groups merge the probabilities of one softmax, and these outputs are of a {self.link}; "
                "expected a head without groups; remove them"
            )

    @property
    def width(self) -> int:
        """D, the number of features."""
        return self.weight.shape[1]

    def outputs(self, features_BD: Tensor) -> Tensor:
        """Return the outputs (B, C) float32 of features (B, D); of a softmax, each row's maximum is 0."""
        features = F.normalize(features_BD.float(), dim=1) if self.unit else features_BD.float()
        outputs_BK = F.linear(features, self.weight, self.bias)
        if self.groups is not None:
            outputs_BK = merged(outputs_BK, self.groups, len(self.classes))
        return relative(outputs_BK) if self.link == "softmax" else outputs_BK

    def to(self, device: torch.device) -> Head:
        """Return the head on a device."""
        groups = None if self.groups is None else self.groups.to(device)
        return replace(self, weight=self.weight.to(device), bias=self.bias.to(device), groups=groups)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        own = {"weight": self.weight, "bias": self.bias}
        return own if self.groups is None else {**own, "groups": self.groups}

    def digest(self) -> str:
        """Return a SHA-256 (hex) of everything that determines the outputs, and their names."""
        arrays = {name: values.cpu().numpy() for name, values in self.tensors().items()}
        said = {"unit": self.unit, "of_outputs": self.of_outputs, "link": self.link}
        return spec_digest({**said, "classes": list(self.classes), "tensors": named_arrays_digest(arrays)})

    def decoder(self, codecs: Sequence[Codec]) -> ReheadedDecoder:
        """Return the decoder of the one store that the head reads; see `Derivation`."""
        (codec,) = codecs
        return ReheadedDecoder(codec, self)


def merged(outputs_BK: Tensor, groups_K: Tensor, count: int) -> Tensor:
    """Return log sum exp of each group's outputs (B, count); every group has a member.

    The maximum of each group is taken out first: a group of tiny probabilities keeps its logit.
    """
    kept = groups_K >= 0
    outputs, groups = outputs_BK[:, kept], groups_K[kept].expand(len(outputs_BK), -1)
    lowest = outputs.new_full((len(outputs), count), -torch.inf)
    highest = lowest.scatter_reduce(1, groups, outputs, "amax")
    shares = (outputs - highest.gather(1, groups)).exp()
    return highest + torch.zeros_like(highest).scatter_add(1, groups, shares).log()


class ReheadedDecoder:
    """Decode a codec's arrays to the outputs of another head.

    Args:
        codec: of the store.
        head: the last layer.

    Raises:
        ConfigError: the codec keeps no features.
    """

    def __init__(self, codec: Codec, head: Head) -> None:
        self.name, self._codec, self._head = codec.name, codec, head
        self._heads: dict[torch.device, Head] = {}
        self._features = features_of(codec, of_outputs=head.of_outputs, width=head.width)

    @property
    def features(self) -> FeatureDecoder:
        """The decoder of the features that the head reads."""
        return self._features

    @property
    def is_valid(self) -> Callable[[Mapping[str, Tensor]], bool] | None:
        """Whether arrays can come from the codec's `encode`; see `Codec`."""
        return self._codec.is_valid

    @property
    def decode(self) -> Callable[[Mapping[str, Tensor]], Tensor]:
        """Function from arrays of B rows to (B, C) float32 outputs; see `Head.outputs`."""
        return self._decode

    def _decode(self, arrays: Mapping[str, Tensor]) -> Tensor:
        features = self._features.decode(arrays)
        if features.device not in self._heads:
            self._heads[features.device] = self._head.to(features.device)
        return self._heads[features.device].outputs(features)


def features_of(codec: Codec, *, of_outputs: bool, width: int) -> FeatureDecoder:
    """Return the decoder of the features that a head reads.

    Args:
        codec: of a store.
        of_outputs: whether these are the store's outputs.
        width: D, the number of outputs then.

    Raises:
        ConfigError: the codec keeps no features.
    """
    if of_outputs:
        return FeatureDecoder(width, codec.decode)
    if codec.features is None:
        raise ConfigError(
            f"codec {codec.name} keeps outputs alone, and another head needs features; dump again under a "
            "new name with codec: features, and re-head that dump"
        )
    return codec.features


def head_of_codec(codec: Codec) -> dict[str, Tensor] | None:
    """Return weight (K, D) and bias (K,) of the teacher's own last layer, if the codec keeps it."""
    kept = {name: codec.state[name] for name in ("weight", "bias") if name in codec.state}
    return kept if len(kept) == 2 else None
