"""Locations of stores: a local folder, or object storage through zarr's store classes.

Only local folders are written. Reading needs whole files by name, which every location supports. A relative
folder is resolved once, so a later change of the working folder has no effect. Files outside the store, or
larger than their reader allows, are refused. Messages never show passwords, tokens or keys of an address.
"""

from __future__ import annotations

import re
from collections.abc import Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote

from zarr.abc.store import RangeByteRequest, Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore

from pipeline.core.errors import StoreError, brief
from pipeline.core.package import extra_command
from pipeline.places.local import NoFileError, exists_inside, read_inside, too_large

_HIDDEN = "***"
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
T = TypeVar("T")
Place = Path | str | Store
JSON_BYTES = 1 << 29  # enough for a manifest of more than 100,000 shards
_LOCAL = ("file://", "local://")


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


class Location:
    """The files of a store, by name.

    Args:
        place: a folder, a URL, e.g. s3://bucket/main.zarr, or a zarr `Store`.
        options: fsspec options of the URL's file system, e.g. endpoint_url.
    """

    def __init__(self, place: Place, **options: Any) -> None:
        self._name = hidden_place(str(place))
        self._secrets = secrets_of(str(place), options) if _is_address(place) else frozenset()
        folder = _folder(place)
        self._source: Path | Store = self._reached(place, options) if folder is None else folder.absolute()
        self.place: Place = place if folder is None else self._source

    @property
    def stem(self) -> str:
        """The store's name without its suffix, which is the name of the dump."""
        return Path(self._name).stem

    def find(self, name: str, most_bytes: int = JSON_BYTES) -> bytes | None:
        """Return a file's bytes, or None if it is missing.

        Args:
            name: path of the file inside the store.
            most_bytes: the largest accepted size.

        Raises:
            CorruptStoreError: the file is too large, not regular, or outside the store.
            StoreError: the location cannot be reached.
        """
        if isinstance(self._source, Path):
            return self._read(self._source, name, most_bytes)
        request = RangeByteRequest(0, most_bytes + 1)
        buffer = self._ask(self._source.get(name, default_buffer_prototype(), request), None)
        if buffer is not None and len(buffer) > most_bytes:
            raise too_large(self, name, len(buffer), most_bytes)
        return None if buffer is None else buffer.to_bytes()

    def read(self, name: str) -> bytes:
        """Return a file's bytes.

        Raises:
            FileNotFoundError: the file is missing.
            CorruptStoreError: the file is not regular, or too large.
            StoreError: the location cannot be reached.
        """
        content = self.find(name)
        if content is None:
            raise FileNotFoundError(f"{self._name}/{name}")
        return content

    def exists(self, name: str) -> bool:
        """Whether a file of this name exists."""
        if isinstance(self._source, Path):
            return exists_inside(self._source, name)
        return self._ask(self._source.exists(name), False)

    def _read(self, folder: Path, name: str, most_bytes: int) -> bytes | None:
        try:
            return read_inside(folder, name, most_bytes)
        except NoFileError as error:
            # Show the location as the user wrote it, not the absolute folder.
            raise NoFileError(self, error.name, error.problem) from None
        except OSError as error:
            raise self._unreadable(error) from None

    def _ask(self, request: Coroutine[Any, Any, T], absent: T) -> T:
        """Wait for an answer; return `absent` if the name does not exist."""
        try:
            return sync(request)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return absent
        # Remote errors have no common base class: botocore's and ftplib's are not OSErrors.
        except Exception as error:
            raise self._unreadable(error) from None

    def _reached(self, place: Place, options: dict[str, Any]) -> Store:
        """Return the zarr store of a location that is not a local folder."""
        if isinstance(place, Store):
            return place
        try:
            return FsspecStore.from_url(str(place), storage_options=options, read_only=True)
        except ImportError as error:
            raise StoreError(
                f"{self}: {self._reason(error)}; no file system is installed for this kind of address; "
                f"for S3, run: {extra_command('s3')}"
            ) from None
        except ValueError as error:
            raise StoreError(
                f"{self}: {self._reason(error)}; expected a folder or an address such as s3://…"
            ) from None
        except Exception as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> StoreError:
        return StoreError(
            f"{self}: cannot reach the store ({self._reason(error)}); check the address and your "
            "credentials"
        )

    def _reason(self, error: Exception) -> str:
        return brief(without(str(error) or type(error).__name__, self._secrets), 200)

    def __str__(self) -> str:
        return self._name


def _is_address(place: Place) -> bool:
    return isinstance(place, str) and "://" in place


def _folder(place: Place) -> Path | None:
    """Return the folder of a local place, or None."""
    if isinstance(place, LocalStore):
        return place.root
    if isinstance(place, Store):
        return None
    text = str(place)
    scheme = next((scheme for scheme in _LOCAL if text.startswith(scheme)), None)
    if scheme is not None:
        return Path(text.removeprefix(scheme))
    return None if _is_address(place) else Path(place)
