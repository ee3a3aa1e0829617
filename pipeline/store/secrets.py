"""Passwords, tokens and keys of an address: kept out of whatever is said of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote

_HIDDEN = "***"
# Between the addresses of file systems in each other, as fsspec writes them.
_LINK = "::"
_SCHEME = "[A-Za-z][A-Za-z0-9+.-]"
# A path of one has a single slash.
_ADDRESS = re.compile(rf"(?P<scheme>{_SCHEME}*://|{_SCHEME}+:/)(?P<rest>[^\s'\"<>]*)")
_PLACE = re.compile(rf".*?://|{_SCHEME}+:/", re.DOTALL)
# Where a library may have cut an address wrongly, with a part of a password as a port or a path.
_CUTS = re.compile("[/?#:@]")
_SECRET_OPTION = re.compile(r"key|secret|token|pass|cred|auth|sas|conn|sign|user", re.IGNORECASE)
# Shorter ones would blot out words.
_SHORTEST = 4


def hidden(text: str) -> str:
    """Return a text whose addresses have neither user and password nor a query or fragment.

    >>> hidden("see s3://key:secret@bucket/main.zarr?token=1")
    'see s3://***@bucket/main.zarr?***'
    """
    return _ADDRESS.sub(lambda found: found["scheme"] + _without_secrets(found["rest"]), text)


def hidden_place(place: str) -> str:
    """Return a place, whole an address or a folder, without secrets; any character may be in a password.

    >>> hidden_place("ftp://me:it's secret@host/main.zarr")
    'ftp://***@host/main.zarr'
    """
    return _LINK.join(_hidden_link(link) for link in place.split(_LINK))


def without(text: str, secrets: frozenset[str]) -> str:
    """Return a text without these secrets, and without those of the addresses in it."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, _HIDDEN)
    return hidden(text)


def secrets_of(address: str, options: Mapping[str, Any]) -> frozenset[str]:
    """Return what must not be repeated of an address and of its file system's options."""
    found = [*_secret_values(options)]
    for link in address.split(_LINK):
        user, place = _split(link.partition("://")[2])
        after = [part for mark in "?#" for part in [place.partition(mark)[2]]]
        found += [user, *_CUTS.split(user), *after, *(v for part in after for _, v in parse_qsl(part))]
    return frozenset(s for secret in found for s in (secret, unquote(secret)) if len(s) >= _SHORTEST)


def _hidden_link(link: str) -> str:
    scheme = _PLACE.match(link)
    return link if scheme is None else scheme[0] + _without_secrets(link[scheme.end() :])


def _without_secrets(rest: str) -> str:
    """Return what follows a scheme without user, password, query and fragment."""
    user, place = _split(rest)
    mark = re.search("[?#]", place)
    if mark is not None:
        place = f"{place[: mark.start()]}{mark[0]}{_HIDDEN}"
    return f"{_HIDDEN}@{place}" if user else place


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
