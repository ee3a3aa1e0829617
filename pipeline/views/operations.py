"""The base of every operation of a view: a name, ranges of settings, and one form for equal numbers.

Each modality derives frozen dataclasses, one per operation, and owns their combinations. Here are the
checks that all share, and the way back from the plain values of a header.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

from pipeline.core.errors import ConfigError, MismatchError, brief, quoted

Bounds = tuple[float, float]


def require(condition: bool, name: str, found: object, expected: str) -> None:
    """Refuse a value of a view's parameters.

    Raises:
        ConfigError: the condition does not hold.
    """
    if not condition:
        raise ConfigError(f"{name} is {found}; expected {expected}")


class Augmentation:
    """Base class of operations: a name, checks, and one form for equal numbers."""

    name: ClassVar[str]

    def _require(self, setting: str, condition: bool, expected: str) -> None:
        value = getattr(self, setting)
        found = list(value) if isinstance(value, tuple) else value
        require(condition, f"{self.name}.{setting}", found, expected)

    def _normalise(self) -> None:
        """Convert numbers to float: 1 and 1.0 must give equal digests."""
        for one in fields(self):  # type: ignore[arg-type]
            value: Any = getattr(self, one.name)
            if isinstance(value, tuple):
                object.__setattr__(self, one.name, tuple(float(v) for v in value))
            elif one.type == "float":
                object.__setattr__(self, one.name, float(value))

    def _require_bounds(self, setting: str, low: float, high: float) -> None:
        """Check low < first <= second <= high."""
        first, second = getattr(self, setting)
        expected = f"[low, high] with {low:g} < low <= high <= {high:g}"
        self._require(setting, low < first <= second <= high, expected)

    def _require_share(self, setting: str = "probability") -> None:
        self._require(setting, 0 < getattr(self, setting) <= 1, "more than 0 and at most 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sometimes(Augmentation):
    """An operation on a share of the samples.

    Args:
        probability: share of the samples, in (0, 1].

    """

    probability: float = 0.5

    def __post_init__(self) -> None:
        self._require_share()
        self._normalise()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixing(Sometimes):
    """An operation that mixes a sample with its partner, e.g. Mixup or CutMix.

    Args:
        alpha: parameter of Beta(alpha, alpha), from which lambda is drawn, 0.05 to 8.

    """

    alpha: float = 1.0
    probability: float = 1.0

    def __post_init__(self) -> None:
        self._require("alpha", 0.05 <= self.alpha <= 8, "0.05 to 8")
        Sometimes.__post_init__(self)


T = TypeVar("T", bound=Augmentation)


def operation(kind: type[T], value: Any) -> T:
    """Return the operation that a header describes by its settings.

    Raises:
        ConfigError: a value has a wrong type or range.
    """
    require(isinstance(value, Mapping), kind.name, quoted(value), "its settings")
    plain = {key: tuple(v) if isinstance(v, list) else v for key, v in value.items()}
    kinds = {field.name: str(field.type) for field in fields(kind)}  # type: ignore[arg-type]
    for key, given in plain.items():
        fits = _is_of(kinds[key], given)
        require(fits, f"{kind.name}.{key}", quoted(given), f"a value of type {kinds[key]}")
    return kind(**plain)


def unknown_settings(kinds: Mapping[str, type[Augmentation]], value: Mapping[str, Any]) -> set[str]:
    """Return the settings that these operations do not have, as OPERATION.SETTING."""
    given = {name: value.get(name) for name in kinds}
    return {
        f"{name}.{setting}"
        for name, settings in given.items()
        if isinstance(settings, Mapping)
        for setting in set(settings) - {field.name for field in fields(kinds[name])}  # type: ignore[arg-type]
    }


def spec_values(
    value: Mapping[str, Any], kinds: Mapping[str, type[Augmentation]], names: set[str], semantics: int
) -> dict[str, Any]:
    """Return the fields of a view spec from its canonical form.

    Args:
        value: the canonical form, which is untrusted.
        kinds: the operations by name.
        names: of all fields of the spec.
        semantics: this program's version of rendering.

    Raises:
        MismatchError: written by an incompatible version of this program.
        ConfigError: a value has a wrong type or range.
    """
    given = set(value) - {"semantics"}
    unknown = sorted(given - names | unknown_settings(kinds, value))
    if unknown or value.get("semantics") != semantics:
        found = f"semantics {quoted(value.get('semantics'))} of rendering"
        raise MismatchError(
            f"the views have {f'operation {brief(unknown[0])}' if unknown else found}; this program knows "
            f"semantics {semantics} and the operations {', '.join(kinds)}; use the version that made them, "
            "or make a new dump"
        )
    require(type(value.get("seed", 0)) is int, "views.seed", quoted(value.get("seed")), "an integer")
    return {
        name: operation(kinds[name], value[name])
        if name in kinds and value[name] is not None
        else value[name]
        for name in given
    }


def plain_settings(value: Any) -> Any:
    """Return settings with lists for tuples, as JSON has them."""
    if not isinstance(value, dict):
        return value
    return {name: list(v) if isinstance(v, tuple) else v for name, v in value.items()}


def _is_of(kind: str, value: Any) -> bool:
    """Whether a plain value fits a field of an augmentation."""
    if kind == "Bounds":
        return isinstance(value, tuple) and len(value) == 2 and all(_is_of("float", v) for v in value)
    if kind == "tuple[float, ...]":
        return isinstance(value, tuple) and all(_is_of("float", v) for v in value)
    if kind == "float":
        return type(value) is int or (type(value) is float and math.isfinite(value))
    return type(value) is (str if kind == "str" else int)
