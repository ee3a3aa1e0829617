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

Every message is one line that says what was found, what was expected and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
    spelled = {one.lower(): one for one in known}
    close = difflib.get_close_matches(name.lower(), spelled, 1)
    return f"; did you mean {spelled[close[0]]!r}?" if close else ""
