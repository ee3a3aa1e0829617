"""Check types and ranges of plain values from untrusted files before they are used."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline.core.errors import quoted

_PLAIN = ("missing", "json_invalid", "value_error")


def require_form(form: type[BaseModel], value: Any, place: str = "") -> None:
    """Refuse a value whose types or ranges do not fit a form.

    Args:
        form: the expected types and ranges.
        value: as found in the file.
        place: of the value in its file, e.g. "views.crop"; "" for the whole.

    Raises:
        ValueError: naming the first wrong place and its value.
    """
    try:
        form.model_validate(value)
    except ValidationError as error:
        raise ValueError(first_problem(error, place)) from None


def first_problem(error: ValidationError, place: str = "") -> str:
    """Describe the first problem in a few words: its place, the found value, the expected one."""
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part)[:40] for part in ([place] if place else []) + list(problem["loc"]))
    message = " ".join(problem["msg"].split()).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if problem["type"] in _PLAIN:
        return f"{quoted(where)[1:-1]}: {message}" if where else message
    return f"{quoted(where or 'the whole')[1:-1]} is {quoted(problem['input'], 40)}: {message}"
