"""The machine of a command: device, threads, and the place of rendering."""

from __future__ import annotations

from dataclasses import dataclass

import click
import torch

from pipeline.core.distributed import SINGLE, Ranks
from pipeline.core.errors import counted
from pipeline.core.progress import note
from pipeline.evaluation.context import RunContext
from pipeline.modalities.prepared import PreparedData
from pipeline.samples.description import read_description, require_as_asked
from pipeline.tasks.table import find_task
from stages import paths
from stages.data_params import DataParams
from stages.ranks import local_device, local_ranks
from stages.runtime import bound_threads, default_workers, keep_freed_memory

RENDERED_ON_DEVICE = {"auto": None, "cpu": False, "device": True}


def open_prepared(asked: DataParams) -> PreparedData:
    """Open the prepared data and check that it matches params.yaml.

    Raises:
        DataError: the data was not prepared.
        MismatchError: the data was made with different parameters.
    """
    described = read_description(paths.PREPARED)
    require_as_asked(paths.PREPARED, described, asked.asked(), asked.options)
    data = PreparedData.open(paths.PREPARED)
    damaged = described.remarks.get("damaged", 0)
    if damaged and data.train.decodes_at_use:
        note(
            f"{paths.PREPARED}: {counted(damaged, 'file')} with damage, listed in damaged.txt there; lines "
            "of a decoder about them, e.g. 'Corrupt JPEG data', name no file"
        )
    return data


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The resources of a command.

    Args:
        device: of models and batches.
        workers: threads that decode and render.
        on_device: whether to render on the device; None chooses automatically.
    """

    device: torch.device
    workers: int
    on_device: bool | None

    def context(self, asked: DataParams | None, ranks: Ranks = SINGLE) -> RunContext:
        """Open the prepared data on this machine and return a run context.

        Args:
            asked: the expected parameters of the data; None skips the comparison.
            ranks: this process among those that train a network together.

        Raises:
            DataError: the data was not prepared.
            MismatchError: the data was made with different parameters.
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


def find_machine(device: str, workers: int | None, render: str) -> Machine:
    """Return the resources that options ask for, and prepare this process for them.

    Args:
        device: cpu, cuda, cuda:N, or auto.
        workers: threads that decode and render; None for one per available CPU.
        render: auto, cpu or device.

    Raises:
        click.BadParameter: there is no such device.
    """
    available = local_device() if torch.cuda.is_available() else "cpu"
    name = available if device == "auto" else device
    try:
        chosen = torch.device(name)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise click.BadParameter(f"{device}: {reason}", param_hint="--device") from None
    if chosen.type == "cpu":
        keep_freed_memory()
        bound_threads()
    return Machine(
        device=chosen,
        workers=workers or default_workers(sharing=local_ranks()),
        on_device=RENDERED_ON_DEVICE[render],
    )
