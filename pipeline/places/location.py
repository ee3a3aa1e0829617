"""Locations of stores for reading: a folder, an address of object storage, or a zarr store.

Reading needs whole files by name, which every location supports. Addresses of `objects.py` are read with
obstore if it is installed and no option is given, and with fsspec otherwise. A relative folder is resolved
once, so a later change of the working folder has no effect. Files outside the store, or larger than their
reader allows, are refused. Messages never show passwords, tokens or keys of an address.
"""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from zarr.abc.store import RangeByteRequest, Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore

from pipeline.core.errors import StoreError, brief
from pipeline.core.package import extra_command
from pipeline.places.addresses import hidden_place, is_address, secrets_of, without
from pipeline.places.folder import LocalPlace, Root
from pipeline.places.local import NoFileError, exists_inside, read_inside, too_large
from pipeline.places.objects import REQUESTS_AT_ONCE, ObjectPlace, is_installed, is_object_address
from pipeline.places.place import Place

T = TypeVar("T")
Address = Path | str | Store | Place
JSON_BYTES = 1 << 29  # enough for a manifest of more than 100,000 shards
_READ_THREADS = 4
_LOCAL = ("file://", "local://")


class Location:
    """The files of a store, by name.

    Args:
        place: a folder, a URL, e.g. s3://bucket/main.zarr, a zarr `Store`, or a `Place`.
        options: fsspec options of the URL's file system, e.g. endpoint_url.
    """

    def __init__(self, place: Address, **options: Any) -> None:
        self._name = hidden_place(str(place))
        self._secrets = secrets_of(str(place), options) if _is_address(place) else frozenset()
        folder = _folder(place)
        self._source: Path | Store | Place
        self._source = self._reached(place, options) if folder is None else folder.absolute()
        self.place: Address = place if folder is None else self._source

    @property
    def root(self) -> Root | None:
        """The folder, or the place; None for addresses and stores that can only be read."""
        return self._source if isinstance(self._source, Path | Place) else None

    @property
    def reads_at_once(self) -> int:
        """Number of files that are read at the same time at most."""
        return _READ_THREADS if isinstance(self._source, Path) else REQUESTS_AT_ONCE

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
        if isinstance(self._source, Place):
            content = self._source.get(name, 0, most_bytes + 1)
            if content is not None and len(content) > most_bytes:
                raise too_large(self, name, len(content), most_bytes)
            return content
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
        if isinstance(self._source, Place):
            return self._source.exists(name)
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

    def _reached(self, place: Address, options: dict[str, Any]) -> Store | Place:
        """Return the source of a location that is not a local folder."""
        if isinstance(place, Store | Place):
            return place
        if not options and is_object_address(place) and is_installed():
            return ObjectPlace.open(str(place))
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


def root_of(address: str) -> Root:
    """Return the folder or place of an address that a user wrote, for writing.

    Raises:
        ConfigError: it is an address, and none of object storage.
        StoreError: obstore is not installed.

    >>> root_of("data/logits/main.zarr").name
    'main.zarr'
    """
    return ObjectPlace.open(address) if is_address(address) else Path(address)


def _is_address(place: Address) -> bool:
    return isinstance(place, str) and "://" in place


def _folder(place: Address) -> Path | None:
    """Return the folder of a local place, or None."""
    if isinstance(place, LocalStore):
        return place.root
    if isinstance(place, LocalPlace):
        return place.folder
    if isinstance(place, Store | Place):
        return None
    text = str(place)
    scheme = next((scheme for scheme in _LOCAL if text.startswith(scheme)), None)
    if scheme is not None:
        return Path(text.removeprefix(scheme))
    return None if _is_address(place) else Path(place)
