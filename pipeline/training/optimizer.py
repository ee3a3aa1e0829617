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
# A module with more of the network's parameters than this is no layer but holds the layers.
_MOST = 0.5
# 30 halvings: gradients that overflow even here are not too large for half precision, they diverge.
_LEAST_SCALE = 2.0**-14


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
    Under a loss scale no kernel is fused: see `LossScale`.
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


class LossScale:
    """Steps of an optimiser under a loss scale; in other precisions plain steps, which all count.

    In half precision the loss is scaled so that small gradients keep digits. Where scaled gradients
    overflow, torch's scaler skips the step and halves the scale. A skipped step leaves nothing behind:
    weights, the optimiser's state and the buffers of all networks, e.g. the statistics of batch norms, are
    those from before it. The optimiser must not be a fused one: in torch 2.11 a first step that is skipped
    leaves its momentum as uninitialised memory, which the next step uses.

    Args:
        optimizer: not fused where `enabled`.
        networks: whose buffers a skipped step must not change.
        device: where everything is.
        enabled: whether the precision is fp16.
        ranks: this process among those that share each step; all skip the same ones.
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
        """Remember what a skipped step must not change; to be called before the forward pass."""
        if self._enabled:
            self._kept = [buffer.clone() for buffer in self._buffers()]

    def backward(self, loss: Tensor) -> None:
        """Add the scaled gradients of a loss ()."""
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def clip(self, parameters: Iterable[nn.Parameter], norm: float) -> None:
        """Bound the norm of all gradients together, as they are without the scale."""
        self._scaler.unscale_(self._optimizer)
        nn.utils.clip_grad_norm_(parameters, norm)

    def step(self) -> bool:
        """Let the optimiser step unless a gradient overflowed; return whether the step counts.

        Raises:
            TrainingError: gradients overflow at the least scale.
        """
        self._stepped = False
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if not self._stepped:
            self._undo()
            self._require_scale()
        return self._stepped

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what `state_dict` returned."""
        self._scaler.load_state_dict(state)

    def _buffers(self) -> list[Tensor]:
        return [buffer for network in self._networks for buffer in network.buffers()]

    def _note_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Note that the optimiser was called: the scaler does not tell, and its scale may stay equal."""
        self._stepped = True

    @torch.no_grad()
    def _undo(self) -> None:
        for buffer, kept in zip(self._buffers(), self._kept, strict=True):
            buffer.copy_(kept)

    def _require_scale(self) -> None:
        scale = self._scaler.get_scale()
        if scale < _LEAST_SCALE:
            raise TrainingError(
                f"gradients are not finite at loss scale {scale:.1e}, and steps are skipped one after the "
                "other; expected finite gradients; lower learning_rate, or use precision: bf16 or fp32"
            )


def _make_scaler(device: torch.device, ranks: Ranks, *, enabled: bool) -> torch.amp.grad_scaler.GradScaler:
    if ranks.count == 1:
        return torch.amp.grad_scaler.GradScaler(device.type, enabled=enabled)
    # Asks all processes, so that none steps where another one skips.
    from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

    return ShardedGradScaler(device.type)


def depths(network: nn.Module) -> dict[str, int]:
    """Return for each parameter by name how many layers come after its own; 0 is the last layer.

    A layer is what the literature calls a block: a child of a stack (`nn.Sequential`, `ModuleList`,
    `ModuleDict`), or else of the network itself. timm's models say themselves what theirs are.
    """
    matcher: Any = getattr(network, "group_matcher", None)
    layers = _timms(network, matcher) if callable(matcher) else _layers(network)
    last = max(layers.values())
    return {name: last - layer for name, layer in layers.items()}


def _timms(network: nn.Module, matcher: Any) -> dict[str, int]:
    group: Any = importlib.import_module("timm.models").group_parameters
    return dict(group(network, matcher(coarse=False), reverse=True))


def _layers(network: nn.Module) -> dict[str, int]:
    """Return the layer of each parameter, counted from the images.

    Vectors alone, such as a norm, belong to the layer before; parameters that lie beside the layers, such
    as a class token or position embeddings, to the first.
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
    """Yield the layers below a module that holds some, each with the prefix of its parameters' names."""
    for name, child in module.named_children():
        size = sum(p.numel() for p in child.parameters())
        if not size:
            continue
        inner = f"{prefix}{name}."
        if type(child) in _STACKS or (size > _MOST * total and _holds_blocks(child)):
            yield from _opened(inner, child, total)
        else:
            yield inner, child


def _holds_blocks(module: nn.Module) -> bool:
    """Whether somewhere in a module is a stack of modules that are more than one operation each."""
    stacks = (m for m in module.modules() if m is not module and type(m) in _STACKS)
    return any(sum(bool(list(child.children())) for child in stack.children()) > 1 for stack in stacks)
