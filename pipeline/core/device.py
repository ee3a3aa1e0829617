"""Devices: copy arrays without blocking, and report a lack of memory in one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.errors import DeviceError, brief, is_out_of_memory


def to_device(values: NDArray[Any], device: torch.device) -> Tensor:
    """Return a copy on a device; on the CPU, a tensor that shares the array's memory."""
    tensor = torch.from_numpy(values)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def long_lived_stream(device: torch.device) -> torch.cuda.Stream:
    """Return a new CUDA stream, for copies that overlap with computation."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class Courier:
    """Copies large arrays to a device while it computes, from a thread that may block.

    All copies use one separate stream, which lives as long as this object. Nothing is allocated on it.

    Args:
        device: the target.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = long_lived_stream(device) if device.type == "cuda" else None

    def bring(self, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return copies of host tensors once they are on the device; on a CPU, the tensors themselves."""
        if self._stream is None:
            return {name: array.to(self._device) for name, array in arrays.items()}
        there = {name: torch.empty_like(array, device=self._device) for name, array in arrays.items()}
        # The allocator reuses memory: kernels queued earlier may still read its previous content.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for name, array in arrays.items():
                there[name].copy_(array.pin_memory(), non_blocking=True)
        self._stream.synchronize()
        return there


# Further advice where memory of a device is short.
RENDER_ON_CPU = ", or render on the CPU: --render cpu"


@contextmanager
def naming_memory(device: torch.device, what: str, remedy: str, elsewhere: str = "") -> Iterator[None]:
    """Turn an out-of-memory error into one line with the memory figures and a remedy.

    Args:
        device: the device that does the work.
        what: the work, for the message.
        remedy: changes that the user can make, for the message.
        elsewhere: a further one on a device that is not the CPU.

    Raises:
        DeviceError: the device has too little memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        told = remedy if device.type == "cpu" else f"{remedy}{elsewhere}"
        raise DeviceError(
            f"{device}: out of memory for {what} ({_figures(device, error)}); {told}"
        ) from error


def _figures(device: torch.device, error: Exception) -> str:
    if device.type != "cuda":
        return brief(str(error).rpartition("DefaultCPUAllocator: ")[2])
    free, total = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_allocated(device)
    return f"{held / 1e9:.1f} GB in use by this process, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
