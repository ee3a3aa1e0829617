"""Values of params.yaml with classes of the modality: checked before all other values."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import pydantic
from pydantic_core import CoreSchema, core_schema

from pipeline.core.errors import ConfigError

_ADAPTERS: dict[type[Any], pydantic.TypeAdapter[Any]] = {}


class AsItIs:
    """Marks a field whose value is already checked and has a class unknown to pydantic."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: pydantic.GetCoreSchemaHandler
    ) -> CoreSchema:
        """Accept any value."""
        return core_schema.any_schema()


def checked(kind: type[Any], values: Any) -> Any:
    """Build an object of a dataclass from plain values; unknown keys are refused.

    Raises:
        pydantic.ValidationError: a wrong type or range, or an unknown key.
        ConfigError: the class is not a dataclass.
    """
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = _strict(kind)
    return _ADAPTERS[kind].validate_python(values)


def _strict(kind: type[Any]) -> pydantic.TypeAdapter[Any]:
    for inner in (kind, *(one for _, one in nested(kind))):
        if "__pydantic_config__" not in inner.__dict__:
            inner.__pydantic_config__ = pydantic.ConfigDict(extra="forbid")
    return pydantic.TypeAdapter(kind)


def nested(kind: type[Any]) -> Iterator[tuple[str, type[Any]]]:
    """Yield (field name, dataclass) for all fields of a dataclass type, at any depth.

    Raises:
        ConfigError: the class is not a dataclass.
    """
    if not is_dataclass(kind):
        name = f"{kind.__module__}:{kind.__qualname__}"
        raise ConfigError(f"{name} is not a dataclass; expected one; correct it")
    hints = typing.get_type_hints(kind)
    for field in fields(kind):
        hint = hints[field.name]
        for part in typing.get_args(hint) or (hint,):
            if isinstance(part, type) and is_dataclass(part):
                yield field.name, part
                yield from nested(part)
