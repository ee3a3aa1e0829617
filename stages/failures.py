"""Report a failure in one line: its cause, and a remedy.

Errors of this project contain both. Errors of disks, memory and devices come from Python and torch; each
kind has its remedy here. Anything else is a defect or a damaged input, for which --debug shows a traceback.
"""

from __future__ import annotations

import errno
import os
import traceback
from pathlib import Path

import click

from pipeline.core.errors import PipelineError, is_out_of_memory, printable, shortened

_ROOT = Path(__file__).parents[1]
_ROOM = "free some space and run the same command again; completed work is kept"
_WRITABLE = "make it writable, or choose a different folder"
_AGAIN = "run the same command again; completed work is kept"
_FILES = "close other programs, or raise the limit: ulimit -n"
_PLACE = "check the path"
_LESS = "lower batch_size or --workers"

_REMEDIES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EROFS: _WRITABLE,
    errno.EACCES: _WRITABLE,
    errno.EPERM: _WRITABLE,
    errno.EFBIG: "raise the limit (ulimit -f), or choose a file system for larger files",
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
    errno.ENOENT: _PLACE,
    errno.ENOTDIR: _PLACE,
    errno.EISDIR: _PLACE,
    errno.EEXIST: _PLACE,
    errno.ELOOP: "check the symbolic links in the path",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.EINVAL: "choose another name or file system",
    errno.EILSEQ: "choose another name or file system",
    errno.ENOTEMPTY: f"stop the process that writes to it, and {_AGAIN}",
    errno.EBUSY: "it is in use by a mount or another program: release it, or choose a different folder",
    errno.ETXTBSY: "it is in use by another program: stop that program",
    errno.EXDEV: "it is on a different file system (a mount or link): choose a folder inside it",
    errno.EIO: f"check the disk, and {_AGAIN}",
    errno.ESTALE: f"the file server changed it in the meantime: {_AGAIN}",
    errno.ENOTSUP: "the file system does not support this operation: choose a different folder",
    errno.ENOLCK: "the file system has no locks: choose a different folder",
    errno.ETIMEDOUT: _AGAIN,
    errno.ECONNRESET: _AGAIN,
    errno.ECONNREFUSED: f"check the address, and {_AGAIN}",
    errno.EHOSTUNREACH: f"check the network, and {_AGAIN}",
    errno.ENETUNREACH: f"check the network, and {_AGAIN}",
    errno.EPIPE: _AGAIN,
}
_OUT_OF_THREADS = ("can't start new thread", "Resource temporarily unavailable")
LONGEST_LINE = 2000


def explain(error: Exception) -> str:
    """Return one line about the error that stopped a command: failure, reason, remedy."""
    if isinstance(error, PipelineError):
        return str(error)
    if isinstance(error, click.ClickException):
        return error.format_message()
    if is_out_of_memory(error):
        return _about_memory(error)
    if _says(error, _OUT_OF_THREADS):
        return f"too many threads or processes for this machine or its limits; {_LESS}, or raise ulimit -u"
    if isinstance(error, OSError) and error.errno is not None:
        return _about_disk(error)
    if type(error).__name__ in ("URLError", "HTTPError"):
        return f"{_first_line(error)}; check the address and the network, and {_AGAIN}"
    found = f"unexpected {type(error).__name__}: {_first_line(error)}"
    return (
        f"{found}{_where(error)}; this is a bug, or a damaged input that should have been reported by "
        "name; run again with --debug for the traceback"
    )


def _says(error: Exception, parts: tuple[str, ...]) -> bool:
    """Whether the message of an error of torch or the system contains one of these parts."""
    return isinstance(error, RuntimeError | OSError) and any(part in str(error) for part in parts)


def _about_memory(error: Exception) -> str:
    # torch prefixes the message with a position in its source.
    reason = _first_line(error).rpartition("DefaultCPUAllocator: ")[2]
    if type(error).__name__ == "OutOfMemoryError" or "CU" in reason:
        return f"{reason} Lower batch_size or --workers, or use --render cpu"
    return f"out of memory: {reason or 'an allocation failed'}; {_LESS}"


def _about_disk(error: OSError) -> str:
    number = error.errno or 0
    reason = error.strerror or os.strerror(number)
    places = [str(place) for place in (error.filename, error.filename2) if place is not None]
    remedy = _REMEDIES.get(number, "run the command again with --debug for the traceback")
    return f"{' to '.join(places) or _nameless(number)}: {reason}; {remedy}"


def _nameless(number: int) -> str:
    """Name the subject of an error without a file: the output for disk errors, else the system."""
    return "output" if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO) else "the system"


def _where(error: Exception) -> str:
    """Return the innermost line of this program in a traceback, e.g. " (at stages/plan.py:40)"."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(frame.filename)]
    if not frames:
        return ""
    file = Path(frames[-1].filename)
    return f" (at {file.relative_to(_ROOT)}:{frames[-1].lineno})"


def _is_own(file: str) -> bool:
    return any(Path(file).is_relative_to(_ROOT / package) for package in ("pipeline", "stages"))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")


# Output for a terminal: lines of bounded length with escaped control characters.
#
# Stores, cards and file names are untrusted, and a terminal would obey control characters in them.


def one_line(text: str) -> str:
    """Escape and shorten a text to one line for a terminal."""
    return shortened(printable(text.rstrip()), LONGEST_LINE)


def say(text: str) -> None:
    """Print one line of a command's results."""
    click.echo(printable(text))
