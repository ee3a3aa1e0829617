"""A network prepared for export: its inputs, outputs and description.

Owns the traced program and its description; `formats.py` owns the files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from pipeline.core.errors import ModelError
from pipeline.models.checkpoint import ModelCard

# torch.export specialises batches of 0 and 1, so 2 is the smallest that keeps the batch dynamic.
_TRACED_BATCH = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A network to export.

    Args:
        network: a checkpoint's network, in eval mode, float32, on the CPU.
        card: its card.
        normalises: take pixels (B, S, S, channels) uint8 and normalise inside the network, instead of
            taking normalised images (B, channels, S, S) float32.
    """

    network: nn.Module
    card: ModelCard
    normalises: bool

    def inputs(self, pixels: Tensor) -> Tensor:
        """Convert pixels (B, S, S, c) uint8 of the model's size and any channels to the exported input."""
        preprocessing = self.card.preprocessing
        return (
            preprocessing.seen(pixels).contiguous()
            if self.normalises
            else preprocessing.normalise(pixels).contiguous()
        )

    @torch.inference_mode()
    def logits(self, pixels: Tensor) -> Tensor:
        """Return the logits (B, C) of the original network, run eagerly on the same pixels."""
        logits: Tensor = self.network(self.card.preprocessing.normalise(pixels))
        return logits

    def trace(self) -> ExportedProgram:
        """Trace the program from images (B, ...), for any B >= 1, to logits (B, C).

        Raises:
            ModelError: the network's control flow depends on values.
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
                f"{self.card.architecture.name} cannot be traced ({reason}); expected a network that runs "
                "the same operations for every image; export a different model"
            ) from error
        # Stack traces name files of this machine.
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)
        return program

    def description(self) -> dict[str, Any]:
        """Return preprocessing, classes and architecture for the file's users, as plain values."""
        return {
            **self.card.preprocessing.deployed(normalises=self.normalises),
            "classes": list(self.card.classes),
            "architecture": self.card.architecture.to_dict(),
        }
