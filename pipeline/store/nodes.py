"""What zarr says of a damaged array or group, as one error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.core.errors import CorruptStoreError, brief, is_out_of_memory, quoted

RESTORE = "restore it (dvc checkout --force), or mend it with: pipeline verify --repair"

_LONGEST = 160
# zarr has no common base for what reading damaged metadata or chunks raises.
_DAMAGE = (
    *(ValueError, RuntimeError, LookupError, TypeError, AttributeError, OverflowError),
    *(FileNotFoundError, NotADirectoryError, IsADirectoryError),
)


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
        if is_out_of_memory(error):
            raise
        raise CorruptStoreError(f"{store}: {name} cannot be read ({reason(error)}); {RESTORE}") from None


def reason(error: Exception) -> str:
    """Return in a few words of one line what an error of reading damaged or forged values says."""
    if isinstance(error, KeyError):
        return f"lacks {quoted(error.args[0] if error.args else '')}"
    return brief(error, _LONGEST) or type(error).__name__
