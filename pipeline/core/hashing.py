"""Digests: decide whether contents, specifications or weights are equal.

Owns the hash functions, the canonical form of a specification, and the text for differences between two.
Callers choose the input.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import bounded

_READ_BYTES = 1 << 20
_TOLD, _LONGEST = 3, 60


def sample_key(name: str) -> int:
    """Return the 64-bit key of a sample's stable name (relative path, or index for arrays)."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def content_digest(array: NDArray[Any], label: int) -> int:
    """Return a 64-bit digest of one sample's shape and values and its label (-1: unlabelled)."""
    return encoded_digest(array, array.shape, label)


def encoded_digest(content: NDArray[Any], shape: tuple[int, ...], label: int) -> int:
    """Return a 64-bit digest of a sample's stored content, its full shape and its label."""
    state = hashlib.blake2b(struct.pack(f"<{len(shape) + 1}q", *shape, label), digest_size=8)
    state.update(np.ascontiguousarray(content, content.dtype.newbyteorder("<")).data)
    return int.from_bytes(state.digest(), "little")


def encoded_digests(content: NDArray[Any], shape: tuple[int, ...], label: int) -> tuple[int, int]:
    """Return `encoded_digest` with the label, and without it (-1)."""
    own = encoded_digest(content, shape, -1)
    return (own if label == -1 else encoded_digest(content, shape, label)), own


def bytes_glance(content: NDArray[np.uint8]) -> int:
    """Return a 64-bit digest of bytes, without shape or label."""
    return int.from_bytes(hashlib.blake2b(content.tobytes(), digest_size=8).digest(), "little")


@dataclass(frozen=True, slots=True)
class Described:
    """A description for people, and a digest for comparison.

    Args:
        digest: of all values that decide equality.
        plain: the description as plain values.
    """

    digest: str
    plain: Mapping[str, Any]


def canonical_json(value: Any) -> str:
    """Serialise plain values with sorted keys, no spaces and no NaN: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def spec_digest(value: Any) -> str:
    """Return the SHA-256 (hex) of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def array_digest(*arrays: NDArray[Any]) -> str:
    """Return the SHA-256 (hex) of arrays' dtypes, shapes and little-endian bytes, in order."""
    state = hashlib.sha256()
    for array in arrays:
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        state.update(f"{little.dtype.str}{little.shape}".encode())
        state.update(little.data)
    return state.hexdigest()


def named_arrays_digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return the SHA-256 (hex) of named arrays, independent of the mapping's order."""
    return spec_digest({name: array_digest(array) for name, array in arrays.items()})


def bytes_digest(content: bytes) -> str:
    """Return the SHA-256 (hex) of bytes."""
    return hashlib.sha256(content).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's bytes."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            state.update(block)
    return state.hexdigest()


def difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """List the differences between saved and requested nested values; "" if they are equal.

    Args:
        there: the saved values, as parsed from JSON.
        here: the requested values, serialisable as JSON.
    """
    was, now = _flat(there), _flat(json.loads(json.dumps(here)))
    names = [name for name in sorted({*was, *now}) if was.get(name) != now.get(name)]
    listed = [
        f"{bounded(name)} was {bounded(was.get(name), _LONGEST)}, is {bounded(now.get(name), _LONGEST)}"
        for name in names[:_TOLD]
    ]
    return "; ".join(listed) + (f"; and {len(names) - _TOLD} more" if len(names) > _TOLD else "")


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Flatten nested values to dotted names, e.g. {"a": {"b": 1}} to {"a.b": 1}."""
    if not isinstance(value, dict):
        return {name: value}
    parts = (_flat(inner, f"{name}.{key}" if name else key) for key, inner in value.items())
    return {key: inner for part in parts for key, inner in part.items()}
