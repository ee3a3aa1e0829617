"""A network that several processes train together, each on its rows of every step.

Gradients are averaged by torch's `DistributedDataParallel` while they are computed; batch norms see the
statistics of all rows, not of one process's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from pipeline.ranks import Ranks


def distributed(network: nn.Module, ranks: Ranks, device: torch.device) -> nn.Module:
    """Return a network as it is to be called in training; it shares its weights.

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
