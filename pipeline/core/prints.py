"""Code that prints does so on stderr, since stdout is for programs; other threads keep their stdout."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_lock = threading.Lock()
_threads: list[int] = []


class _Stdout:
    """Standard output, and standard error for the threads inside `prints_to_stderr`."""

    def __init__(self, stdout: Any) -> None:
        self._stdout = stdout

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr if threading.get_ident() in _threads else self._stdout, name)


@contextmanager
def prints_to_stderr() -> Iterator[None]:
    """Send what this thread prints in a `with` block to stderr; threads may enter and leave in any order.

    `contextlib.redirect_stdout` is for all threads at once: of two that overlap, the last one to leave
    would keep the first one's redirection for ever.

    Example:
        >>> with prints_to_stderr():
        ...     print("loading weights")  # on stderr
    """
    thread = threading.get_ident()
    with _lock:
        if not _threads:
            sys.stdout = _Stdout(sys.stdout)
        _threads.append(thread)
    try:
        yield
    finally:
        with _lock:
            _threads.remove(thread)
            if not _threads and isinstance(sys.stdout, _Stdout):
                sys.stdout = sys.stdout._stdout
