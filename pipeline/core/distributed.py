"""Several processes share one training step: how rows are divided and results are gathered.

A step has the same samples in the same order for any number of processes. Each process computes a slice of
the rows. Functions of all rows, e.g. a loss, are computed by every process on all gathered rows. So results
are independent of the number of processes, up to the rounding of sums.
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
    """One process among `count`, by its index from 0; a count above 1 needs a torch process group."""

    index: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.index == 0

    def share(self, items: int, unit: int = 1) -> slice:
        """Return this process's slice of the items; slices are contiguous and nearly equal.

        E.g. 10 items in units of 4 on 2 processes: slices 0:4 and 4:10.

        Args:
            items: total number.
            unit: number of neighbours that stay together.
        """
        # Divide units, not items: ceil(items / unit) of them, the last possibly short.
        units = -(-items // unit)
        start, stop = (min(items, units * k // self.count * unit) for k in (self.index, self.index + 1))
        return slice(start, stop)

    def assemble(self, own: Tensor, place: slice, count: int) -> Tensor:
        """Return the rows (count, ...) of all processes, given this process's rows.

        The gradient of `own` is multiplied by the number of processes. torch's `DistributedDataParallel`
        averages gradients over processes, but the loss needs their sum.

        Args:
            own: (n, ...) this process's rows.
            place: their positions among all rows.
            count: total number of rows.
        """
        if self.count == 1:
            return own
        # (count, ...): each rank fills its slice, so the sum over ranks is a gather of unequal slices.
        # It costs up to twice the traffic of an all-gather, which needs equal slices.
        whole = own.new_zeros(count, *own.shape[1:])
        whole[place] = own.detach()
        dist.all_reduce(whole)
        scaled = own.view_as(own)  # a new tensor: a hook on a leaf would outlive this step
        if scaled.requires_grad:
            scaled.register_hook(lambda gradient: gradient * self.count)  # type: ignore[no-untyped-call]
        # Only this rank's rows carry a gradient; the others are constants here.
        return torch.cat([whole[: place.start], scaled, whole[place.stop :]])

    def total(self, own: Tensor) -> Tensor:
        """Return the sum over all processes; gradients flow back to the tensor of every process."""
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
    """Sum over processes; the gradient is the sum of all processes' gradients."""

    @staticmethod
    def forward(context: Any, own: Tensor) -> Tensor:
        total = own.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        # Every rank's loss depends on the total, so d(total)/d(own) collects all ranks' gradients.
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def distributed(network: nn.Module, ranks: Ranks, device: torch.device) -> nn.Module:
    """Wrap a network for training by several processes, each on its rows; weights are shared.

    torch's `DistributedDataParallel` averages gradients during the backward pass. Batch norms use the
    statistics of all rows, see `synchronise_norms`.

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
        broadcast_buffers=False,  # equal on all ranks: every rank sees the moments of all rows
        gradient_as_bucket_view=True,
    )


def synchronise_norms(network: nn.Module, ranks: Ranks, device: torch.device) -> nn.Module:
    """Let batch norms use the rows of all processes; the names of weights and buffers stay the same."""
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
    """A batch norm over the rows of all processes, for CPUs; torch's `SyncBatchNorm` needs GPUs.

    Args:
        norm: the norm to replace; weights and buffers are shared.
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
        """Accept any number of dimensions (B, C, ...)."""

    def forward(self, images: Tensor) -> Tensor:
        """Normalise (B, C, ...); in training, with the moments of all processes' rows."""
        if not self.training:
            return super().forward(images)
        values, own = images.float(), images.numel() // images.shape[1]
        over = [0, *range(2, images.ndim)]
        # (C + 1,): C sums and the number of values, in one all-reduce; ranks may have different B.
        sums = self._ranks.total(torch.cat([values.sum(over), values.new_tensor([own])]))
        count = sums[-1].detach()
        mean = _as_channel(sums[:-1] / count, images)
        centred = values - mean
        # A second all-reduce: E[x²] - E[x]² would save it but loses digits to cancellation.
        variance = self._ranks.total(centred.square().sum(over)) / count
        self._track(mean.detach().flatten(), variance.detach(), count)
        scale = (variance + self.eps).rsqrt()
        if not self.affine:
            return (centred * _as_channel(scale, images)).to(images.dtype)
        out = centred * _as_channel(scale * self.weight, images) + _as_channel(self.bias, images)
        return out.to(images.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Update the running moments from the moments (C,) of a step, as torch does."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        # torch normalises with the biased variance and keeps the unbiased one.
        self.running_var.lerp_(variance * count / (count - 1), share)


def _as_channel(values: Tensor, images: Tensor) -> Tensor:
    """Reshape (C,) to broadcast against (B, C, ...)."""
    return values.view(1, -1, *[1] * (images.ndim - 2))
