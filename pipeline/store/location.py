"""Where a store lives: a local folder, or object storage through zarr's own store classes.

Writing is local only; reading needs whole files by name, which every place can give. A local folder is
fixed when the location is made, whatever the working folder is later. No file is read that has more bytes
than its reader expects at most, and none outside the store.
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
from pipeline.store.local import NoFileError, exists_inside, read_inside, too_large
from pipeline.store.secrets import hidden_place, secrets_of, without

T = TypeVar("T")
Place = Path | str | Store
JSON_BYTES = 1 << 29  # of a manifest of 100,000 shards, and more
_LOCAL = ("file://", "local://")


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
                "run: pip install 'softlabel-pipeline[s3]'"
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
