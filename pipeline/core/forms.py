"""Plain values of files that may come from anybody: types and ranges, before anything is made of them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline.core.errors import quoted

_PLAIN = ("missing", "json_invalid", "value_error")


def require_form(form: type[BaseModel], value: Any, place: str = "") -> None:
    """Refuse a value that has not the types and ranges of a form.

    Args:
        form: what is expected.
        value: what is there.
        place: of the value in its file; "" for the whole.

    Raises:
        ValueError: naming the first place that breaks it, and what is there.
    """
    try:
        form.model_validate(value)
    except ValidationError as error:
        raise ValueError(first_problem(error, place)) from None


def first_problem(error: ValidationError, place: str = "") -> str:
    """Return the first thing that is wrong in a few words: its place, what is there, what was expected."""
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part)[:40] for part in ([place] if place else []) + list(problem["loc"]))
    message = " ".join(problem["msg"].split()).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if problem["type"] in _PLAIN:
        return f"{quoted(where)[1:-1]}: {message}" if where else message
    return f"{quoted(where or 'the whole')[1:-1]} is {quoted(problem['input'], 40)}: {message}"
