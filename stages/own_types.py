"""Values of params.yaml whose class the modality owns: checked by that class, before all the others."""

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
    """Marks a field whose value is of a class that pydantic does not know, and was checked already."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: pydantic.GetCoreSchemaHandler
    ) -> CoreSchema:
        """Take any value."""
        return core_schema.any_schema()


def checked(kind: type[Any], values: Any) -> Any:
    """Return an object of a dataclass from plain values; keys that it does not have are refused.

    Raises:
        pydantic.ValidationError: a value of another type or range, or an unknown key.
        ConfigError: the class is no dataclass.
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
    """Yield the dataclasses that fields of one may be of, by the field's name, at any depth.

    Raises:
        ConfigError: the class is no dataclass.
    """
    if not is_dataclass(kind):
        name = f"{kind.__module__}:{kind.__qualname__}"
        raise ConfigError(f"{name} is no dataclass; expected one; correct it")
    hints = typing.get_type_hints(kind)
    for field in fields(kind):
        hint = hints[field.name]
        for part in typing.get_args(hint) or (hint,):
            if isinstance(part, type) and is_dataclass(part):
                yield field.name, part
                yield from nested(part)
