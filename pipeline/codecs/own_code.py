"""Codecs of user code: `codec: package.module:NAME`, a function from the number of classes to a `Codec`.

    def half(n_classes): ...             codec: "mine.codecs:half"
    def steps(number, n_classes): ...    codec: "mine.codecs:steps-16", a number as in `topk-50`

The codec has the name that params.yaml uses, since stores keep it. It keeps no state: everything that
decodes a row is in its arrays. Code runs only if the user names it: in params.yaml, by `--trust-code`, or
in Python by `OWN_CODECS.use`. A store's header alone runs nothing.

Whatever the code returns is checked, so that a mistake is one line and no store holds it. The values are
not, since that would wait for the device in every batch: the pilot and the dump refuse rows that they
measure as not finite.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import get_args

import torch
from torch import Tensor

from pipeline.codecs.base import (
    ARRAY_NAME,
    MOST_ARRAYS,
    MOST_AXES,
    MOST_LEVEL,
    Arrays,
    ArraySpec,
    Codec,
    Dtype,
    TeacherOutput,
)
from pipeline.codecs.rule import Rule
from pipeline.core.errors import ConfigError, quoted
from pipeline.core.open_table import OpenTable
from pipeline.core.own_code import Kind, find_callable, is_own, running

Decode = Callable[[Mapping[str, Tensor]], Tensor]
_KIND = Kind(noun="codec", returns="a codec", plural="codecs")
_NUMBERED = re.compile(r"(.+)-([1-9][0-9]{0,5})")
# Names of the arrays that identify a store's rows.
_TAKEN = ("keys", "digests", "labels")


@dataclass(frozen=True, slots=True)
class OwnCodec:
    """A function of user code that makes a codec.

    Args:
        name: `package.module:NAME`, without a number.
        make: (n_classes) or (number, n_classes) to a `Codec`.
    """

    name: str
    make: Callable[..., object]


class _OwnCodecs(OpenTable[OwnCodec]):
    """The table of codecs of user code; its objects are plain functions, which know no name."""

    def _import(self, name: str) -> OwnCodec:
        return OwnCodec(name, find_callable(name, _KIND))


OWN_CODECS = _OwnCodecs(_KIND, {}, OwnCodec, key="dumps.NAME.codec", address="pipeline.codecs.OWN_CODECS")


def split_number(name: str) -> tuple[str, int | None]:
    """Split the number from the end of a codec's name.

    >>> split_number("topk-50"), split_number("mine.codecs:half")
    (('topk', 50), ('mine.codecs:half', None))
    """
    match = _NUMBERED.fullmatch(name)
    return (name, None) if match is None else (match[1], int(match[2]))


def is_own_codec(name: str) -> bool:
    """Whether a codec's name is that of user code, which may not exist; nothing is imported.

    >>> is_own_codec("mine.codecs:steps-16"), is_own_codec("topk-50")
    (True, False)
    """
    return is_own(split_number(name)[0])


def trust_codec(name: str) -> None:
    """Let files name the user code of a codec that the user named; ignore a built-in codec."""
    if is_own_codec(name):
        OWN_CODECS.trust([split_number(name)[0]])


def own_codec(name: str, n_classes: int) -> Codec:
    """Make a codec of user code; each result of its functions is checked.

    Args:
        name: `package.module:NAME`, or `package.module:NAME-K`.
        n_classes: C.

    Raises:
        ConfigError: only a file names the code; it cannot be imported; it raises; or it makes no codec, or
            one whose arrays no store can hold.
    """
    stem, number = split_number(name)
    make = OWN_CODECS.find(stem).make
    with running(name, _KIND):
        codec = make(n_classes) if number is None else make(number, n_classes)
    if not isinstance(codec, Codec):
        raise _wrong(name, f"returns a {type(codec).__name__}; expected a pipeline.codecs.Codec")
    if codec.name != name:
        raise _wrong(name, f"is called {quoted(codec.name)} by itself; expected its own name")
    if codec.state:
        raise _wrong(name, f"has the state {', '.join(codec.state)}; expected none: put it into its code")
    _require_arrays(name, codec.arrays)
    checked, features, is_valid = _Checked(codec), codec.features, codec.is_valid
    return replace(
        codec,
        encode=checked.encode,
        decode=partial(checked.decode, codec.decode, n_classes, "logits"),
        features=features
        and replace(features, decode=partial(checked.decode, features.decode, features.dim, "features")),
        is_valid=is_valid and partial(checked.is_valid, is_valid),
    )


@dataclass(frozen=True, slots=True)
class _Checked:
    """Run a codec's functions as user code, and check dtypes, shapes and devices of their results.

    Args:
        codec: as the user's function returned it.
    """

    codec: Codec

    def encode(self, output: TeacherOutput, rule: Rule) -> Arrays:
        """Return the declared arrays of B rows."""
        with running(self.codec.name, _KIND):
            found: object = self.codec.encode(output, rule)
        expected = self.codec.arrays
        if not isinstance(found, Mapping) or found.keys() != expected.keys():
            keys = quoted(list(found)) if isinstance(found, Mapping) else f"a {type(found).__name__}"
            raise _wrong(self.codec.name, f"encodes to {keys}; expected the arrays {list(expected)}")
        count, device = output.logits.shape[0], output.logits.device
        return {
            name: self._as_declared(found[name], name, spec.dtype, (count, *spec.shape), device)
            for name, spec in expected.items()
        }

    def decode(self, decode: Decode, width: int, what: str, arrays: Mapping[str, Tensor]) -> Tensor:
        """Return logits or features (B, width) float32."""
        with running(self.codec.name, _KIND):
            values = decode(arrays)
        rows = next(iter(arrays.values()))
        return self._as_declared(values, f"decoded {what}", "float32", (len(rows), width), rows.device)

    def is_valid(self, is_valid: Callable[..., bool], arrays: Mapping[str, Tensor]) -> bool:
        """Return whether `encode` can have made these arrays."""
        with running(self.codec.name, _KIND):
            return bool(is_valid(arrays))

    def _as_declared(
        self, values: object, what: str, dtype: str, shape: tuple[int, ...], device: torch.device
    ) -> Tensor:
        expected = f"{dtype} {shape} on {device}"
        if not isinstance(values, Tensor):
            raise _wrong(self.codec.name, f"gives {what} as a {type(values).__name__}; expected {expected}")
        found = f"{str(values.dtype).removeprefix('torch.')} {tuple(values.shape)} on {values.device}"
        if found != expected:
            raise _wrong(self.codec.name, f"gives {what} as {found}; expected {expected}")
        return values


def _require_arrays(name: str, arrays: Mapping[str, ArraySpec]) -> None:
    """Refuse arrays that a store cannot hold."""
    if not 0 < len(arrays) <= MOST_ARRAYS:
        raise _wrong(name, f"declares {len(arrays)} arrays; expected 1 to {MOST_ARRAYS}")
    for array, spec in arrays.items():
        if re.fullmatch(ARRAY_NAME, array) is None or array in _TAKEN:
            raise _wrong(
                name,
                f"declares an array {quoted(array)}; expected a-z, 0-9 and _, and neither "
                f"{' nor '.join(_TAKEN)}, which the store has",
            )
        if not isinstance(spec, ArraySpec) or spec.dtype not in get_args(Dtype):
            dtypes = ", ".join(get_args(Dtype))
            raise _wrong(name, f"declares {array} as {quoted(spec)}; expected an ArraySpec of {dtypes}")
        shape = spec.shape if isinstance(spec.shape, tuple) else (0,)
        if len(shape) > MOST_AXES or not all(isinstance(length, int) and length > 0 for length in shape):
            expected = f"a tuple of at most {MOST_AXES} lengths, each more than 0"
            raise _wrong(name, f"declares {array} of shape {quoted(spec.shape)}; expected {expected}")
        if not 1 <= spec.level <= MOST_LEVEL:
            raise _wrong(name, f"declares {array} of level {spec.level}; expected 1 to {MOST_LEVEL}")


def _wrong(name: str, problem: str) -> ConfigError:
    return ConfigError(f"codec {name} {problem}; correct it")
