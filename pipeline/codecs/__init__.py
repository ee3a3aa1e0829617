"""Codecs: convert a teacher's outputs to arrays of a store and back, on the device that holds them.

A codec is a pair of functions and the arrays that it declares. When it encodes, the task's rule says which
part of an output to keep; decoding needs no rule. A softmax ignores a constant per row, so logits are kept
relative to the row's maximum: decoded rows have the maximum 0. Other outputs are absolute: whoever finds
a codec says so, and a store's layout tells it by the outputs' link.

A new codec is one function and one line in a table: `_PLAIN`, and `ABSOLUTE` if it keeps absolute outputs;
`_NUMBERED` if the name ends in a number and it keeps a softmax, e.g. `topk-50`; `_FITTED` if the codec is
built from arrays that the store keeps once. Codebooks, e.g. `pq-16`, are in `vectors.py`. User code has the
form `module:NAME`: see `own_code.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from pipeline.codecs import digits as digits_codec
from pipeline.codecs import features as features_codec
from pipeline.codecs import vectors as vector_codecs
from pipeline.codecs.base import ArraySpec, Codec, TeacherOutput
from pipeline.codecs.dense import affine, fp16
from pipeline.codecs.own_code import OWN_CODECS, is_own_codec, own_codec, split_number, trust_codec
from pipeline.codecs.rule import Rule
from pipeline.codecs.topk import topk
from pipeline.core.errors import ConfigError, did_you_mean, quoted
from pipeline.core.hashing import named_arrays_digest

__all__ = [
    "CODECS",
    "OWN_CODECS",
    "ArraySpec",
    "Codec",
    "Rule",
    "TeacherOutput",
    "codec_fingerprint",
    "find_codec",
    "has_codewords",
    "is_own_codec",
    "state_shapes",
    "trust_codec",
]

# name -> function from the number of classes to the codec
_PLAIN: Mapping[str, Callable[[int], Codec]] = {
    "fp16": fp16,
    "affine8": functools.partial(affine, 8),
    "affine6": functools.partial(affine, 6),
    "affine4": functools.partial(affine, 4),
}
# The same for absolute outputs, whose rows have no part to drop.
ABSOLUTE: Mapping[str, Callable[[int], Codec]] = {
    "fp16": functools.partial(fp16, absolute=True),
    "affine8": functools.partial(affine, 8, absolute=True),
    "affine6": functools.partial(affine, 6, absolute=True),
    "affine4": functools.partial(affine, 4, absolute=True),
}
# name -> function from the number in the name and the number of classes to the codec; of a softmax only
_NUMBERED: Mapping[str, Callable[[int, int], Codec]] = {"topk": topk}


@dataclass(frozen=True, slots=True)
class _Fitted:
    """A codec that is built from arrays that the store keeps once.

    Args:
        make: these arrays, and whether outputs are absolute, to the codec.
        require: refuses arrays that cannot come from fitting, given the number of outputs.
        state: name -> dtype and axes of each array.
    """

    make: Callable[[Mapping[str, Tensor], bool], Codec]
    require: Callable[[Mapping[str, Tensor], int], None]
    state: Mapping[str, tuple[str, str]]


_FITTED: Mapping[str, _Fitted] = {
    "features": _Fitted(
        lambda state, absolute: features_codec.features(state, absolute=absolute),
        features_codec.require_state,
        features_codec.STATE,
    ),
    "digits": _Fitted(
        lambda state, _: digits_codec.digits(state), digits_codec.require_state, digits_codec.STATE
    ),
}
# Names before the number of bytes in codecs of whole vectors; absolute outputs only.
_FITTED_NUMBERED: Mapping[str, Mapping[str, tuple[str, str]]] = vector_codecs.STATES
CODECS = (
    *_PLAIN,
    *(f"{name}-K" for name in _NUMBERED),
    *_FITTED,
    *(f"{name}-M" for name in _FITTED_NUMBERED),
)


def state_shapes(name: str) -> Mapping[str, tuple[str, str]]:
    """Return dtype and axes of each array that a store of this codec keeps once; most codecs have none.

    >>> state_shapes("pq-16")["part"]
    ('int32', 'D')
    """
    if name in _FITTED:
        return _FITTED[name].state
    stem, number = split_number(name)
    return {} if number is None else _FITTED_NUMBERED.get(stem, {})


def find_codec(
    name: str, n_classes: int, state: Mapping[str, Tensor] | None = None, *, absolute: bool = False
) -> Codec:
    """Return a codec by its name.

    Args:
        name: one of `CODECS`, with a number for K or M; or user code, `module:NAME` or `module:NAME-K`.
        n_classes: C.
        state: the arrays that a store of a fitted codec keeps once.
        absolute: whether outputs are absolute, i.e. under another link than a softmax's.

    Raises:
        ValueError: the state cannot come from fitting.
        ConfigError: no codec has this name, or the codec cannot keep these outputs; or the user neither
            named nor trusted its code, or this code makes no codec.

    >>> {name: spec.shape for name, spec in find_codec("topk-5", 1000).arrays.items()}
    {'gaps': (2, 5), 'codes': (5,), 'scale': (), 'tail': ()}
    """
    plain = ABSOLUTE if absolute else _PLAIN
    if name in plain:
        return plain[name](n_classes)
    if name in _FITTED:
        _FITTED[name].require(state or {}, n_classes)
        return _FITTED[name].make(state or {}, absolute)
    if is_own_codec(name):
        return own_codec(name, n_classes)
    stem, number = split_number(name)
    if number is not None and stem in _FITTED_NUMBERED:
        return _of_vectors(stem, number, n_classes, state or {}, absolute=absolute)
    if number is None or stem not in _NUMBERED:
        raise ConfigError(
            f"codec is {quoted(name)}; expected one of {', '.join(CODECS)}, or module:NAME of your own"
            f"{did_you_mean(name, CODECS)}"
        )
    if absolute:
        raise ConfigError(
            f"codec is {quoted(name)}, which keeps the likeliest classes of one softmax; this task has no "
            f"softmax; expected {', '.join((*ABSOLUTE, *_FITTED))} or auto"
        )
    return _NUMBERED[stem](number, n_classes)


def _of_vectors(
    stem: str, number: int, n_outputs: int, state: Mapping[str, Tensor], *, absolute: bool
) -> Codec:
    if not absolute:
        raise ConfigError(
            f"codec is '{stem}-{number}', which keeps vectors as a whole; this task has one softmax; "
            f"expected {', '.join((*_PLAIN, 'features'))} or auto"
        )
    vector_codecs.require_bytes(stem, number, n_outputs)
    vector_codecs.require_state(stem, number, state, n_outputs)
    return vector_codecs.vectors(stem, number, state)


def has_codewords(name: str) -> bool:
    """Whether a codec stores numbers of codewords.

    >>> has_codewords("pq-16"), has_codewords("digits")
    (True, False)
    """
    return not is_own_codec(name) and split_number(name)[0] in _FITTED_NUMBERED


def codec_fingerprint(codec: Codec) -> str:
    """Return a codec's identity: its name, its version, and a digest of its state if it has one."""
    name = f"{codec.name}.{codec.version}"
    if not codec.state:
        return name
    return f"{name}.{named_arrays_digest({k: v.cpu().numpy() for k, v in codec.state.items()})}"
