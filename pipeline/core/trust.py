"""Decide which code may run: only code that the user named, in params.yaml or on the command line.

A card is untrusted data. Alone it neither runs code nor chooses a file or address to read weights from.
Owns that rule; `models/own_code.py` finds and calls the code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.core.errors import ModelError, quoted

# Options of builders that name weights: a file, an address or a download.
WEIGHT_OPTIONS = ("pretrained", "weights", "weights_backbone", "checkpoint_path")
# timm's builder reads these only with `pretrained`; the timm family removes paths from them.
_UNUSED_OPTIONS = ("pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "cache_dir")
# A plain word, e.g. "gelu"; never a path, an address or a dotted name.
_WORD = re.compile(r"[A-Za-z0-9_+-]{0,64}")
_MOST_VALUES = 256
_LARGEST = 1e18


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """The code that a user named.

    Args:
        models: `module:callable` to the options that the user passes; a card may add plain values.
        code: `module` or `module:callable` that may be called with any options of a card.
        remedy: advice in the error for all other code, with {name} for the callable.

    >>> Trust(code=frozenset({"own"})).allows("own:net")
    True
    """

    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    code: frozenset[str] = frozenset()
    remedy: str = "pass trust=Trust(code=frozenset({{{name!r}}}))"

    def allows(self, name: str) -> bool:
        """Whether the user named a callable, or its module."""
        return name in self.models or self._unreserved(name)

    def require_code(self, name: str, options: Mapping[str, Any], card: str) -> None:
        """Refuse code that only a card names.

        Args:
            name: `module:callable` of the card.
            options: of the card, for the callable.
            card: the card's file, for errors.

        Raises:
            ModelError: the user named different code, or passes different options.
        """
        if not self.allows(name):
            remedy = self.remedy.format(name=name)
            raise ModelError(
                f"{card}: asks to run code, {quoted(name)}; a card alone runs no code; if you trust this "
                f"code: {remedy}"
            )
        if self._unreserved(name):
            return
        given = self.models[name]
        for option, value in options.items():
            as_given = option in given and given[option] == value
            if not as_given and not is_plain(value):
                raise ModelError(
                    f"{card}: sets option {quoted(option)} of {name} to {quoted(value)}, which "
                    "the user did not set; a card may only set numbers and words; retrain the model, or "
                    "use its weights without the card"
                )

    def _unreserved(self, name: str) -> bool:
        return name in self.code or name.partition(":")[0] in self.code


NOTHING = Trust()


def require_plain_options(name: str, options: Mapping[str, Any], card: str) -> None:
    """Refuse options of a card that could lead a library's builder to a file, an address or code.

    Args:
        name: of a library's model.
        options: of the card.
        card: the card's file, for errors.

    Raises:
        ModelError: an option names weights, or is not made of numbers and words.
    """
    for option, value in options.items():
        if option in WEIGHT_OPTIONS:
            problem = "weights come from the checkpoint"
        elif option in _UNUSED_OPTIONS or is_plain(value):
            continue
        else:
            problem = "expected numbers and words"
        raise ModelError(
            f"{card}: option {quoted(option)} of {quoted(name)} is {quoted(value)}; {problem}; remove it"
        )


def is_plain(value: object, depth: int = 0) -> bool:
    """Whether a value is a number, a word, a boolean or None, or a short list or table of these."""
    if isinstance(value, str):
        return _WORD.fullmatch(value) is not None
    if isinstance(value, list | tuple | dict):
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        return depth < 3 and len(inner) <= _MOST_VALUES and all(is_plain(item, depth + 1) for item in inner)
    return value is None or (isinstance(value, bool | int | float) and abs(value) < _LARGEST)
