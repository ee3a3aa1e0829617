"""What a class may be called: a text that can be read, told from all others, and printed."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from pipeline.core.errors import DataError

# Control characters, surrogates, line and paragraph separators.
_UNPRINTED = ("Cc", "Cs", "Zl", "Zp")
_INVISIBLE = "Cf"


def require_class_names(where: object, names: Sequence[str]) -> None:
    """Refuse names that a person could not tell apart, or that would break a line.

    Args:
        where: the source, for errors.
        names: of the classes.

    Raises:
        DataError: an empty name, one with control characters, or two that look alike.
    """
    seen: dict[str, str] = {}
    for name in names:
        if not normal(name).strip():
            raise DataError(f"{where}: class name {ascii(name)[:100]} is empty; expected a text; rename it")
        if any(unicodedata.category(character) in _UNPRINTED for character in name):
            raise DataError(
                f"{where}: class name {ascii(name)[:100]} has control characters; expected a text of one "
                "line; rename it"
            )
        other = seen.get(normal(name))
        seen[normal(name)] = name
        if other is not None:
            how = (
                "occurs twice"
                if other == name
                else f"and {ascii(other)[:100]} differ in Unicode form alone"
            )
            raise DataError(
                f"{where}: class name {ascii(name)[:100]} {how}; expected a name of its own for each "
                "class; rename one, or merge them"
            )


def normal(name: str) -> str:
    """Return a name in Unicode's composed form, without invisible characters: what looks alike is equal."""
    shown = "".join(letter for letter in name if unicodedata.category(letter) != _INVISIBLE)
    return unicodedata.normalize("NFC", shown)
