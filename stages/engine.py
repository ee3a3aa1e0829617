"""The engine that `--on` names, as plain values; see `ray_cluster.py`. Imports neither torch nor Ray."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.core.team import ALONE, Team

if TYPE_CHECKING:
    from stages.params import Params


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Ray, and the workers that it is to start.

    Args:
        address: of a cluster, ray://HOST:PORT; None starts Ray on this machine.
        workers: their number; None for one per GPU, or per CPU if there is none.
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


@contextmanager
def team_of(
    engine: Engine | None, params: Params | None = None, trusted: Collection[str] = ()
) -> Iterator[Team]:
    """Start an engine's workers, on CPUs, for a `with` block; without an engine, this process is the team.

    Args:
        engine: that the command asks for.
        params: all of params.yaml, whose user code workers may run.
        trusted: further code that they may run.
    """
    if engine is None:
        yield ALONE
        return
    from stages.on_ray import Bench, RayTeam
    from stages.ray_cluster import started

    with started(replace(engine, device="cpu")) as cluster:
        yield RayTeam(cluster, Bench.of(cluster, params, trusted))
