"""What a command runs on: device, threads, and where images are rendered."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline.bench import Bench
from pipeline.data.dataset import PreparedData
from stages import layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a command runs on.

    Args:
        device: of models and batches.
        workers: threads that decode and render.
        on_device: render on the device; None where it suits.
    """

    device: torch.device
    workers: int
    on_device: bool | None

    def bench(self) -> Bench:
        """Open the prepared data here.

        Raises:
            DataError: it was not prepared.
        """
        data = PreparedData.open(layout.PREPARED)
        return Bench(data=data, device=self.device, workers=self.workers, on_device=self.on_device)
