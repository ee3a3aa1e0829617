"""What a codec is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

Arrays = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array of a codec.

    Args:
        dtype: numpy's name of it.
        shape: of one sample; () for a number a sample.
    """

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """A pair of functions between the logits of C classes and arrays.

    Args:
        name: in `params.yaml` and in the store.
        version: raised when the same logits would give other arrays; part of the fingerprint.
        arrays: those that a store of this codec has.
        encode: (B, C) float32 logits to arrays of B rows, on the logits' device.
        decode: arrays of B rows to (B, C) float32 logits whose row maximum is 0.
    """

    name: str
    version: int
    arrays: Mapping[str, ArraySpec]
    encode: Callable[[Tensor], Arrays]
    decode: Callable[[Mapping[str, Tensor]], Tensor]

    def fingerprint(self) -> str:
        """Return what identifies the codec's arrays."""
        return f"{self.name}.{self.version}"


def relative(logits_BC: Tensor) -> Tensor:
    """Shift each row so that its maximum is 0: logits matter up to a constant a row."""
    return logits_BC - logits_BC.amax(1, keepdim=True)
