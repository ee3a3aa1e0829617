"""What services of object storage refuse, in one line each: what failed, why, and what to do.

The libraries' texts have many lines and may quote keys; a message has the service's own code at most.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from pipeline.core.errors import ConfigError, StoreError, brief
from pipeline.core.package import extra_command

# A body that ends early is asked for so many times.
READS = 4
_CODE = re.compile(r"<Code>(\w{1,64})</Code>")
_STATUS = re.compile(r"status code: (\d{3}[\w ]{0,40})")
_ADDRESS = re.compile(r"\w+://\S+")
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist")
_FORBIDDEN = ("403 ", "401 ", "AccessDenied", "Forbidden", "SignatureDoesNotMatch", "InvalidAccessKeyId")
_NO_CREDENTIALS = ("169.254.169.254", "metadata.google", "Account must be specified", "nable to get cred")
_CUT = (
    "Content-Range",
    "end of file",
    "error decoding",
    "IncompleteMessage",
    "incomplete",
    "closed before",
)
_SILENT = ("timed out", "Timeout", "error sending", "HTTP error", "Connect", "dns error")
_BEYOND = ("416 ", "InvalidRange", "Invalid range")
_OTHER_REGION = ("incorrectly configured region", "AuthorizationHeaderMalformed", "PermanentRedirect")
# Of obstore's own text, whose digits are no status: "error sending request in 61.416250265s".
_DURATION = re.compile(r"\bin [\d.]+\w*s\b")


class CutShortError(StoreError):
    """A service sent less than a whole object."""


class OutOfRangeError(StoreError):
    """A range begins at the end of an object."""


class ForbiddenError(StoreError):
    """The credentials do not give this right."""


def load_obstore() -> Any:
    """Import obstore where it is needed: local folders do without.

    Raises:
        StoreError: it is not installed, or this process was forked from one that uses it.
    """
    if _user() != os.getpid():
        raise StoreError(
            "object storage cannot be used in a process forked from one that uses it, since the library's "
            "threads do not move along; start the process by spawn or forkserver"
        )
    try:
        import obstore
        import obstore.exceptions
        import obstore.store
    except ImportError:
        raise StoreError(
            f"object storage needs the library obstore; run: {extra_command('cloud')}"
        ) from None
    return obstore


@cache
def _user() -> int:
    """Return the process that used obstore first; processes forked from it have the same answer."""
    return os.getpid()


@contextmanager
def explaining(place: str, verb: str) -> Iterator[None]:
    """Turn obstore's errors, of many lines, into one line without credentials.

    Conditions that are not met, and missing objects, stay obstore's own errors.
    """
    try:
        yield
    except (StoreError, ConfigError):
        raise
    except Exception as error:
        errors, text = load_obstore().exceptions, str(error)
        if isinstance(error, (errors.AlreadyExistsError, errors.PreconditionError)):
            raise
        if any(sign in text for sign in _NO_BUCKET):
            raise no_bucket(place, text) from None
        if isinstance(error, FileNotFoundError):
            raise
        raise _explained(place, verb, error, text) from None


def _explained(place: str, verb: str, error: Exception, text: str) -> StoreError:
    """Return the error of one line for what a service or the network refused."""
    errors, reason = load_obstore().exceptions, _reason(text)
    if any(sign in f"{reason} " for sign in _BEYOND):
        return OutOfRangeError(f"{place}: the range begins at the end of the object")
    if any(sign in text for sign in _OTHER_REGION):
        return StoreError(
            f"{place}: cannot {verb}: the bucket lies in another region; set AWS_DEFAULT_REGION to it"
        )
    denied = isinstance(error, (errors.PermissionDeniedError, errors.UnauthenticatedError))
    if denied or any(sign in f"{reason} " for sign in _FORBIDDEN):
        return ForbiddenError(
            f"{place}: may not {verb} with these credentials ({reason}); set credentials with this right, "
            "e.g. AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and run the command again"
        )
    if any(sign in text for sign in _NO_CREDENTIALS):
        return StoreError(
            f"{place}: cannot {verb}: the environment has no credentials; set those of the service, e.g. "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if any(sign in text for sign in _CUT):
        return CutShortError(
            f"{place}: the service sent only a part of the object, {READS} times; run the command again"
        )
    if any(sign in text for sign in _SILENT) and "status code" not in text:
        return StoreError(
            f"{place}: cannot {verb}: the service does not answer; check network and endpoint, e.g. "
            "AWS_ENDPOINT_URL, and run the same command again"
        )
    return StoreError(
        f"{place}: cannot {verb} ({reason}); check address, credentials and endpoint, and run the same "
        "command again"
    )


def no_bucket(place: str, text: str) -> StoreError:
    """Return the error for a bucket that does not exist."""
    return StoreError(
        f"{place}: the bucket does not exist ({_reason(text)}); create it, or correct the address"
    )


def _reason(text: str) -> str:
    """Return the service's own code, e.g. AccessDenied; never the text, which may quote a key."""
    found = [match[1] for pattern in (_STATUS, _CODE) if (match := pattern.search(text))]
    if found:
        return " ".join(found)
    return brief(_DURATION.sub("", _ADDRESS.sub("…", text.partition("Debug source")[0])), 120)
