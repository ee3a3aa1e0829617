"""Codecs: a teacher's output to the arrays of a store and back, on whatever device it is on.

A codec is a pair of functions and the arrays that it declares. Logits matter up to a constant a row,
so every codec keeps them relative to the row's maximum: decoded rows have the maximum 0. Adding one is
one function and one line in `_PLAIN` or, where its name ends in a number as in `topk-50`, in `_NUMBERED`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping

from pipeline.codecs.affine import affine
from pipeline.codecs.codec import ArraySpec, Codec
from pipeline.codecs.fp16 import fp16
from pipeline.codecs.topk import topk
from pipeline.errors import ConfigError, did_you_mean

__all__ = ["CODECS", "ArraySpec", "Codec", "find_codec"]

# name -> from the number of classes to the codec
_PLAIN: Mapping[str, Callable[[int], Codec]] = {
    "fp16": fp16,
    "affine8": functools.partial(affine, 8),
    "affine6": functools.partial(affine, 6),
    "affine4": functools.partial(affine, 4),
}
# name -> from the number behind it and the number of classes to the codec
_NUMBERED: Mapping[str, Callable[[int, int], Codec]] = {"topk": topk}
CODECS = (*_PLAIN, *(f"{name}-K" for name in _NUMBERED))


def find_codec(name: str, n_classes: int) -> Codec:
    """Return a codec by its name.

    Args:
        name: one of `CODECS`, with a number for K.
        n_classes: C.

    Raises:
        ConfigError: there is none of this name, or it cannot keep this many classes.
    """
    if name in _PLAIN:
        return _PLAIN[name](n_classes)
    numbered = re.fullmatch(r"([a-z]+)-(\d{1,6})", name)
    if numbered is None or numbered[1] not in _NUMBERED:
        raise ConfigError(
            f"codec is {name!r}; expected one of {', '.join(CODECS)}{did_you_mean(name, CODECS)}"
        )
    return _NUMBERED[numbered[1]](int(numbered[2]), n_classes)
