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

Every message is one line that says what was found, what was expected and what to do next. Values that come
from a file or a user stand in it as `quoted` or `brief` give them, bounded and escaped.
"""

from __future__ import annotations

import difflib
import errno
import unicodedata
from collections.abc import Iterable, Sequence

_LONGEST = 200
# Parts of messages by which torch and the libraries below it tell that memory is short.
_SHORT_OF_MEMORY = (
    *("out of memory", "can't allocate memory", "not enough memory", "std::bad_alloc"),
    *("_ALLOC_FAILED", "Cannot allocate memory"),
)
# Control characters, direction marks and lone surrogates: a terminal obeys them, or cannot write them.
_UNSEEN = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))


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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, torch or the system says that memory is short, of a device or a host."""
    # The class of devices goes by its name: this module imports no torch.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError | OSError) and any(
        part in str(error) for part in _SHORT_OF_MEMORY
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean X?" for the known name closest to a mistyped one, or nothing."""
    spelled = {one.lower(): one for one in known}
    close = difflib.get_close_matches(name[:_LONGEST].lower(), spelled, 1)
    return f"; did you mean {spelled[close[0]]!r}?" if close else ""


def quoted(value: object, longest: int = _LONGEST) -> str:
    r"""Return a value of any size as a message quotes it: its repr, escaped, the middle left out.

    >>> print(quoted("a\x1b[31m"))
    'a\x1b[31m'
    >>> quoted("a" * 10**6, 12)
    "'aaaaa…aaaa'"
    """
    if isinstance(value, str) and len(value) > 2 * longest:
        value = value[:longest] + value[-longest:]
    try:
        return shortened(printable(repr(value)), longest)
    except (RecursionError, ValueError):  # nested too deeply, or an integer of thousands of digits
        return f"a {type(value).__name__}"


def brief(value: object, longest: int = _LONGEST) -> str:
    r"""Return the first line of a text, e.g. of another library's error, bounded and escaped.

    >>> brief("no such key\nTraceback")
    'no such key'
    """
    text = str(value)[: 16 * longest].strip()
    return bounded(next(iter(text.splitlines()), ""), longest)


def bounded(value: object, longest: int = _LONGEST) -> str:
    r"""Return a value as text of one line, without quotes: escaped, the middle left out.

    >>> bounded("a\nb")
    'a\\nb'
    """
    return shortened(printable(str(value)[: 16 * longest]), longest)


def shortened(text: str, longest: int = _LONGEST) -> str:
    """Return a text in at most so many characters, the middle left out.

    >>> shortened("a" * 1000, 12)
    'aaaaaa…aaaaa'
    """
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]}…{text[len(text) - (longest - 1 - half) :]}"


def counted(count: int, noun: str) -> str:
    """Return a number with its noun.

    >>> counted(1, "image"), counted(2048, "image"), counted(2, "class")
    ('1 image', '2,048 images', '2 classes')
    """
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def first_of(names: Sequence[str], most: int = 3) -> str:
    """Return the first of some names, escaped.

    >>> first_of(["a", "b", "c", "d"])
    'a, b, c, …'
    """
    shown = ", ".join(map(printable, names[:most]))
    return f"{shown}, …" if len(names) > most else shown


def printable(text: str) -> str:
    r"""Return a text with everything escaped that a terminal would obey, e.g. colours and line ends.

    >>> printable("a\x1b[31m")
    'a\\x1b[31m'
    """
    return "".join(ascii(letter)[1:-1] if _is_unseen(letter) else letter for letter in text)


def has_unseen(text: str) -> bool:
    """Whether a text has characters that a terminal obeys instead of showing them."""
    return any(map(_is_unseen, text))


def _is_unseen(letter: str) -> bool:
    return unicodedata.category(letter) in _UNSEEN
