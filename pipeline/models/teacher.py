"""A teacher: a network with everything that decides its logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.data.packed import PreparedData
from pipeline.digests import spec_digest
from pipeline.errors import ModelError
from pipeline.models.checkpoint import ModelCard, state_digest


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

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Map a batch (B, channels, S, S) to float32 logits (B, C)."""
        with torch.autocast(images.device.type, torch.bfloat16, self.precision == "bf16"):
            logits: Tensor = self.network(images)
        return logits.float()


def require_same_classes(name: str, card: ModelCard, data: PreparedData) -> None:
    """Refuse a teacher whose classes are not the data's.

    Raises:
        ModelError: their numbers differ, or the same names come in another order.
    """
    theirs, ours = len(card.classes), len(data.classes)
    if theirs != ours:
        raise ModelError(
            f"teacher {name} has {theirs} classes, the data {ours}; expected the same; fine-tune it on "
            "this data (fine_tune: true) or choose another teacher"
        )
    if card.classes != data.classes and set(card.classes) == set(data.classes):
        first = next(n for n in range(ours) if card.classes[n] != data.classes[n])
        raise ModelError(
            f"teacher {name} has the data's classes in another order: class {first} is "
            f"{card.classes[first]!r}, the data's {data.classes[first]!r}; expected the same order; rename "
            "or reorder the data's classes"
        )
