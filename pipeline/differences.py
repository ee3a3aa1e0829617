"""In what two nested mappings of plain values differ, in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipeline.errors import bounded

_TOLD, _LONGEST = 3, 60


def difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Say in what one that was saved differs from one that is asked for; "" where they are the same.

    Args:
        there: as JSON gave it back.
        here: of values that JSON takes.
    """
    was, now = _flat(there), _flat(json.loads(json.dumps(here)))
    names = [name for name in sorted({*was, *now}) if was.get(name) != now.get(name)]
    listed = [
        f"{bounded(name)} was {bounded(was.get(name), _LONGEST)}, is {bounded(now.get(name), _LONGEST)}"
        for name in names[:_TOLD]
    ]
    return "; ".join(listed) + (f"; and {len(names) - _TOLD} more" if len(names) > _TOLD else "")


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Return nested values by their dotted names."""
    if not isinstance(value, dict):
        return {name: value}
    parts = (_flat(inner, f"{name}.{key}" if name else key) for key, inner in value.items())
    return {key: inner for part in parts for key, inner in part.items()}
