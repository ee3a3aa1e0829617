"""A network prepared for export: its inputs, outputs and description.

Owns the traced program and its description; `formats.py` owns the files.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from pipeline.core.errors import ModelError
from pipeline.core.progress import note
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
        any_length: take samples of any length where the modality has padded ones, e.g. texts.
    """

    network: nn.Module
    card: ModelCard
    normalises: bool
    any_length: bool = True

    @property
    def input_name(self) -> str:
        """Name of the program's input."""
        return str(self._input.get("name", "images"))

    @property
    def axes(self) -> dict[int, str]:
        """Axes of any length, by name."""
        return {0: "batch", **{int(axis): name for axis, name in self._input.get("axes", {}).items()}}

    def fitted(self) -> Deployment:
        """Return the deployment with samples of one length, padded, if the network traces no other.

        E.g. torch 2.11 traces an LSTM for one number of steps.
        """
        if len(self.axes) == 1:
            return self
        try:
            self.trace()
        except ModelError:
            note(f"{self.card.architecture.name}: takes samples of one length alone, padded")
            return replace(self, any_length=False)
        return self

    @property
    def _input(self) -> Mapping[str, Any]:
        found: dict[str, Any] = self.description()["input"]
        return found

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
        axes = {axis: Dim(name, min=1, max=_longest(example, axis)) for axis, name in self.axes.items()}
        try:
            with warnings.catch_warnings():
                # A recurrent layer of torch lists its parameters a second time; the first time is exported.
                warnings.filterwarnings("ignore", r"The tensor attributes .*_flat_weights", UserWarning)
                program = torch.export.export(network.eval(), (example,), dynamic_shapes=(axes,))
        except (RuntimeError, ValueError, TypeError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ModelError(
                f"{self.card.architecture.name} cannot be traced ({reason}); expected a network that runs "
                "the same operations for every sample; export a different model"
            ) from error
        # Stack traces name files of this machine.
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)
        return program

    def description(self) -> dict[str, Any]:
        """Return preprocessing, classes and architecture for the file's users, as plain values."""
        deployed = self.card.preprocessing.deployed(normalises=self.normalises)
        if not self.any_length:
            deployed["input"] = {name: value for name, value in deployed["input"].items() if name != "axes"}
        return {
            **deployed,
            "classes": list(self.card.classes),
            "architecture": self.card.architecture.to_dict(),
        }


def _longest(example: Tensor, axis: int) -> int | None:
    """Return the largest length of an axis: the model's own, except for batches."""
    return None if axis == 0 else example.shape[axis]
