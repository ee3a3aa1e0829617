"""Object storage as a place: S3, Google Cloud Storage and Azure, by the library obstore (extra `cloud`).

    s3://BUCKET/FOLDER    gs://BUCKET/FOLDER    az://CONTAINER/FOLDER

A file is one object, written by one request and therefore whole or absent. Conditions are those of the
service (If-None-Match, If-Match). Credentials and endpoint come from the service's own environment
variables, e.g. AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL; an address with credentials is refused, and no
message shows one. Failed requests are repeated with growing pauses.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import timedelta
from functools import partial
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

from pipeline.core.errors import ConfigError, DataError
from pipeline.core.threads import side_by_side
from pipeline.places.addresses import hidden_place
from pipeline.places.failures import (
    READS,
    CutShortError,
    OutOfRangeError,
    explaining,
    load_obstore,
    no_bucket,
)
from pipeline.places.place import Place, Tag

SCHEMES = ("s3", "gs", "az")
REQUESTS_AT_ONCE = 32
# Objects that a move has copied and not yet removed, at most; a killed one repeats these.
_MOVED_AT_ONCE = 1000
# A request ends after so long, with its body: 64 MB at 1 MB/s. Its repetitions end after the second time.
_REQUEST_SECONDS, _PATIENCE_SECONDS = 90, 60
_RETRIES, _FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 8, 0.1, 10


class ObjectPlace(Place):
    """The objects below one prefix of a bucket.

    Args:
        store: obstore's store of the bucket.
        name: for messages, e.g. s3://bucket/main.zarr; it has no credentials.
        prefix: of the keys, with / at its end; empty for the whole bucket.
    """

    at_once = REQUESTS_AT_ONCE
    has_locks = False

    def __init__(self, store: Any, name: str, prefix: str = "") -> None:
        self._store, self._name, self._prefix = store, name, prefix

    @classmethod
    def open(cls, url: str) -> ObjectPlace:
        """Return the place of an address; nothing is asked of the service yet.

        Args:
            url: e.g. s3://bucket/logits/main.zarr.

        Raises:
            ConfigError: the address is not valid, or holds credentials.
            StoreError: obstore is not installed, or the environment does not describe the service.
        """
        require_object_address(url)
        parts = urlsplit(url)
        bucket, prefix = f"{parts.scheme}://{parts.netloc}", parts.path.strip("/")
        name = f"{bucket}/{prefix}" if prefix else bucket
        with explaining(name, "be opened"):
            store = _bucket(bucket)
        return cls(store, name, f"{prefix}/" if prefix else "")

    @classmethod
    def in_memory(cls, name: str = "memory://place") -> ObjectPlace:
        """Return an empty place in this process's memory, e.g. for tests."""
        return cls(load_obstore().store.MemoryStore(), name)

    def __str__(self) -> str:
        return self._name

    def __reduce__(self) -> tuple[Callable[[str], ObjectPlace], tuple[str]]:
        """Open the address again: connections do not move to other processes."""
        return ObjectPlace.open, (self._name,)

    def below(self, folder: str) -> ObjectPlace:
        """Return the place of a folder in this one."""
        return ObjectPlace(self._store, f"{self._name}/{folder}", f"{self._prefix}{folder}/")

    def parents(self) -> Iterator[Place]:
        """Yield the prefixes around this one, the nearest first, up to the whole bucket."""
        prefix, name = self._prefix.rstrip("/"), self._name
        while prefix:
            prefix, name = prefix.rpartition("/")[0], name.rpartition("/")[0]
            yield ObjectPlace(self._store, name, f"{prefix}/" if prefix else "")

    def sizes(self, under: str = "") -> dict[str, int]:
        """Return the size of every object, by name; a request returns a thousand."""
        folder = self._prefix + (f"{under}/" if under else "")
        return {name: size for name, (size, _) in self._listed(folder).items()}

    def listed(self) -> dict[str, tuple[int, Tag]]:
        """Return size in bytes and tag of every object, by name; a request returns a thousand."""
        return self._listed(self._prefix)

    def _listed(self, folder: str) -> dict[str, tuple[int, Tag]]:
        with explaining(self._name, "be listed"):
            chunks = load_obstore().list(self._store, prefix=folder or None, chunk_size=1000)
            return {
                str(entry["path"])[len(self._prefix) :]: (int(entry["size"]), _tag(entry))
                for chunk in chunks
                for entry in chunk
            }

    def names(self, folder: str) -> list[str]:
        """Return the names of the objects in a folder."""
        return [name[len(folder) + 1 :] for name in self.sizes(folder)]

    def size(self, name: str) -> int | None:
        """Return the size of an object, or None if it is missing."""
        told = self._head(name)
        return None if told is None else int(told["size"])

    def sizes_of(self, names: Collection[str]) -> dict[str, int]:
        """Return the sizes of those objects that exist; a listing tells many at once."""
        if len(names) <= REQUESTS_AT_ONCE:
            return super().sizes_of(names)
        found: dict[str, int] = {}
        for top in {name.partition("/")[0] for name in names if "/" in name}:
            found |= self.sizes(top)
        return {name: found[name] for name in names if name in found}

    def get(
        self, name: str, first: int = 0, count: int | None = None, *, tag: Tag | None = None
    ) -> bytes | None:
        """Return an object's bytes, or None if it is missing; see `Place.get`.

        Args:
            tag: of the expected content.

        Raises:
            DataError: the object has another tag.
        """
        if count == 0:
            return b"" if self.exists(name) else None
        # A range beyond the end is cut by the service; one that begins there is refused.
        span = (first, first + count) if count is not None else {"offset": first} if first else None
        asked: dict[str, Any] = {} if span is None else {"range": span}
        if tag is not None:
            asked["if_match"] = tag.partition("\n")[0]
        for left in reversed(range(READS)):
            try:
                with explaining(f"{self._name}/{name}", "be read"):
                    found = load_obstore().get(self._store, self._prefix + name, options=asked or None)
                    return bytes(found.bytes())
            except FileNotFoundError:
                return None
            except load_obstore().exceptions.PreconditionError:
                raise changed(f"{self._name}/{name}") from None
            except OutOfRangeError:
                return b""
            except CutShortError:
                if not left:
                    raise
        return None

    def tag(self, name: str) -> Tag | None:
        """Return the ETag and version of an object, or None if it is missing."""
        told = self._head(name)
        return None if told is None else _tag(told)

    def put(self, name: str, content: bytes) -> Tag:
        """Create or replace an object."""
        return self._put(name, content, "overwrite")

    def put_if_absent(self, name: str, content: bytes) -> Tag | None:
        """Create an object, unless the name is taken."""
        return self._put_if(name, content, "create")

    def put_if_match(self, name: str, content: bytes, tag: Tag) -> Tag | None:
        """Replace an object if it still has this tag."""
        return self._put_if(name, content, dict(zip(("e_tag", "version"), tag.split("\n"), strict=False)))

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects; missing ones are ignored."""
        keys = [self._prefix + name for name in names]
        if keys:
            with explaining(self._name, "be written"):
                load_obstore().delete(self._store, keys)

    def move(self, names: Iterable[str], target: Place) -> None:
        """Copy objects to another prefix of the bucket, then remove them here."""
        if not isinstance(target, ObjectPlace):
            raise TypeError(f"{target} is no place of objects")
        rest = iter(names)
        while some := list(islice(rest, _MOVED_AT_ONCE)):
            for _ in side_by_side(partial(self._copy, target), some, REQUESTS_AT_ONCE):
                pass
            self.delete(some)

    def prune(self, folder: str) -> None:
        """Do nothing: object storage has no folders."""

    def _copy(self, target: ObjectPlace, name: str) -> None:
        try:
            with explaining(f"{target}/{name}", "be written"):
                load_obstore().copy(self._store, self._prefix + name, target._prefix + name)
        except FileNotFoundError:
            if not target.exists(name):  # another process has moved it
                raise

    def _head(self, name: str) -> Any:
        try:
            with explaining(f"{self._name}/{name}", "be read"):
                return load_obstore().head(self._store, self._prefix + name)
        except FileNotFoundError:
            return None

    def _put_if(self, name: str, content: bytes, mode: object) -> Tag | None:
        errors = load_obstore().exceptions
        try:
            return self._put(name, content, mode)
        except (errors.AlreadyExistsError, errors.PreconditionError):
            return None

    def _put(self, name: str, content: bytes, mode: object) -> Tag:
        place = f"{self._name}/{name}"
        try:
            # One request, not a multipart upload, which has no conditions.
            with explaining(place, "be written"):
                made = load_obstore().put(
                    self._store, self._prefix + name, content, mode=mode, use_multipart=False
                )
                return _tag(made)
        except FileNotFoundError as error:  # GCS and others, of a bucket
            raise no_bucket(place, str(error)) from None


def changed(file: str) -> DataError:
    """Return the error for an object that is no longer the one that was listed."""
    return DataError(
        f"{file}: has changed since it was listed; expected the same object; restore it, or run: pipeline "
        "prepare"
    )


def require_object_address(url: str) -> None:
    """Refuse an address that is none of object storage, or that holds credentials.

    Raises:
        ConfigError: says what is expected.
    """
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES or not parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            f"{hidden_place(url)}: is not an address of object storage; expected a folder, or "
            f"{', '.join(f'{scheme}://BUCKET/FOLDER' for scheme in SCHEMES)}"
        )
    if "@" in parts.netloc or ":" in parts.netloc:
        raise ConfigError(
            f"{hidden_place(url)}: has credentials or a port in it; expected the bucket alone; set the "
            "service's environment variables, e.g. AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL"
        )


def is_object_address(address: object) -> bool:
    """Whether a text is the address of object storage.

    >>> is_object_address("s3://bucket/main.zarr"), is_object_address("data/main.zarr")
    (True, False)
    """
    return isinstance(address, str) and address.startswith(tuple(f"{scheme}://" for scheme in SCHEMES))


def is_installed() -> bool:
    """Whether obstore can be imported."""
    from importlib.util import find_spec

    return find_spec("obstore") is not None


def _tag(told: Any) -> Tag:
    return "\n".join(part for part in (told["e_tag"], told["version"]) if part)


def _bucket(url: str) -> Any:
    """Return obstore's store of a bucket, which reads the environment for credentials."""
    plain = any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS)
    return load_obstore().store.from_url(
        url,
        client_options={
            "allow_http": plain,
            "timeout": timedelta(seconds=_REQUEST_SECONDS),
        },
        retry_config={
            "max_retries": _RETRIES,
            "retry_timeout": timedelta(seconds=_PATIENCE_SECONDS),
            "backoff": {
                "init_backoff": timedelta(seconds=_FIRST_PAUSE_SECONDS),
                "max_backoff": timedelta(seconds=_LONGEST_PAUSE_SECONDS),
                "base": 2,
            },
        },
    )


# An endpoint without TLS is allowed if the user wrote http:// himself.
_ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT")
