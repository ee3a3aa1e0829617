"""What a command runs on: device, threads, and where images are rendered."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline.core.distributed import SINGLE, Ranks
from pipeline.evaluation.context import RunContext
from pipeline.modalities.prepared import PreparedData
from pipeline.samples.description import read_description, require_as_asked
from pipeline.tasks.table import find_task
from stages import paths
from stages.data_params import DataParams


def open_prepared(asked: DataParams) -> PreparedData:
    """Open the prepared data, made with what params.yaml asks for.

    Raises:
        DataError: it was not prepared.
        MismatchError: it was made with other parameters.
    """
    described = read_description(paths.PREPARED)
    require_as_asked(paths.PREPARED, described, asked.asked(), asked.options)
    return PreparedData.open(paths.PREPARED)


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

    def context(self, asked: DataParams | None, ranks: Ranks = SINGLE) -> RunContext:
        """Open the prepared data here.

        Args:
            asked: what the data is to be made with; None takes it as it is.
            ranks: this process among those that train a network together.

        Raises:
            DataError: it was not prepared.
            MismatchError: it was made with other parameters.
        """
        data = PreparedData.open(paths.PREPARED) if asked is None else open_prepared(asked)
        return RunContext(
            data=data,
            task=find_task(data.task),
            device=self.device,
            workers=self.workers,
            on_device=self.on_device,
            ranks=ranks,
        )
