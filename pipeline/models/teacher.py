"""A teacher: a network with everything that decides its logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.codecs import TeacherOutput
from pipeline.core.errors import ModelError
from pipeline.core.hashing import spec_digest
from pipeline.core.progress import note
from pipeline.models.checkpoint import ModelCard, state_digest
from pipeline.samples.dataset import PreparedData


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """A teacher that is ready to run.

    Args:
        name: what it is called.
        network: in eval mode, on the device.
        card: how it wants its images, and its classes.
        precision: of its forward pass.
    """

    name: str
    network: nn.Module
    card: ModelCard
    precision: Literal["fp32", "bf16"]

    def digest(self) -> str:
        """Return a digest of everything that decides its logits."""
        card = self.card.to_dict()
        return spec_digest(
            {"weights": state_digest(self.network), "card": card, "precision": self.precision}
        )

    def describe(self) -> dict[str, Any]:
        """Return name, precision and card as plain values."""
        return {"name": self.name, "precision": self.precision, **self.card.to_dict()}

    @torch.inference_mode()
    def output(self, images: Tensor) -> TeacherOutput:
        """Map a batch (B, channels, S, S) to logits, and the features that they are made of.

        The last linear layer runs in float32 also under autocast: bfloat16 keeps 8 bits of a logit.
        """
        inputs: list[Tensor] = []
        outputs: list[Tensor] = []

        def run_head(head: nn.Module, given: tuple[Tensor, ...], _: Tensor) -> Tensor:
            inputs.append(given[0].float())
            with torch.autocast(images.device.type, enabled=False):
                outputs.append(F.linear(inputs[-1], head.weight, head.bias))  # type: ignore[arg-type]
            return outputs[-1]

        head = self.head
        hook = None if head is None else head.register_forward_hook(run_head)
        try:
            with self.autocast(images.device):
                logits: Tensor = self.network(images)
        finally:
            if hook is not None:
                hook.remove()
        # The very tensor that the layer gave: nothing came after it.
        straight = len(outputs) == 1 and outputs[0].ndim == 2 and logits.data_ptr() == outputs[0].data_ptr()
        return TeacherOutput(logits.float(), inputs[0] if straight else None)

    def autocast(self, device: torch.device) -> torch.autocast:
        """Return the context in which its network runs."""
        return torch.autocast(device.type, torch.bfloat16, self.precision == "bf16")

    def logits(self, images: Tensor) -> Tensor:
        """Map a batch (B, channels, S, S) to float32 logits (B, C)."""
        return self.output(images).logits

    @property
    def head(self) -> nn.Linear | None:
        """The last linear layer of as many outputs as there are classes, if there is one."""
        layers = [m for m in self.network.modules() if isinstance(m, nn.Linear)]
        fitting = [layer for layer in layers if layer.out_features == len(self.card.classes)]
        return fitting[-1] if fitting else None


def require_same_classes(name: str, card: ModelCard, data: PreparedData) -> None:
    """Refuse a teacher whose classes are not the data's; say so where they have other names.

    Raises:
        ModelError: their numbers differ, or names that both have come in another order.
    """
    theirs, ours = len(card.classes), len(data.classes)
    if theirs != ours:
        raise ModelError(
            f"teacher {name} has {theirs} classes, the data {ours}; expected the same; say which is which "
            "(class_map), fine-tune it on this data (fine_tune: true), or choose another teacher"
        )
    others = [n for n in range(ours) if card.classes[n] != data.classes[n]]
    moved = next((n for n in others if data.classes[n] in card.classes), None)
    if moved is not None:
        raise ModelError(
            f"teacher {name} has classes of the data in another order: class {moved} is "
            f"{card.classes[moved]!r}, the data's {data.classes[moved]!r}; expected the same order; say "
            "which is which (class_map)"
        )
    if others:
        theirs_first, ours_first = card.classes[others[0]], data.classes[others[0]]
        note(
            f"teacher {name}: {len(others)} of {ours} classes have other names than the data's, such as "
            f"{theirs_first!r} for {ours_first!r}, and are taken for the same, in order; if they are not, "
            "say which is which (class_map)"
        )
