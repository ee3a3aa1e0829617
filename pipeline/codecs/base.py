"""What a codec is, and what it is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from pipeline.codecs.rule import Rule
from pipeline.core.errors import ModelError

Arrays = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class TeacherOutput:
    """What a teacher says of a batch.

    Args:
        logits: (B, C) float32.
        features: (B, D) float32, the input of its last linear layer; None where it has none.
    """

    logits: Tensor
    features: Tensor | None = None

    def are_finite(self) -> Tensor:
        """Return whether all values of each row are (B,)."""
        finite = self.logits.isfinite().all(1)
        return finite if self.features is None else finite & self.features.isfinite().all(1)

    def require_features(self) -> Tensor:
        """Return the features.

        Raises:
            ModelError: the teacher gives none.
        """
        if self.features is None:
            raise ModelError(
                "codec features: the teacher's logits do not come straight from a linear layer; expected "
                "one as its last; use codec: auto or affine6"
            )
        return self.features

    def __getitem__(self, rows: slice) -> TeacherOutput:
        """Return some rows."""
        return TeacherOutput(self.logits[rows], None if self.features is None else self.features[rows])


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array of a codec.

    Args:
        dtype: numpy's name of it.
        shape: of one sample; () for a number a sample.
        column_major: bytes of a chunk lie column by column, not sample by sample: columns that are
            alike compress better side by side.
        level: Zstandard's, 1 to 22.
    """

    dtype: str
    shape: tuple[int, ...]
    column_major: bool = False
    level: int = 1

    @property
    def bytes(self) -> int:
        """Size of one sample before compression."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return {**asdict(self), "shape": list(self.shape)}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> ArraySpec:
        """Return what `to_dict` described."""
        return cls(**{**value, "shape": tuple(value["shape"])})


@dataclass(frozen=True, slots=True)
class FeatureDecoder:
    """How the teacher's penultimate features are read, where a codec keeps them.

    Args:
        dim: D.
        decode: arrays of B rows to (B, D) float32.
    """

    dim: int
    decode: Callable[[Mapping[str, Tensor]], Tensor]


class Decoder(Protocol):
    """What reads logits: a codec, or an average of what several decode."""

    @property
    def features(self) -> FeatureDecoder | None:
        """What reads features, or None where none are kept."""

    @property
    def decode(self) -> Callable[[Mapping[str, Tensor]], Tensor]:
        """From arrays of B rows to (B, C) float32 logits whose row maximum is 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """A pair of functions between a teacher's output for C classes and arrays.

    Args:
        name: in `params.yaml` and in the store.
        version: raised when the same output would give other arrays; part of the fingerprint.
        arrays: those that a store of this codec has a row a sample of.
        encode: a batch of B rows, and the rule of their task, to arrays of B rows, on the batch's device.
        decode: arrays of B rows to (B, C) float32 logits whose row maximum is 0.
        state: arrays that a store keeps once, from which `find_codec` makes this codec again.
        kept: number of classes whose logits are kept; None for all.
        features: what reads the teacher's features; None where they are not kept.
        is_valid: whether arrays of B rows can come from `encode`; None where any can.
    """

    name: str
    version: int
    arrays: Mapping[str, ArraySpec]
    encode: Callable[[TeacherOutput, Rule], Arrays]
    decode: Callable[[Mapping[str, Tensor]], Tensor]
    state: Mapping[str, Tensor] = field(default_factory=dict)
    kept: int | None = None
    features: FeatureDecoder | None = None
    is_valid: Callable[[Mapping[str, Tensor]], bool] | None = None

    @property
    def bytes(self) -> int:
        """Size of one sample before compression."""
        return sum(spec.bytes for spec in self.arrays.values())


def relative(logits_BC: Tensor) -> Tensor:
    """Shift each row so that its maximum is 0: logits of a softmax matter up to a constant a row."""
    return logits_BC - logits_BC.amax(1, keepdim=True)
