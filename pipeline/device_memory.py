"""A device's memory: what is said when it is not enough."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipeline.errors import DeviceError, brief, is_out_of_memory


@contextmanager
def naming_memory(device: torch.device, what: str, remedy: str) -> Iterator[None]:
    """Let a device that runs out of memory say in one line how much there was, and what to do.

    Args:
        device: where the work is done.
        what: the work, for the message.
        remedy: what a user can change.

    Raises:
        DeviceError: there is not enough memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(
            f"{device}: too little memory for {what} ({_figures(device, error)}); {remedy}"
        ) from error


def _figures(device: torch.device, error: Exception) -> str:
    if device.type != "cuda":
        return brief(str(error).rpartition("DefaultCPUAllocator: ")[2])
    free, total = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_allocated(device)
    return f"{held / 1e9:.1f} GB held by it, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
