"""What zarr says of a damaged array or group, as one error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import CorruptStoreError

RESTORE = "restore it (dvc checkout --force), or mend it with: pipeline verify --repair"

# zarr has no common base for what reading damaged metadata or chunks raises.
_DAMAGE = (ValueError, RuntimeError, LookupError, TypeError, AttributeError, FileNotFoundError)


@contextmanager
def reading(store: object, name: str) -> Iterator[None]:
    """Turn whatever comes from reading a damaged array or group into one error.

    Args:
        store: for the message.
        name: of the array or group in it.

    Raises:
        CorruptStoreError: it cannot be read.
    """
    try:
        yield
    except CorruptStoreError:
        raise
    except _DAMAGE as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CorruptStoreError(f"{store}: {name} cannot be read ({reason}); {RESTORE}") from None
