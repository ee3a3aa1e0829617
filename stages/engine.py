"""The engine that `--on` names, as plain values; see `ray_cluster.py`. Imports neither torch nor Ray."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Ray, and the workers that it is to start.

    Args:
        address: of a cluster, ray://HOST:PORT; None starts Ray on this machine.
        workers: their number; None for one per GPU, or per CPU if there is none. Of a training, None stands
            for the `workers` of the model.
        device: auto and cuda give each worker a GPU of its own, if there are any; cpu gives none.
        render: where workers render, as `--render` says.
    """

    address: str | None
    workers: int | None
    device: str
    render: str


def threads_per_worker() -> int:
    """Return the threads of a worker without a GPU: OMP_NUM_THREADS, or 1, as under torchrun.

    The last bits of a network's outputs depend on this number, so that workers of one dump have the same.
    """
    given = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(given)) if given.isascii() and given.isdecimal() and len(given) < 5 else 1
