"""Devices: arrays sent there without waiting, and one line where their memory is short."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.errors import DeviceError, brief, is_out_of_memory


def to_device(values: NDArray[Any], device: torch.device) -> Tensor:
    """Return a copy on a device; on the CPU the array itself."""
    tensor = torch.from_numpy(values)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def long_lived_stream(device: torch.device) -> torch.cuda.Stream:
    """Return a stream of a GPU, for copies beside its work."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class Courier:
    """Copies large arrays to a device beside its work, from a thread that may wait for them.

    Copies go through one stream of their own, which lives as long as this; nothing is allocated on it.

    Args:
        device: where arrays are wanted.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = long_lived_stream(device) if device.type == "cuda" else None

    def bring(self, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return copies of host tensors on the device, when they are there; on a CPU these themselves."""
        if self._stream is None:
            return {name: array.to(self._device) for name, array in arrays.items()}
        there = {name: torch.empty_like(array, device=self._device) for name, array in arrays.items()}
        # What was in that memory before may still be read by work that was given to the device.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for name, array in arrays.items():
                there[name].copy_(array.pin_memory(), non_blocking=True)
        self._stream.synchronize()
        return there


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
