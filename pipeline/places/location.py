"""Where a store lives: a local folder, or object storage through zarr's own store classes.

Writing is local only; reading needs whole files by name, which every place can give. A local folder is
fixed when the location is made, whatever the working folder is later. No file is read that has more bytes
than its reader expects at most, and none outside the store. Passwords, tokens and keys of an address are
kept out of whatever is said of it.
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
T = TypeVar("T")
Place = Path | str | Store
JSON_BYTES = 1 << 29  # of a manifest of 100,000 shards, and more
_LOCAL = ("file://", "local://")


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


class Location:
    """Files of a store, by their names in it.

    Args:
        place: a folder, a URL such as s3://bucket/main.zarr, or a zarr `Store`.
        options: of the URL's file system, such as endpoint_url, as fsspec takes them.
    """

    def __init__(self, place: Place, **options: Any) -> None:
        self._name = hidden_place(str(place))
        self._secrets = secrets_of(str(place), options) if _is_address(place) else frozenset()
        folder = _folder(place)
        self._source: Path | Store = self._reached(place, options) if folder is None else folder.absolute()
        self.place: Place = place if folder is None else self._source

    @property
    def stem(self) -> str:
        """The store's name without its ending: a dump is called so."""
        return Path(self._name).stem

    def find(self, name: str, most_bytes: int = JSON_BYTES) -> bytes | None:
        """Return a file's bytes, or None where there is no such file.

        Args:
            name: of the file in the store.
            most_bytes: the largest size that is read.

        Raises:
            CorruptStoreError: it is larger, no regular file, or outside the store.
            StoreError: the place cannot be reached.
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
            FileNotFoundError: there is none.
            CorruptStoreError: it is no regular file, or too large.
            StoreError: the place cannot be reached.
        """
        content = self.find(name)
        if content is None:
            raise FileNotFoundError(f"{self._name}/{name}")
        return content

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        if isinstance(self._source, Path):
            return exists_inside(self._source, name)
        return self._ask(self._source.exists(name), False)

    def _read(self, folder: Path, name: str, most_bytes: int) -> bytes | None:
        try:
            return read_inside(folder, name, most_bytes)
        except NoFileError as error:
            # As the user gave the place.
            raise NoFileError(self, error.name, error.problem) from None
        except OSError as error:
            raise self._unreadable(error) from None

    def _ask(self, request: Coroutine[Any, Any, T], absent: T) -> T:
        """Wait for an answer; `absent` is the one where there is nothing of that name."""
        try:
            return sync(request)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return absent
        # What a far place raises has no common base: botocore's and ftplib's errors are no OSError.
        except Exception as error:
            raise self._unreadable(error) from None

    def _reached(self, place: Place, options: dict[str, Any]) -> Store:
        """Return the store of a place that is no local folder."""
        if isinstance(place, Store):
            return place
        try:
            return FsspecStore.from_url(str(place), storage_options=options, read_only=True)
        except ImportError as error:
            raise StoreError(
                f"{self}: {self._reason(error)}; expected a file system for this kind of address; for S3 "
                f"run: {extra_command('s3')}"
            ) from None
        except ValueError as error:
            raise StoreError(
                f"{self}: {self._reason(error)}; expected a folder or an address such as s3://…"
            ) from None
        except Exception as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> StoreError:
        return StoreError(
            f"{self}: cannot be read ({self._reason(error)}); expected a place that answers; check the "
            "address and your access to it"
        )

    def _reason(self, error: Exception) -> str:
        return brief(without(str(error) or type(error).__name__, self._secrets), 200)

    def __str__(self) -> str:
        return self._name


def _is_address(place: Place) -> bool:
    return isinstance(place, str) and "://" in place


def _folder(place: Place) -> Path | None:
    """Return the local folder that a place is, or None."""
    if isinstance(place, LocalStore):
        return place.root
    if isinstance(place, Store):
        return None
    text = str(place)
    scheme = next((scheme for scheme in _LOCAL if text.startswith(scheme)), None)
    if scheme is not None:
        return Path(text.removeprefix(scheme))
    return None if _is_address(place) else Path(place)
