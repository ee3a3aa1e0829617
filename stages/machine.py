"""What a command runs on: device, threads, and where images are rendered."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline.bench import Bench
from pipeline.data.dataset import PreparedData
from pipeline.ranks import SINGLE, Ranks
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

    def bench(self, ranks: Ranks = SINGLE) -> Bench:
        """Open the prepared data here.

        Args:
            ranks: this process among those that train a network together.

        Raises:
            DataError: it was not prepared.
        """
        return Bench(
            data=PreparedData.open(layout.PREPARED),
            device=self.device,
            workers=self.workers,
            on_device=self.on_device,
            ranks=ranks,
        )
