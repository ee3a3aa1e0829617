"""Codecs: a teacher's logits to the arrays of a store and back, on whatever device they are on.

A codec is a pair of functions and the arrays that it declares. Logits matter up to a constant a row,
so every codec keeps them relative to the row's maximum: decoded rows have the maximum 0. Adding one is
one file and one line in `CODECS`.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.codecs import affine8, fp16
from pipeline.codecs.codec import ArraySpec, Codec
from pipeline.errors import ConfigError, did_you_mean

__all__ = ["CODECS", "ArraySpec", "Codec", "find_codec"]

CODECS: Mapping[str, Codec] = {codec.name: codec for codec in (fp16.CODEC, affine8.CODEC)}


def find_codec(name: str) -> Codec:
    """Return a codec of the table.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in CODECS:
        raise ConfigError(
            f"codec is {name!r}; expected one of {', '.join(CODECS)}{did_you_mean(name, CODECS)}"
        )
    return CODECS[name]
