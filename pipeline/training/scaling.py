"""Half precision: the loss is scaled so that small gradients keep digits, and some steps do not count.

Where scaled gradients overflow, torch's scaler skips the step and halves the scale. A skipped step leaves
nothing behind: weights, the optimiser's state and the buffers of all networks, such as the statistics of
batch norms, are those from before it. The optimiser must not be a fused one: in torch 2.11 a first step
that is skipped leaves its momentum as uninitialised memory, which the next step uses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.core.distributed import SINGLE, Ranks
from pipeline.core.errors import TrainingError

# 30 halvings: gradients that overflow even here are not too large for half precision, they diverge.
_LEAST_SCALE = 2.0**-14


class LossScale:
    """Steps of an optimiser under a loss scale; in other precisions plain steps, which all count.

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
