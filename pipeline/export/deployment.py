"""A network as it leaves: what goes in, what comes out, and what its user must know.

Owns the traced program and its description; the files it is put into are `formats.py`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from pipeline.core.errors import ModelError
from pipeline.models.checkpoint import ModelCard

# torch specialises a batch of one, or of none.
_TRACED_BATCH = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A network to be exported.

    Args:
        network: of a checkpoint, in eval mode, float32, on the CPU.
        card: its card.
        normalises: its input is pixels (B, S, S, channels) uint8, normalised inside, instead of
            normalised images (B, channels, S, S) float32.
    """

    network: nn.Module
    card: ModelCard
    normalises: bool

    def inputs(self, pixels: Tensor) -> Tensor:
        """Return what is fed for pixels (B, S, S, c) uint8 of the model's size, whatever their channels."""
        preprocessing = self.card.preprocessing
        return (
            preprocessing.seen(pixels).contiguous()
            if self.normalises
            else preprocessing.normalise(pixels).contiguous()
        )

    @torch.inference_mode()
    def logits(self, pixels: Tensor) -> Tensor:
        """Return the logits (B, C) of the network as it is, eagerly, of the same pixels."""
        logits: Tensor = self.network(self.card.preprocessing.normalise(pixels))
        return logits

    def trace(self) -> ExportedProgram:
        """Return the program: images (B, ...), for any B from 1, to logits (B, C).

        Raises:
            ModelError: the network decides by values what it computes.
        """
        preprocessing = self.card.preprocessing
        network = preprocessing.with_normalisation(self.network) if self.normalises else self.network
        example = self.inputs(preprocessing.example(_TRACED_BATCH))
        batch = {0: Dim("batch", min=1)}
        try:
            program = torch.export.export(network.eval(), (example,), dynamic_shapes=(batch,))
        except (RuntimeError, ValueError, TypeError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ModelError(
                f"{self.card.architecture.name} cannot be traced ({reason}); expected a network that "
                "computes the same operations for every image; export another model"
            ) from error
        # They name files of this machine.
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)
        return program

    def description(self) -> dict[str, Any]:
        """Return what its user must know, as plain values."""
        return {
            **self.card.preprocessing.deployed(normalises=self.normalises),
            "classes": list(self.card.classes),
            "architecture": self.card.architecture.to_dict(),
        }
