"""The optimiser: layer-wise rates, schedule, loss scaling and the average of the weights."""

from __future__ import annotations

import copy
import importlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.core.distributed import SINGLE, Ranks
from pipeline.core.errors import TrainingError
from pipeline.models.heads import head_of
from pipeline.training.settings import TrainingSettings

_STACKS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# A module with a larger share of the network's parameters contains layers, and is not a layer itself.
_MOST = 0.5
# 30 halvings of 2**16: gradients that overflow even here diverge, in any precision.
_LEAST_SCALE = 2.0**-14


def freeze(network: nn.Module) -> None:
    """Freeze all layers but the last; the caller keeps the network in eval mode, which freezes norms.

    Raises:
        ModelError: the network has no last layer.
    """
    head, _ = head_of(network)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith(f"{head}."))


def make_optimizer(
    network: nn.Module, settings: TrainingSettings, projection: nn.Module | None = None
) -> torch.optim.Optimizer:
    """Return the optimiser of a network's trainable parameters; only matrices and filters decay.

    Each group has a `scale`, the factor on the step's learning rate; a projection's is 1. With a loss scale
    no kernel is fused: see `LossScale`.
    """
    fused = None if settings.precision == "fp16" else True
    scales = rate_scales(network, settings)
    trained = [(scales[name], p) for name, p in network.named_parameters() if p.requires_grad]
    trained += [(1.0, p) for p in projection.parameters()] if projection else []
    # One group per (scale, decays), e.g. 2 groups for a ResNet without layer decay: few kernels.
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
    """Return each parameter's factor on the learning rate, by name.

    With `layer_decay` d, the layer before the last has d, then d^2 etc. (Bao et al., "BEiT", arXiv
    2106.08254, and timm). The last layer has `head_rate_factor`.
    """
    decay, factor = settings.layer_decay, settings.head_rate_factor
    if decay == 1 and factor == 1:
        return {name: 1.0 for name, _ in network.named_parameters()}
    return {name: decay**depth if depth else factor for name, depth in depths(network).items()}


def learning_rate(settings: TrainingSettings, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step: linear warm-up, then the schedule.

    Args:
        settings: settings of the run.
        step: step of the run, from 0. Skipped steps count, so that the schedule ends with the run.
        steps_per_epoch: number of steps per epoch.
    """
    # Example: 10 epochs of 100 steps, 1 warm-up epoch, cosine.
    #   step 0 -> lr / 100, step 99 -> lr, step 549 -> lr / 2, step 999 -> 0
    warmup = settings.warmup_epochs * steps_per_epoch
    total = settings.epochs * steps_per_epoch
    if step + 1 <= warmup:
        return settings.learning_rate * (step + 1) / warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    if settings.schedule == "step":
        passed = sum(step >= milestone * steps_per_epoch for milestone in settings.milestones)
        return float(settings.learning_rate * settings.step_factor**passed)
    progress = (step + 1 - warmup) / max(1.0, total - warmup)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


class WeightAverage:
    """An exponential moving average of a network's weights; buffers are copied.

    The decay ramps up, min(decay, (1 + step) / (10 + step)), so that initial weights are forgotten soon.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Add the weights after a step, counted from 0 without skipped steps."""
        # Share of the new weights: 0.9 at step 0, 0.09 at step 90, down to 1 - decay.
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        averaged: list[Tensor] = list(self.network.parameters())
        current: list[Tensor] = list(network.parameters())
        # A few kernels for all parameters, instead of one per parameter.
        torch._foreach_lerp_(averaged, current, share)
        for mine, theirs in zip(self.network.buffers(), network.buffers(), strict=True):
            mine.copy_(theirs)


class LossScale:
    """Optimiser steps with a loss scale for fp16; plain steps in other precisions.

    In fp16 the loss is scaled so that small gradients keep digits. If scaled gradients overflow, torch's
    scaler skips the step and halves the scale. A skipped step changes nothing: weights, optimiser state and
    buffers (e.g. batch-norm statistics) stay the same. The optimiser must not be fused: in torch 2.11, if
    the first step is skipped, its momentum is uninitialised memory, which the next step uses.

    Args:
        optimizer: the optimiser, not fused if `enabled`.
        networks: networks with buffers that a skipped step must not change.
        device: device of the networks.
        enabled: whether the precision is fp16.
        ranks: this process among those that share each step; all skip the same steps.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        networks: Sequence[nn.Module],
        *,
        device: torch.device,
        enabled: bool,
        ranks: Ranks = SINGLE,
    ) -> None:
        self._optimizer, self._networks, self._enabled = optimizer, networks, enabled
        self._scaler = _make_scaler(device, ranks if enabled else SINGLE, enabled=enabled)
        self._kept: list[Tensor] = []
        self._stepped = False
        optimizer.register_step_post_hook(self._note_step)

    def begin(self) -> None:
        """Copy the buffers, so that a skipped step can restore them; call before the forward pass."""
        # The forward pass updates norm statistics before an overflow is known. Only fp16 pays for the copy.
        if self._enabled:
            self._kept = [buffer.clone() for buffer in self._buffers()]

    def backward(self, loss: Tensor) -> None:
        """Add the scaled gradients of a loss ()."""
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def clip(self, parameters: Iterable[nn.Parameter], norm: float) -> None:
        """Clip the joint norm of all gradients, after removing the scale."""
        self._scaler.unscale_(self._optimizer)
        nn.utils.clip_grad_norm_(parameters, norm)

    def step(self) -> bool:
        """Step the optimiser unless a gradient overflowed; return whether the step counts.

        Raises:
            TrainingError: gradients overflow even at the smallest scale.
        """
        self._stepped = False
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if not self._stepped:
            self._undo()
            self._require_scale()
        return self._stepped

    def state_dict(self) -> dict[str, Any]:
        """Return the scaler's state for a resumed run."""
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state from `state_dict`."""
        self._scaler.load_state_dict(state)

    def _buffers(self) -> list[Tensor]:
        return [buffer for network in self._networks for buffer in network.buffers()]

    def _note_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Record the optimiser's call: the scaler does not report it, and its scale may stay the same."""
        self._stepped = True

    @torch.no_grad()
    def _undo(self) -> None:
        for buffer, kept in zip(self._buffers(), self._kept, strict=True):
            buffer.copy_(kept)

    def _require_scale(self) -> None:
        scale = self._scaler.get_scale()
        if scale < _LEAST_SCALE:
            raise TrainingError(
                f"gradients are not finite even at loss scale {scale:.1e}, so every step is skipped; "
                "expected finite gradients; lower learning_rate, or use precision: bf16 or fp32"
            )


def _make_scaler(device: torch.device, ranks: Ranks, *, enabled: bool) -> torch.amp.grad_scaler.GradScaler:
    if ranks.count == 1:
        return torch.amp.grad_scaler.GradScaler(device.type, enabled=enabled)
    # Shares overflows between processes, so that either all step or all skip.
    from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

    return ShardedGradScaler(device.type)


def depths(network: nn.Module) -> dict[str, int]:
    """Return each parameter's number of later layers, by name; 0 is the last layer.

    A layer is a block of the literature: a child of a stack (`nn.Sequential`, `ModuleList`, `ModuleDict`),
    or of the network itself. timm's models define their own layers.
    """
    # Example: ResNet-18. fc -> 0, layer4.1 -> 1, layer4.0 -> 2, ..., layer1.0 -> 8, conv1 and bn1 -> 9.
    matcher: Any = getattr(network, "group_matcher", None)
    layers = _timms(network, matcher) if callable(matcher) else _layers(network)
    last = max(layers.values())
    return {name: last - layer for name, layer in layers.items()}


def _timms(network: nn.Module, matcher: Any) -> dict[str, int]:
    group: Any = importlib.import_module("timm.models").group_parameters
    return dict(group(network, matcher(coarse=False), reverse=True))


def _layers(network: nn.Module) -> dict[str, int]:
    """Return the layer of each parameter, counted from the input.

    Modules with vectors only, e.g. a norm, belong to the layer before. Parameters outside all layers, e.g.
    a class token or position embeddings, belong to the first.
    """
    total = sum(p.numel() for p in network.parameters())
    layers: dict[str, int] = dict.fromkeys((name for name, _ in network.named_parameters()), 0)
    layer = -1
    for prefix, module in _opened("", network, total):
        parameters = dict(module.named_parameters())
        if layer < 0 or any(p.ndim > 1 for p in parameters.values()):
            layer += 1
        layers |= {f"{prefix}{name}": layer for name in parameters}
    return layers


def _opened(prefix: str, module: nn.Module, total: int) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers inside a module, each with the prefix of its parameters' names."""
    for name, child in module.named_children():
        size = sum(p.numel() for p in child.parameters())
        if not size:
            continue
        inner = f"{prefix}{name}."
        # A large module with blocks inside is a wrapper, e.g. `encoder`: look for layers in it.
        if type(child) in _STACKS or (size > _MOST * total and _holds_blocks(child)):
            yield from _opened(inner, child, total)
        else:
            yield inner, child


def _holds_blocks(module: nn.Module) -> bool:
    """Whether a module contains a stack with at least two modules of several operations each."""
    stacks = (m for m in module.modules() if m is not module and type(m) in _STACKS)
    return any(sum(bool(list(child.children())) for child in stack.children()) > 1 for stack in stacks)
