"""What tests of never waiting for a device share: fake CUDA tensors, and the real device's own check."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class NoWaiting(TorchDispatchMode):
    """Refuses copies to another device that wait for it: those that are not said to be non-blocking.

    On fake tensors, which have no values, reading one is refused as well.
    """

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        target = kwargs.get("device")
        if function is torch.ops.aten._to_copy.default and target is not None:
            assert torch.device(target).type == args[0].device.type or kwargs.get("non_blocking")
        return function(*args, **kwargs)


@contextmanager
def no_waiting_on_cuda() -> Iterator[None]:
    """Raise at whatever synchronises the host with the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
