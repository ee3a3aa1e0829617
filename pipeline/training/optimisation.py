"""The optimiser, the learning-rate schedule and the average of the weights."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from pipeline.models.heads import head_of
from pipeline.training.layers import depths
from pipeline.training.settings import TrainingSettings


def freeze(network: nn.Module) -> None:
    """Let a network's last layer alone be trained; its mode is to be evaluation, as norms are frozen.

    Raises:
        ModelError: it has no last layer.
    """
    head, _ = head_of(network)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith(f"{head}."))


def make_optimizer(
    network: nn.Module, settings: TrainingSettings, projection: nn.Module | None = None
) -> torch.optim.Optimizer:
    """Return the optimiser of a network's parameters, but for frozen ones; only matrices and filters decay.

    Each group has a `scale` by which the rate of a step is to be multiplied; that of a projection's is 1.
    Under a loss scale no kernel is fused: see `scaling`.
    """
    fused = None if settings.precision == "fp16" else True
    scales = rate_scales(network, settings)
    trained = [(scales[name], p) for name, p in network.named_parameters() if p.requires_grad]
    trained += [(1.0, p) for p in projection.parameters()] if projection else []
    members: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for scale, parameter in trained:
        members.setdefault((scale, parameter.ndim > 1), []).append(parameter)
    groups = [
        {"params": some, "scale": scale, "weight_decay": settings.weight_decay if decays else 0.0}
        for (scale, decays), some in members.items()
    ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=fused)
    return torch.optim.SGD(
        groups,
        lr=settings.learning_rate,
        momentum=settings.momentum,
        nesterov=settings.momentum > 0,
        fused=fused,
    )


def rate_scales(network: nn.Module, settings: TrainingSettings) -> dict[str, float]:
    """Return for each parameter by name what its rate is, in parts of the learning rate.

    With `layer_decay` d the last layer has 1, the one before it d, then d^2, and so on (Bao et al., "BEiT",
    arXiv 2106.08254, and timm).
    """
    decay, factor = settings.layer_decay, settings.head_rate_factor
    if decay == 1 and factor == 1:
        return {name: 1.0 for name, _ in network.named_parameters()}
    return {name: decay**depth if depth else factor for name, depth in depths(network).items()}


def learning_rate(settings: TrainingSettings, step: int, steps_per_epoch: int) -> float:
    """Return the rate of a step: linear warm-up, then a cosine to zero or steps down.

    Args:
        settings: of the run.
        step: counted from 0 over the run, those that a loss scale skips too: a schedule ends with the run.
        steps_per_epoch: of the run.
    """
    warmup = settings.warmup_epochs * steps_per_epoch
    total = settings.epochs * steps_per_epoch
    if step + 1 <= warmup:
        return settings.learning_rate * (step + 1) / warmup
    if settings.schedule == "step":
        passed = sum(step >= milestone * steps_per_epoch for milestone in settings.milestones)
        return float(settings.learning_rate * settings.step_factor**passed)
    progress = (step + 1 - warmup) / max(1.0, total - warmup)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


class WeightAverage:
    """An exponential moving average of a network's weights; buffers are copied.

    The decay ramps up, min(decay, (1 + step) / (10 + step)), so that the beginning is forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take in the weights after a step, counted from 0; skipped ones do not count."""
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        averaged: list[Tensor] = list(self.network.parameters())
        current: list[Tensor] = list(network.parameters())
        torch._foreach_lerp_(averaged, current, share)
        for mine, theirs in zip(self.network.buffers(), network.buffers(), strict=True):
            mine.copy_(theirs)
