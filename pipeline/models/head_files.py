"""Read a head from a file: weights of a last layer, class vectors, or a map that merges classes.

| file | content |
|---|---|
| .npz, .safetensors | weight (K, D), bias (K,) or none, classes (C,); or prototypes (K, D), temperature |
| .yaml, .yml, .json | class map {new class: [old class, ...]} over the teacher's own last layer |

A file of tensors may have groups (K,): the place in `classes` of each row's merged class, -1 for none. A
safetensors file has its classes as a JSON list in its metadata. Files are data: nothing in them runs.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional as F

from pipeline.codecs.head import DROPPED, Head
from pipeline.codecs.rule import Link
from pipeline.core.errors import ModelError, did_you_mean, first_of, has_unseen, quoted
from pipeline.core.progress import note
from pipeline.core.text import read_yaml

MAPS = (".yaml", ".yml", ".json")
# Of CLIP: its logit scale ends at 100.
_TEMPERATURE = 0.01
_LAYERS = ("weight", "prototypes")
_ROLES = (*_LAYERS, "bias", "temperature", "groups", "classes")
_FORMS = "weight (C, D) or prototypes (C, D), and classes (C names)"
_DAMAGE = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError),
    *(zipfile.BadZipFile, zlib.error),
)
Parts = dict[str, Any]


def read_head(path: Path, link: Link, own: Mapping[str, Tensor] | None, classes: Sequence[str]) -> Head:
    """Read a head.

    Args:
        path: the file.
        link: of the outputs.
        own: weight (K, D) and bias (K,) of the teacher's last layer, for a class map; None without them.
        classes: K names of that layer's outputs.

    Raises:
        ModelError: the file is missing or damaged, or a part is missing, of another shape or not finite.
    """
    if not path.is_file():
        found = "not a file" if path.exists() else "no such file"
        raise ModelError(f"{path}: {found}; expected a head (.npz, .safetensors or a class map in .yaml)")
    if path.suffix in MAPS:
        return _mapped(path, link, own, classes)
    parts = _read_tensors(path) if path.suffix == ".safetensors" else _read_arrays(path)
    return _built(path, parts, link)


def merging(path: Path, mapping: Mapping[str, Sequence[str | int]], theirs: Sequence[str]) -> Tensor:
    """Return the group (K,) int64 of each of the teacher's classes, `DROPPED` for those in none.

    Args:
        path: the class map's file, for errors.
        mapping: new class -> old classes, by name or number.
        theirs: K names of the old classes.

    Raises:
        ModelError: an old class is unknown, or in two groups.
    """
    groups = torch.full((len(theirs),), DROPPED, dtype=torch.int64)
    for group, members in enumerate(mapping.values()):
        for member in members:
            place = _place(path, member, theirs)
            if groups[place] != DROPPED:
                names = list(mapping)
                raise ModelError(
                    f"{path}: {theirs[place]!r} is in {names[int(groups[place])]!r} and {names[group]!r}; "
                    "expected each class in one group; remove it from one"
                )
            groups[place] = group
    return groups


def _place(path: Path, member: str | int, theirs: Sequence[str]) -> int:
    if isinstance(member, int) and 0 <= member < len(theirs):
        return member
    places = [place for place, name in enumerate(theirs) if name == member]
    if len(places) == 1:
        return places[0]
    if len(places) > 1:
        raise ModelError(
            f"{path}: the teacher has several classes {member!r}, {' and '.join(map(str, places))}; "
            "expected one; use its number"
        )
    raise ModelError(
        f"{path}: {member!r} is no class of the teacher; expected one of its {len(theirs)} classes, e.g. "
        f"{first_of(theirs)}, or a number from 0 to {len(theirs) - 1}; correct it"
        f"{did_you_mean(str(member), theirs)}"
    )


def _mapped(path: Path, link: Link, own: Mapping[str, Tensor] | None, classes: Sequence[str]) -> Head:
    mapping = _read_map(path)
    if own is None:
        raise ModelError(
            f"{path}: a class map merges outputs of the teacher's last layer, which this dump does not "
            "keep; expected a dump with codec: features; or put weight, classes and groups into an .npz"
        )
    if link != "softmax":
        raise ModelError(
            f"{path}: a class map merges probabilities of one softmax, and these outputs are of a {link}; "
            "expected task classes; use a matrix of weights"
        )
    groups = merging(path, mapping, classes)
    left_out = [name for name, group in zip(classes, groups.tolist(), strict=True) if group == DROPPED]
    if left_out:
        note(
            f"{path}: {len(left_out)} of {len(classes)} classes are in no group and left out: "
            f"{first_of(left_out)}"
        )
    _require_names(path, list(mapping), len(mapping), link)
    return Head(weight=own["weight"], bias=own["bias"], classes=tuple(mapping), groups=groups, link=link)


def _read_map(path: Path) -> dict[str, list[str | int]]:
    try:
        content = read_yaml(path)  # JSON is YAML
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not YAML or JSON ({error}); expected a class map") from None
    found = {}
    for name, members in content.items() if isinstance(content, dict) else ():
        listed = members if isinstance(members, list) else [members]
        if not listed or not all(isinstance(m, str | int) and not isinstance(m, bool) for m in listed):
            raise ModelError(
                f"{path}: {quoted(name)} has {quoted(members)}; expected a list of the teacher's classes, "
                "by name or number; correct it"
            )
        found[str(name)] = listed
    if not found:
        raise ModelError(f"{path}: no class map; expected {{new class: [old class, ...]}}; write one")
    return found


def _read_arrays(path: Path) -> Parts:
    """Return the arrays of an .npz file; pickled objects are refused."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("a single array")
            return {name: archive[name] for name in archive.files if name in _ROLES}
    except _DAMAGE as error:
        raise _damaged(path, error) from None


def _read_tensors(path: Path) -> Parts:
    """Return the tensors of a safetensors file, and the classes in its metadata."""
    try:
        with safe_open(path, "pt") as archive:
            tensors = {n: archive.get_tensor(n) for n in archive.keys() if n in _ROLES}  # noqa: SIM118
            said = (archive.metadata() or {}).get("classes")
        named = {} if said is None else {"classes": np.array(json.loads(said))}
    except _DAMAGE as error:
        raise _damaged(path, error) from None
    return {**{name: _as_array(values) for name, values in tensors.items()}, **named}


def _as_array(values: Tensor) -> NDArray[Any]:
    found: NDArray[Any] = (values.float() if values.is_floating_point() else values).numpy()
    return found


def _damaged(path: Path, error: Exception) -> ModelError:
    text = " ".join(str(error).split())
    reason = "it has pickled objects, which could run code" if "allow_pickle" in text else quoted(text)
    return ModelError(f"{path}: not a head ({reason}); expected {_FORMS}; save it again")


def _built(path: Path, parts: Parts, link: Link) -> Head:
    layers = [name for name in _LAYERS if name in parts]
    if len(layers) != 1 or "classes" not in parts:
        has = ", ".join(sorted(parts)) or "none of them"
        where = " (in its metadata, as a JSON list)" if path.suffix == ".safetensors" else ""
        raise ModelError(f"{path}: has {has}; expected {_FORMS}{where}; add it")
    (layer,) = layers
    weight = _numbers(path, layer, parts[layer], 2)
    rows = len(weight)
    if "bias" in parts and layer == "prototypes":
        raise ModelError(f"{path}: has prototypes and bias; expected prototypes alone; remove the bias")
    if "temperature" in parts and layer == "weight":
        raise ModelError(
            f"{path}: has weight and temperature; expected prototypes; divide the weight by it"
        )
    bias = _numbers(path, "bias", parts["bias"], 1) if "bias" in parts else torch.zeros(rows)
    if len(bias) != rows:
        raise ModelError(f"{path}: bias has {len(bias)} values for {rows} rows; expected one per row")
    groups = None if "groups" not in parts else _groups(path, parts["groups"], rows)
    count = rows if groups is None else int(groups.max()) + 1
    names = _require_names(path, _texts(path, parts["classes"]), count, link)
    if layer == "prototypes":
        weight = _prototypes(path, weight, parts.get("temperature"))
    return Head(
        weight=weight, bias=bias, classes=names, unit=layer == "prototypes", groups=groups, link=link
    )


def _numbers(path: Path, name: str, values: NDArray[Any], axes: int) -> Tensor:
    """Return a float32 tensor of finite numbers with so many axes."""
    values = np.asarray(values)
    form = {1: "(C,)", 2: "(C, D)"}[axes]
    if values.dtype.kind != "f":
        raise ModelError(f"{path}: {name} is {values.dtype}; expected floats {form}; convert it")
    if values.ndim != axes or not values.size:
        raise ModelError(f"{path}: {name} has shape {values.shape}; expected {form}; correct it")
    found = torch.from_numpy(np.ascontiguousarray(values.astype(np.float32)))
    if not bool(found.isfinite().all()):
        raise ModelError(f"{path}: {name} has NaN or infinite values; expected finite numbers; correct it")
    return found


def _prototypes(path: Path, vectors_CD: Tensor, temperature: NDArray[Any] | None) -> Tensor:
    """Return class vectors of length 1 / temperature."""
    value = _TEMPERATURE if temperature is None else float(np.asarray(temperature).reshape(-1)[0])
    if not 1e-4 <= value <= 100:
        raise ModelError(f"{path}: temperature is {value:g}; expected 0.0001 to 100, e.g. 0.01 for CLIP")
    if not bool((vectors_CD.norm(dim=1) > 0).all()):
        raise ModelError(f"{path}: a prototype is all zeros, which has no direction; correct it")
    return F.normalize(vectors_CD, dim=1) / value


def _groups(path: Path, values: NDArray[Any], rows: int) -> Tensor:
    values = np.asarray(values)
    if values.dtype.kind not in "iu" or values.shape != (rows,):
        raise ModelError(
            f"{path}: groups is {values.dtype} {values.shape}; expected integers ({rows},), one per row"
        )
    found = torch.from_numpy(values.astype(np.int64))
    used = set(found.tolist()) - {DROPPED}
    if not used or used != set(range(max(used) + 1)):
        raise ModelError(
            f"{path}: groups are {first_of([str(g) for g in sorted(used)])}; expected 0 to C - 1, each "
            "used, and -1 for rows in none; renumber them"
        )
    return found


def _texts(path: Path, values: NDArray[Any]) -> list[str]:
    values = np.asarray(values)
    if values.ndim != 1 or values.dtype.kind not in "US":
        raise ModelError(f"{path}: classes is {values.dtype} {values.shape}; expected C names; correct it")
    return [name.decode() if isinstance(name, bytes) else str(name) for name in values.tolist()]


def _require_names(path: Path, names: list[str], count: int, link: Link) -> tuple[str, ...]:
    if len(names) != count:
        raise ModelError(f"{path}: has {len(names)} classes for {count} outputs; expected one name each")
    counts = Counter(names)
    twice = next((name for name in names if counts[name] > 1), None)
    if twice is not None:
        raise ModelError(f"{path}: two outputs are named {quoted(twice)}; expected different names")
    if any(not name or has_unseen(name) for name in names):
        raise ModelError(f"{path}: a class has an empty or unprintable name; expected text; correct it")
    if link == "softmax" and count < 2:
        raise ModelError(f"{path}: has one class; expected two or more for a softmax; add another")
    return tuple(names)
