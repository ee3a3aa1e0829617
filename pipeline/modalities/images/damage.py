"""Damaged files: record libjpeg's warnings to name the file, and remark on odd images.

A JPEG with a damaged scan decodes, partly to wrong pixels. libjpeg only writes a line to the process's
stderr, without the file's name, and torchvision passes nothing on. While an `Ear` is open, file descriptor
2 leads to a temporary file. If a decoding wrote a line, the image is decoded again alone, so the line
belongs to one file. An undamaged image costs two system calls.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, suppress
from pathlib import Path
from threading import Condition, Lock
from typing import IO, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import counted, first_of
from pipeline.core.files import write_bytes
from pipeline.core.progress import note
from pipeline.modalities.images.decoding import is_deep
from pipeline.samples.draft import require_none
from pipeline.samples.intake import Remarks

T = TypeVar("T")
_STDERR = 2
# libjpeg's warnings (jerror.h) about damaged data; its other warnings concern odd but whole files.
_DAMAGED = (b"Corrupt JPEG data", b"Premature end of JPEG file", b"Inconsistent progression sequence")
# A bad profile, or extra bytes between the image and its end, change no pixel.
_WHOLE = re.compile(rb"Corrupt JPEG data: (bad ICC marker|\d+ extraneous bytes before marker 0xd9)")
DAMAGED, NARROW = 1, 2
# The largest 8-bit level of a 16-bit image that uses less than a quarter of its range.
_NARROW_LEVELS = 64
DAMAGED_LIST = "damaged.txt"
OnDamage = Literal["warn", "refuse"]


class Ear:
    """Records libjpeg's warnings in a `with` block; passes other lines on when the last ear closes.

    Several ears may be open: they share the process's stderr. Without a stderr, nothing is recorded.
    """

    def __enter__(self) -> Self:
        _LINE.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        _LINE.__exit__(*error)

    def listen(self, decode: Callable[[], T]) -> tuple[T, bool]:
        """Decode, on any thread; return the result and whether libjpeg reported damage."""
        return _LINE.listen(decode)


class _Line:
    """File descriptor 2 of this process, redirected while at least one ear is open."""

    def __init__(self) -> None:
        self._listeners, self._changing = 0, Lock()
        self._closing = ExitStack()
        self._heard: IO[bytes] | None = None
        self._gate = _Gate()

    def __enter__(self) -> Self:
        with self._changing, suppress(OSError):
            self._listeners += 1
            if self._listeners == 1:
                voice = os.dup(_STDERR)
                self._closing.callback(os.close, voice)
                self._keep_python_on(voice)
                self._heard = self._closing.enter_context(tempfile.TemporaryFile())
                self._closing.callback(self._pass_on, voice)
                os.dup2(self._heard.fileno(), _STDERR)
        return self

    def __exit__(self, *_: object) -> None:
        with self._changing:
            self._listeners -= 1
            if not self._listeners:
                self._closing.close()
                self._heard = None

    def renew(self) -> None:
        """Record alone in a forked process; lines of before, and of others, are the parent's."""
        self._changing, self._gate = Lock(), _Gate()
        if self._heard is not None:
            self._heard = tempfile.TemporaryFile()  # noqa: SIM115 (as long as this process)
            os.dup2(self._heard.fileno(), _STDERR)

    def listen(self, decode: Callable[[], T]) -> tuple[T, bool]:
        if self._heard is None:
            return decode(), False
        with self._gate.among_others():
            before = self._length()
            result = decode()
            if self._length() == before:
                return result, False
        with self._gate.alone():
            before = self._length()
            result = decode()
            return result, any(map(_is_damage, self._lines(before)))

    def _keep_python_on(self, voice: int) -> None:
        """Keep Python's own stderr, e.g. progress bars, out of the redirection."""
        with suppress(AttributeError, OSError, ValueError):
            if sys.stderr.fileno() == _STDERR:
                sys.stderr.flush()
                own = os.fdopen(voice, "w", 1, sys.stderr.encoding, "backslashreplace", closefd=False)
                self._closing.callback(own.close)
                self._closing.enter_context(redirect_stderr(own))

    def _pass_on(self, voice: int) -> None:
        os.dup2(voice, _STDERR)
        for line in self._lines(0):
            if not _is_of_decoders(line):
                os.write(voice, line)

    def _length(self) -> int:
        return 0 if self._heard is None else os.fstat(self._heard.fileno()).st_size

    def _lines(self, start: int) -> list[bytes]:
        if self._heard is None:
            return []
        return os.pread(self._heard.fileno(), self._length() - start, start).splitlines(keepends=True)


class _Gate:
    """Admits many decodings at once, or a single one alone."""

    def __init__(self) -> None:
        self._changed, self._inside = Condition(), 0

    @contextmanager
    def among_others(self) -> Iterator[None]:
        with self._changed:
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._inside)
            yield


def _is_damage(line: bytes) -> bool:
    return line.startswith(_DAMAGED) and _WHOLE.match(line) is None


def _is_of_decoders(line: bytes) -> bool:
    """Whether a line is from libjpeg or libpng: about odd profiles, or next to an error with the name."""
    return line.startswith(
        (*_DAMAGED, b"libpng ", b"Invalid SOS parameters", b"Unknown Adobe color", b"Warning: unknown JF")
    )


_LINE = _Line()
os.register_at_fork(after_in_child=_LINE.renew)


def count_remarks(remarks: Remarks) -> dict[str, int]:
    """Return the number of images per remark, without zeros."""
    counts = {"damaged": len(remarks.files(DAMAGED)), "narrow_range": len(remarks.files(NARROW))}
    return {name: count for name, count in counts.items() if count}


def remark_on(content: NDArray[np.uint8], pixels: NDArray[np.uint8], *, damaged: bool) -> int:
    """Return the remarks on a decoded file.

    Args:
        content: bytes of the file.
        pixels: (H, W, C), decoded.
        damaged: whether the decoder reported damage.
    """
    narrow = is_deep(content) and int(pixels.max(initial=0)) < _NARROW_LEVELS
    return DAMAGED * damaged + NARROW * narrow


def tell_remarks(remarks: Remarks, folder: Path) -> None:
    """Print remarks on stderr, one line each; list damaged files in the prepared dataset's folder."""
    narrow, damaged, path = remarks.files(NARROW), remarks.files(DAMAGED), folder / DAMAGED_LIST
    if narrow:
        use, are = ("uses", "is") if len(narrow) == 1 else ("use", "are")
        note(
            f"narrow range: {counted(len(narrow), 'image')} with 16 bits {use} less than a quarter of "
            f"their range and {are} nearly black: {first_of(narrow)}; stretch the values if this is not "
            "intended"
        )
    path.unlink(missing_ok=True)
    if damaged:
        write_bytes(path, "".join(f"{file}\n" for file in damaged).encode(errors="replace"))
        have = "has" if len(damaged) == 1 else "have"
        note(
            f"damaged: {counted(len(damaged), 'image')} {have} corrupt JPEG data and may decode wrongly: "
            f"{first_of(damaged)}; the full list is in {path}; replace or remove them, or set "
            "data.damaged: refuse"
        )


def refuse_damaged(remarks: Remarks, count: int, state: Path) -> None:
    """Refuse to finish with damaged files.

    Args:
        remarks: remarks on the images.
        count: number of all images.
        state: folder of the unfinished preparation, for the list.

    Raises:
        DataError: some files are damaged; the message names the first.
    """
    lines = [
        f"{file}: damaged image (corrupt JPEG data), and data.damaged is 'refuse'; replace or remove the "
        "file"
        for file in remarks.files(DAMAGED)
    ]
    require_none(lines, f"of {count:,} images are damaged", state)
