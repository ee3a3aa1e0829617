"""One family of errors, for every problem that a user can cause.

    PipelineError
    ├── ConfigError      a parameter: unknown key, wrong type, out of range, contradictory
    ├── DataError        a dataset or one of its files
    ├── ModelError       a model name, its weights, or its outputs
    │   └── NotFiniteError         weights or logits that are NaN or infinite
    ├── TrainingError    a run that cannot continue
    ├── DeviceError      a device that cannot hold the work
    ├── EngineError      an engine of several machines, or one of its workers
    └── StoreError       a store of cached logits
        ├── IncompleteStoreError   unfinished, or a part is missing
        ├── CorruptStoreError      bytes differ from the bytes that were written
        ├── MismatchError          made from different content, teacher, views or codec
        └── LockedError            another process is writing the store, or a run's files

Every message is one line: the found value, the expected value, the next command. Values from a file or a
user are bounded and escaped by `quoted` or `brief`.
"""

from __future__ import annotations

import difflib
import errno
import unicodedata
from collections.abc import Iterable, Sequence

_LONGEST = 200
# Parts of the out-of-memory messages of torch and the libraries below it.
_SHORT_OF_MEMORY = (
    *("out of memory", "can't allocate memory", "not enough memory", "std::bad_alloc"),
    *("_ALLOC_FAILED", "Cannot allocate memory", "failed to map segment"),
)
# Control characters, direction marks and lone surrogates: a terminal obeys or cannot print them.
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
    """A model's weights or logits are NaN or infinite."""


class TrainingError(PipelineError):
    """Training cannot continue."""


class DeviceError(PipelineError):
    """A device has too little memory for the work."""


class EngineError(PipelineError):
    """An engine that runs work on several machines cannot be used, or one of its workers failed."""


class StoreError(PipelineError):
    """A store of cached logits cannot be used."""


class IncompleteStoreError(StoreError):
    """The store is unfinished, or a part is missing."""


class CorruptStoreError(StoreError):
    """Bytes of the store differ from the bytes that were written."""


class MismatchError(StoreError):
    """The store was made from different content, or with a different teacher, views or codec."""


class LockedError(StoreError):
    """Another process is writing the store, or the files of the run."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, torch or the system means too little memory, on a device or the host."""
    # torch's class is recognised by name: this module does not import torch.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    # A library that does not fit into memory fails as it is imported.
    return isinstance(error, RuntimeError | OSError | ImportError) and any(
        part in str(error) for part in _SHORT_OF_MEMORY
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean X?" for the known name closest to a mistyped one, or nothing.

    >>> did_you_mean("resnt", ["resnet", "vgg"]), did_you_mean("dk", ["kd", "scratch"])
    ("; did you mean 'resnet'?", "; did you mean 'kd'?")
    """
    spelled, asked = {one.lower(): one for one in known}, name[:_LONGEST].lower()
    # Two letters swapped make a short name less similar than the library's bound.
    close = difflib.get_close_matches(asked, spelled, 1) or [
        one for one in spelled if sorted(one) == sorted(asked)
    ]
    return f"; did you mean {spelled[close[0]]!r}?" if close else ""


def quoted(value: object, longest: int = _LONGEST) -> str:
    r"""Return the repr of a value of any size for a message: escaped, shortened in the middle.

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
    r"""Return a value as one line of text without quotes: escaped, shortened in the middle.

    >>> bounded("a\nb")
    'a\\nb'
    """
    return shortened(printable(str(value)[: 16 * longest]), longest)


def shortened(text: str, longest: int = _LONGEST) -> str:
    """Shorten a text to at most `longest` characters by leaving out the middle.

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
    return f"{count:,} {noun if count == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """Return the plural of a noun.

    >>> plural("view"), plural("class"), plural("key"), plural("history")
    ('views', 'classes', 'keys', 'histories')
    """
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def first_of(names: Sequence[str], most: int = 3) -> str:
    """Return the first `most` names, escaped and bounded, as one text.

    >>> first_of(["a", "b", "c", "d"])
    'a, b, c, …'
    """
    shown = ", ".join(map(bounded, names[:most]))
    return f"{shown}, …" if len(names) > most else shown


def printable(text: str) -> str:
    r"""Escape every character that a terminal would obey, e.g. colours and line ends.

    >>> printable("a\x1b[31m")
    'a\\x1b[31m'
    """
    return "".join(ascii(letter)[1:-1] if _is_unseen(letter) else letter for letter in text)


def has_unseen(text: str) -> bool:
    """Whether a text contains characters that a terminal obeys instead of printing."""
    return any(map(_is_unseen, text))


def _is_unseen(letter: str) -> bool:
    return unicodedata.category(letter) in _UNSEEN
