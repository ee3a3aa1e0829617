"""Memory of CPU runs: keep what is freed instead of giving it back to the kernel at every step."""

from __future__ import annotations

import ctypes

# <malloc.h>
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_LARGEST_INT = 2**31 - 1
_PAD_BYTES = 256 << 20


def keep_freed_memory() -> None:
    """Tell glibc to reuse the pages of large tensors; elsewhere do nothing.

    By default every tensor above 32 MB, and many below, is mapped anew and unmapped when it is freed:
    each step of a training loop then faults all its activations in again, which can cost more than the
    arithmetic. The price is a process that does not shrink.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)
        mallopt(_M_TOP_PAD, _PAD_BYTES)
