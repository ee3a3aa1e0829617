"""The types of a codec: a teacher's output, the arrays of a store, and the functions between them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from torch import Tensor

from pipeline.codecs.rule import Rule
from pipeline.core.errors import ModelError

Arrays = dict[str, Tensor]
# Limits of the arrays of a codec; a store's header is read within the same ones.
Dtype = Literal["uint8", "uint16", "int16", "int32", "float16", "float32"]
ARRAY_NAME = r"^[a-z][a-z0-9_]{0,31}$"
MOST_ARRAYS, MOST_AXES, MOST_LEVEL = 16, 3, 22


@dataclass(frozen=True, slots=True)
class TeacherOutput:
    """A teacher's output for a batch.

    Args:
        logits: (B, C) float32.
        features: (B, D) float32, the input of the teacher's last linear layer; None without such a layer.
    """

    logits: Tensor
    features: Tensor | None = None

    def are_finite(self) -> Tensor:
        """Return (B,) bool: whether all values of a row are finite."""
        finite = self.logits.isfinite().all(1)
        return finite if self.features is None else finite & self.features.isfinite().all(1)

    def require_features(self) -> Tensor:
        """Return the features.

        Raises:
            ModelError: the teacher gives no features.
        """
        if self.features is None:
            raise ModelError(
                "codec 'features' needs a teacher whose last layer is linear, but this teacher's logits "
                "come from elsewhere; use codec: auto or affine6"
            )
        return self.features

    def __getitem__(self, rows: slice | Tensor) -> TeacherOutput:
        """Return a slice of the rows, or those of a (B,) bool tensor."""
        return TeacherOutput(self.logits[rows], None if self.features is None else self.features[rows])


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """Dtype, shape and compression of one array of a codec.

    Args:
        dtype: a numpy name, e.g. uint8.
        shape: of one sample; () for one number per sample.
        column_major: a chunk's bytes are stored column by column, not sample by sample, because similar
            columns compress better side by side.
        level: Zstandard compression level, 1 to 22.
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
        """Return the spec that `to_dict` described."""
        return cls(**{**value, "shape": tuple(value["shape"])})


@dataclass(frozen=True, slots=True)
class FeatureDecoder:
    """Decode the teacher's penultimate features from a codec that keeps them.

    Args:
        dim: D.
        decode: arrays of B rows to (B, D) float32.
    """

    dim: int
    decode: Callable[[Mapping[str, Tensor]], Tensor]


class Decoder(Protocol):
    """Decode logits: a codec, or an average over several."""

    @property
    def features(self) -> FeatureDecoder | None:
        """The features' decoder, or None if no features are kept."""

    @property
    def decode(self) -> Callable[[Mapping[str, Tensor]], Tensor]:
        """Function from arrays of B rows to (B, C) float32 outputs; of a softmax, row maximum 0."""


class StoredDecoder(Decoder, Protocol):
    """Decode the rows of one store."""

    @property
    def name(self) -> str:
        """Name of the store's codec."""

    @property
    def is_valid(self) -> Callable[[Mapping[str, Tensor]], bool] | None:
        """Whether arrays of B rows can come from the codec's `encode`; None if any arrays can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """Convert a teacher's C outputs to arrays, and back.

    Args:
        name: in `params.yaml` and in the store, e.g. affine8.
        version: raised when the same output would give different arrays; part of the fingerprint.
        arrays: the arrays with one row per sample in a store of this codec.
        encode: a batch of B rows, and their task's rule, to arrays of B rows on the batch's device.
        decode: arrays of B rows to (B, C) float32 outputs; of a softmax, each row's maximum is 0.
        state: the arrays that a store keeps once; `find_codec` rebuilds this codec from them.
        kept: number of classes whose logits are kept; None for all.
        features: decoder of the teacher's features; None if they are not kept.
        is_valid: whether arrays of B rows can come from `encode`; None if any arrays can.
        codebooks: M and L of a codec whose array `codes` (B, M) names one of L codewords per codebook.
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
    codebooks: tuple[int, int] | None = None

    @property
    def bytes(self) -> int:
        """Size of one sample before compression."""
        return sum(spec.bytes for spec in self.arrays.values())


class Derivation(Protocol):
    """How outputs derive from the rows of stores: an average over several, or another head."""

    def decoder(self, codecs: Sequence[Codec]) -> Decoder:
        """Return the decoder of rows of these codecs, in the order of the stores."""


def relative(logits_BC: Tensor) -> Tensor:
    """Shift each row to a maximum of 0; a softmax ignores a constant per row."""
    return logits_BC - logits_BC.amax(1, keepdim=True)
