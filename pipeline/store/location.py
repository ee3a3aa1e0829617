"""Where a store lives: a local folder, or object storage through zarr's own store classes.

Writing is local only; reading needs whole files by name, which every place can give.
"""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore

from pipeline.errors import StoreError

T = TypeVar("T")
_FAR = ("botocore", "aiobotocore", "aiohttp")
Place = Path | str | Store


class Location:
    """Files of a store, by their names in it.

    Args:
        place: a folder, a URL such as s3://bucket/main.zarr, or a zarr `Store`.
        options: of the URL's file system, such as endpoint_url, as fsspec takes them.
    """

    def __init__(self, place: Place, **options: Any) -> None:
        self.place, self._name = place, str(place)
        self._store = _open(place, options)

    @property
    def stem(self) -> str:
        """The store's name without its ending: a dump is called so."""
        return Path(self._name).stem

    def find(self, name: str) -> bytes | None:
        """Return a file's bytes, or None where there is no such file.

        Raises:
            StoreError: the place cannot be reached.
        """
        buffer = self._ask(self._store.get(name, default_buffer_prototype()), None)
        return None if buffer is None else buffer.to_bytes()

    def read(self, name: str) -> bytes:
        """Return a file's bytes.

        Raises:
            FileNotFoundError: there is none.
            StoreError: the place cannot be reached.
        """
        content = self.find(name)
        if content is None:
            raise FileNotFoundError(f"{self._name}/{name}")
        return content

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return self._ask(self._store.exists(name), False)

    def is_empty(self) -> bool:
        """Whether there is nothing at all."""
        return self._ask(self._store.is_empty(""), True)

    def _ask(self, request: Coroutine[Any, Any, T], absent: T) -> T:
        """Wait for an answer; `absent` is the one where there is nothing of that name."""
        try:
            return sync(request)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return absent
        except Exception as error:
            # What a far place raises has no common base: botocore's errors are no OSError.
            if not isinstance(error, OSError) and not type(error).__module__.startswith(_FAR):
                raise
            raise StoreError(
                f"{self._name}: cannot be read ({error}); expected a place that answers; check the address "
                "and your access to it"
            ) from None

    def __str__(self) -> str:
        return self._name


def _open(place: Place, options: dict[str, Any]) -> Store:
    if isinstance(place, Store):
        return place
    if isinstance(place, str) and "://" in place:
        try:
            return FsspecStore.from_url(place, storage_options=options, read_only=True)
        except ImportError as error:
            raise StoreError(
                f"{place}: {error}; expected a file system for this kind of address; for S3 run: "
                "pip install 'softlabel-pipeline[s3]'"
            ) from None
        except ValueError as error:
            raise StoreError(f"{place}: {error}; expected a folder or an address such as s3://…") from None
    # Opening a LocalStore must not create its folder.
    return LocalStore(Path(place), read_only=True)
