"""The team of a command that reads: this process, or the workers of the engine that `--on` names."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.core.team import ALONE, Team
from stages.engine import Engine

if TYPE_CHECKING:
    from stages.params import Params


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
