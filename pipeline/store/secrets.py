"""Passwords, tokens and keys of an address: kept out of whatever is said of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote

_HIDDEN = "***"
# A path of one has a single slash.
_ADDRESS = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://|[A-Za-z][A-Za-z0-9+.-]+:/)(?P<rest>[^\s'\"<>]*)"
)
_SECRET_OPTION = re.compile(r"key|secret|token|pass|cred|auth|sas|conn|sign|user", re.IGNORECASE)
# Shorter ones would blot out words.
_SHORTEST = 4


def hidden(text: str) -> str:
    """Return a text whose addresses have neither user and password nor a query.

    >>> hidden("s3://key:secret@bucket/main.zarr?token=1")
    's3://***@bucket/main.zarr?***'
    """
    return _ADDRESS.sub(_without_secrets, text)


def without(text: str, secrets: frozenset[str]) -> str:
    """Return a text without these secrets, and without those of the addresses in it."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, _HIDDEN)
    return hidden(text)


def secrets_of(address: str, options: Mapping[str, Any]) -> frozenset[str]:
    """Return what must not be repeated of an address and of its file system's options."""
    user, _ = _split(address.partition("://")[2])
    query = [value for _, value in parse_qsl(address.partition("?")[2])]
    found = [user, *user.split(":"), *query, *_secret_values(options)]
    return frozenset(s for secret in found for s in (secret, unquote(secret)) if len(s) >= _SHORTEST)


def _without_secrets(match: re.Match[str]) -> str:
    user, place = _split(match["rest"])
    place, mark, _ = place.partition("?")
    return match["scheme"] + (f"{_HIDDEN}@" if user else "") + place + (f"?{_HIDDEN}" if mark else "")


def _split(rest: str) -> tuple[str, str]:
    """Return user and password, if they are given, and what follows them."""
    host = rest.partition("/")[0]
    if "@" in host:
        user, _, host = host.rpartition("@")
        return user, rest[len(user) + 1 :]
    # A password with a slash in it: a colon that no port follows.
    if "@" in rest and re.search(r":(?!\d*$)", host):
        user, _, place = rest.rpartition("@")
        return user, place
    return "", rest


def _secret_values(options: Mapping[str, Any], named: bool = False) -> Iterator[str]:
    for name, value in options.items():
        secret = named or bool(_SECRET_OPTION.search(str(name)))
        if isinstance(value, Mapping):
            yield from _secret_values(value, secret)
        elif secret and isinstance(value, str):
            yield value
