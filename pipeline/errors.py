"""Errors that a user can cause, as one family.

    PipelineError
    ├── ConfigError      a parameter: unknown key, wrong type, out of range, contradictory
    ├── DataError        a dataset or one of its files
    ├── ModelError       a model name, its weights, or what it computes
    ├── TrainingError    a run that cannot go on
    ├── DeviceError      a device that cannot hold the work
    └── StoreError       a store of cached logits
        ├── IncompleteStoreError   not finished, or a part is missing
        ├── CorruptStoreError      bytes are not the bytes that were written
        ├── MismatchError          made from other content, teacher, views or codec
        └── LockedError            another process is writing it

Every message is one line that says what was found, what was expected and what to do next. Values that come
from a file or a command line go into it by `quoted` or `brief`, which bound and escape them.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable

_LONGEST = 80
# Control characters, direction marks and lone surrogates: a terminal obeys them, or cannot write them.
_UNSEEN = frozenset(("Cc", "Cf", "Cs"))


class PipelineError(Exception):
    """Base of every error that the command line reports in one line, without a traceback."""


class ConfigError(PipelineError, ValueError):
    """A parameter is unknown, of the wrong type, out of range, or contradicts another."""


class DataError(PipelineError):
    """A dataset, or one file of it, cannot be used."""


class ModelError(PipelineError):
    """A model cannot be built, loaded, or trusted on this data."""


class TrainingError(PipelineError):
    """Training cannot go on."""


class DeviceError(PipelineError):
    """A device cannot hold the work that it is given."""


class StoreError(PipelineError):
    """A store of cached logits cannot be used."""


class IncompleteStoreError(StoreError):
    """The store was not finished, or a part of it is missing."""


class CorruptStoreError(StoreError):
    """Bytes of the store are not those that were written."""


class MismatchError(StoreError):
    """The store was made from other content, another teacher, other views or another codec."""


class LockedError(StoreError):
    """Another process holds the store for writing."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean X?" for the known name closest to a mistyped one, or nothing."""
    close = difflib.get_close_matches(name[:_LONGEST], list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def quoted(value: object, longest: int = _LONGEST) -> str:
    r"""Return a value of any size as a message can quote it: its repr, bounded, control characters escaped.

    >>> print(quoted("a\x1b[31m"))
    'a\x1b[31m'
    >>> len(quoted("a" * 10**6))
    80
    """
    if isinstance(value, (str, bytes)):
        value = value[: longest + 1]
    try:
        return _bounded(repr(value), longest)
    except (RecursionError, ValueError):  # nested too deeply, or an integer of thousands of digits
        return f"a {type(value).__name__}"


def brief(value: object, longest: int = _LONGEST) -> str:
    r"""Return the first line of a text, e.g. of another library's error, bounded and escaped.

    >>> brief("no such key\nTraceback")
    'no such key'
    """
    text = str(value)[: 16 * longest].strip()
    return _bounded(next(iter(text.splitlines()), ""), longest)


def has_unseen(text: str) -> bool:
    """Whether a text has characters that a terminal obeys instead of showing them."""
    return any(unicodedata.category(character) in _UNSEEN for character in text)


def _bounded(text: str, longest: int) -> str:
    shown = text if len(text) <= longest else f"{text[: longest - 1]}…"
    if not has_unseen(shown):
        return shown
    return "".join(ascii(c)[1:-1] if unicodedata.category(c) in _UNSEEN else c for c in shown)
