"""Errors that a user can cause, as one family.

    PipelineError
    ├── ConfigError      a parameter: unknown key, wrong type, out of range, contradictory
    ├── DataError        a dataset or one of its files
    ├── ModelError       a model name, its weights, or what it computes
    │   └── NotFiniteError         weights or logits that are no finite numbers
    ├── TrainingError    a run that cannot go on
    ├── DeviceError      a device that cannot hold the work
    └── StoreError       a store of cached logits
        ├── IncompleteStoreError   not finished, or a part is missing
        ├── CorruptStoreError      bytes are not the bytes that were written
        ├── MismatchError          made from other content, teacher, views or codec
        └── LockedError            another process is writing it, or a run's files

Every message is one line that says what was found, what was expected and what to do next. Values of a
user, or of a file, stand in it as `shown` gives them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

SHOWN_CHARACTERS = 200


class PipelineError(Exception):
    """Base of every error that the command line reports in one line, without a traceback."""


class ConfigError(PipelineError, ValueError):
    """A parameter is unknown, of the wrong type, out of range, or contradicts another."""


class DataError(PipelineError):
    """A dataset, or one file of it, cannot be used."""


class ModelError(PipelineError):
    """A model cannot be built, loaded, or trusted on this data."""


class NotFiniteError(ModelError):
    """A model's weights, or the logits that it gives, are NaN or infinite."""


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
    """Another process is writing the store, or the files of the run."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean X?" for the known name closest to a mistyped one, or nothing."""
    spelled = {one.lower(): one for one in known}
    close = difflib.get_close_matches(name.lower(), spelled, 1)
    return f"; did you mean {spelled[close[0]]!r}?" if close else ""


def shortened(text: str, limit: int = SHOWN_CHARACTERS) -> str:
    """Return a text in at most so many characters, the middle left out.

    >>> shortened("a" * 1000, 12)
    'aaaaaa…aaaaa'
    """
    return text if len(text) <= limit else f"{text[: limit // 2]}…{text[len(text) - (limit - 1) // 2 :]}"


def printable(text: str) -> str:
    r"""Return a text with everything escaped that a terminal would obey, e.g. colours and line ends.

    >>> printable("a\x1b[31m")
    'a\\x1b[31m'
    """
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def shown(value: Any, limit: int = SHOWN_CHARACTERS) -> str:
    """Return a value as an error message repeats it: as Python writes it, in so many characters.

    >>> shown("a" * 1000, 12)
    "'aaaaa…aaaa'"
    """
    return shortened(repr(value), limit)
