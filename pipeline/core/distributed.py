"""Several processes that do one step together: which rows are whose, and how results come together.

A step is of the same samples, in the same order, however many processes share it. Each computes its own
rows, and what is made of all of them, such as a loss, is computed on all of them by everyone; so results do
not depend on the number of processes beyond the rounding of sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True, slots=True)
class Ranks:
    """One process among `count`, by its index from 0; more than one need a torch process group."""

    index: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether it is this process that writes and tells."""
        return self.index == 0

    def share(self, items: int, unit: int = 1) -> slice:
        """Return which of so many items are this process's: neighbours, of nearly equal number.

        Args:
            items: in all.
            unit: how many neighbours must stay together.
        """
        units = -(-items // unit)
        start, stop = (min(items, units * k // self.count * unit) for k in (self.index, self.index + 1))
        return slice(start, stop)

    def assemble(self, own: Tensor, place: slice, count: int) -> Tensor:
        """Return the rows of all processes (count, ...), of which these are this process's.

        Gradients reach `own` times the number of processes: torch's `DistributedDataParallel` takes the
        mean of those of all, and what is wanted is the sum.

        Args:
            own: (n, ...) this process's rows.
            place: where they are.
            count: of rows in all.
        """
        if self.count == 1:
            return own
        whole = own.new_zeros(count, *own.shape[1:])
        whole[place] = own.detach()
        dist.all_reduce(whole)
        scaled = own.view_as(own)  # another tensor: a hook on one that is a leaf would stay
        if scaled.requires_grad:
            scaled.register_hook(lambda gradient: gradient * self.count)  # type: ignore[no-untyped-call]
        return torch.cat([whole[: place.start], scaled, whole[place.stop :]])

    def total(self, own: Tensor) -> Tensor:
        """Return the sum over all processes; gradients reach every process's tensor."""
        total: Tensor = _Total.apply(own)  # type: ignore[no-untyped-call]
        return total

    def agree(self, *numbers: int) -> bool:
        """Whether all processes gave the same numbers."""
        if self.count == 1:
            return True
        gathered: list[Any] = [None] * self.count
        dist.all_gather_object(gathered, numbers)
        return all(given == gathered[0] for given in gathered)


SINGLE = Ranks()


class _Total(torch.autograd.Function):
    """A sum over processes, whose gradient is the sum of theirs."""

    @staticmethod
    def forward(context: Any, own: Tensor) -> Tensor:
        total = own.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def distributed(network: nn.Module, ranks: Ranks, device: torch.device) -> nn.Module:
    """Return a network as several processes call it in training, each on its rows; it shares its weights.

    Gradients are averaged by torch's `DistributedDataParallel` while they are computed; batch norms see the
    statistics of all rows, not of one process's: see `synchronise_norms`.

    Args:
        network: with synchronised batch norms, on the device.
        ranks: this process among all.
        device: of this process.
    """
    if ranks.count == 1:
        return network
    return DistributedDataParallel(
        network,
        device_ids=None if device.type == "cpu" else [device],
        broadcast_buffers=False,  # they are the same everywhere
        gradient_as_bucket_view=True,
    )


def synchronise_norms(network: nn.Module, ranks: Ranks, device: torch.device) -> nn.Module:
    """Let batch norms see all rows of a step; the names of weights and buffers stay."""
    if ranks.count == 1:
        return network
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return converted
    if isinstance(network, _BatchNorm):
        return SynchronisedBatchNorm(network, ranks)
    for name, child in network.named_children():
        setattr(network, name, synchronise_norms(child, ranks, device))
    return network


class SynchronisedBatchNorm(_BatchNorm):
    """A batch norm over the rows of all processes, where torch's own, which is for GPUs, does not run.

    Args:
        norm: whose place it takes; weights and buffers are shared.
        ranks: this process among all.
    """

    def __init__(self, norm: _BatchNorm, ranks: Ranks) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.train(norm.training)
        self._ranks = ranks

    def _check_input_dim(self, images: Tensor) -> None:
        """Take any number of dimensions (B, C, ...)."""

    def forward(self, images: Tensor) -> Tensor:
        """Normalise (B, C, ...), in training with the moments of all processes' rows."""
        if not self.training:
            return super().forward(images)
        values, own = images.float(), images.numel() // images.shape[1]
        over = [0, *range(2, images.ndim)]
        sums = self._ranks.total(torch.cat([values.sum(over), values.new_tensor([own])]))
        count = sums[-1].detach()
        mean = _as_channel(sums[:-1] / count, images)
        centred = values - mean
        variance = self._ranks.total(centred.square().sum(over)) / count
        self._track(mean.detach().flatten(), variance.detach(), count)
        scale = (variance + self.eps).rsqrt()
        if not self.affine:
            return (centred * _as_channel(scale, images)).to(images.dtype)
        out = centred * _as_channel(scale * self.weight, images) + _as_channel(self.bias, images)
        return out.to(images.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Take the moments of a step into the running ones, as torch does."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * count / (count - 1), share)


def _as_channel(values: Tensor, images: Tensor) -> Tensor:
    """Return (C,) in a shape that broadcasts against (B, C, ...)."""
    return values.view(1, -1, *[1] * (images.ndim - 2))
