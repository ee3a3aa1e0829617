"""Addresses in messages: passwords, tokens and keys are hidden, however a library repeats them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from shlex import quote
from typing import Any
from urllib.parse import parse_qsl, unquote

_HIDDEN = "***"
_REMOVE = {
    "s3": "aws s3 rm --recursive",
    "gs": "gcloud storage rm --recursive",
}
# Separates nested file systems in fsspec's addresses, e.g. simplecache::s3://bucket/main.zarr.
_LINK = "::"
_SCHEME = "[A-Za-z][A-Za-z0-9+.-]"
# `Path("s3://bucket")` collapses the slashes to `s3:/bucket`, so one slash is enough.
_ADDRESS = re.compile(rf"(?P<scheme>{_SCHEME}*://|{_SCHEME}+:/)(?P<rest>[^\s'\"<>]*)")
_PLACE = re.compile(rf".*?://|{_SCHEME}+:/", re.DOTALL)
# A library may split an address here by mistake, and report a part of a password as a port or a path.
_CUTS = re.compile("[/?#:@]")
_SECRET_OPTION = re.compile(r"key|secret|token|pass|cred|auth|sas|conn|sign|user", re.IGNORECASE)
# Hiding shorter secrets would destroy ordinary words.
_SHORTEST = 4


def is_address(text: str) -> bool:
    """Whether a text is an address, not a path; also `s3:/bucket`, the form of s3://bucket as a path.

    >>> is_address("s3://bucket/main.zarr"), is_address("data/main.zarr")
    (True, False)
    """
    return _ADDRESS.match(text) is not None


def removal(place: object) -> str:
    """Return the command that removes a folder, or everything below an address, for messages.

    >>> removal("s3://bucket/main.zarr"), removal("data/logits/main.zarr")
    ('aws s3 rm --recursive s3://bucket/main.zarr', 'rm -r data/logits/main.zarr')
    """
    scheme, _, rest = str(place).partition("://")
    if scheme == "az":
        container, _, prefix = rest.partition("/")
        return f"az storage blob delete-batch -s {container} --pattern '{prefix}/*'"
    return f"{_REMOVE.get(scheme, 'rm -r')} {quote(str(place))}"


def hidden(text: str) -> str:
    """Hide user, password, query and fragment of all addresses in a text.

    >>> hidden("see s3://key:secret@bucket/main.zarr?token=1")
    'see s3://***@bucket/main.zarr?***'
    """
    return _ADDRESS.sub(lambda found: found["scheme"] + _without_secrets(found["rest"]), text)


def hidden_place(place: str) -> str:
    """Hide the secrets of one address; a password may contain any character, even spaces.

    >>> hidden_place("ftp://me:it's secret@host/main.zarr")
    'ftp://***@host/main.zarr'
    """
    return _LINK.join(_hidden_link(link) for link in place.split(_LINK))


def without(text: str, secrets: frozenset[str]) -> str:
    """Hide these secrets in a text, and the secrets of its addresses."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, _HIDDEN)
    return hidden(text)


def secrets_of(address: str, options: Mapping[str, Any]) -> frozenset[str]:
    """Return the secrets of an address and of its file system's options."""
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
    """Hide user, password, query and fragment in the part after the scheme."""
    user, place = _split(rest)
    mark = re.search("[?#]", place)
    if mark is not None:
        place = f"{place[: mark.start()]}{mark[0]}{_HIDDEN}"
    return f"{_HIDDEN}@{place}" if user else place


def _split(rest: str) -> tuple[str, str]:
    """Split an address without scheme into (user and password or "", the rest)."""
    host = rest.partition("/")[0]
    if "@" in host:
        user, _, host = host.rpartition("@")
        return user, rest[len(user) + 1 :]
    # A colon without a port means a password with a slash, e.g. me:a/b@host.
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
