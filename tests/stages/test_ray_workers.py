"""Workers of Ray, on a cluster of plain objects: what is given to whom, in which order results come."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.core.errors import DataError, EngineError
from stages import on_ray
from stages.on_ray import Bench, RayTeam


class Actor:
    """An object whose methods are called when their results are asked for."""

    def __init__(self, held: Any) -> None:
        self._held = held

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *given: Call(self, lambda: getattr(self._held, name)(*given)))


@dataclass(eq=False)
class Call:
    actor: Actor
    work: Callable[[], Any]


class TaskError(Exception):
    """Ray's error of a task; its cause is that of the worker."""


@dataclass
class Cluster:
    """A cluster of objects.

    Args:
        ends: chooses the call that ends next, or none.
    """

    workers: int
    ends: Callable[[Sequence[Call]], Call | None] = lambda calls: calls[0]
    cpus: int = 1
    gpus: int = 0
    is_here: bool = True
    actors: list[Actor] = field(default_factory=list)
    killed: list[Actor] = field(default_factory=list)

    @property
    def ray(self) -> Any:
        def remote(kind: type) -> Any:
            return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self._start(kind)))

        errors = SimpleNamespace(RayTaskError=TaskError, RayError=TaskError)
        return SimpleNamespace(
            remote=remote,
            get=self._get,
            kill=self.killed.append,
            exceptions=errors,
            available_resources=dict,
        )

    @property
    def needs(self) -> dict[str, int]:
        return {"num_cpus": 1, "num_gpus": 0}

    def wait(self, calls: Sequence[Call], seconds: float) -> list[Call]:
        chosen = self.ends(calls)
        return [] if chosen is None else [chosen]

    def _start(self, kind: type) -> Callable[..., Actor]:
        def start(*given: Any) -> Actor:
            self.actors.append(Actor(kind(*given)))
            return self.actors[-1]

        return start

    @staticmethod
    def _get(call: Call) -> Any:
        try:
            return call.work()
        except EngineError as error:
            failure = TaskError(str(error))
            failure.cause = error
            raise failure from error


def square(number: int) -> int:
    if number < 0:
        raise DataError("a number below 0; expected one from 0")
    return number**2


@pytest.fixture
def team() -> Callable[..., RayTeam]:
    def make(cluster: Cluster) -> RayTeam:
        bench = Bench(folder=str(Path.cwd()), threads=1, is_here=True)
        return RayTeam(cluster, bench)

    return make


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_results_keep_the_order_of_the_items_in_whatever_order_they_end(team, workers, seed):
    draw = random.Random(seed)
    cluster = Cluster(workers, ends=lambda calls: draw.choice([None, *calls]))
    assert list(team(cluster).map(square, range(40))) == [n**2 for n in range(40)]
    assert len(cluster.killed) == workers


def test_no_worker_runs_far_ahead_of_a_slow_one(team):
    """The first item ends last of those that may begin."""
    begun: list[int] = []

    def last(calls: Sequence[Call]) -> Call:
        begun.append(len(calls))
        return calls[-1]

    results = team(Cluster(2, ends=last)).map(square, range(100))
    assert next(results) == 0
    assert len(begun) <= 2 + on_ray._AHEAD * 2 + 1
    assert list(results) == [n**2 for n in range(1, 100)]


def test_an_idle_worker_makes_room_for_one_of_a_lost_machine(team):
    """The worker of the first item has no processor until another one is killed."""
    cluster = Cluster(2)
    first: list[Call] = []

    def ends(calls: Sequence[Call]) -> Call | None:
        working = [call for call in calls if call.actor is not cluster.actors[0] or cluster.killed]
        first[:] = calls[:1]
        return working[-1] if working else None

    def ready_first(calls: Sequence[Call]) -> Call | None:
        # Both workers start; then those of the first actor wait.
        return calls[0] if len(started) < 2 and not started.append(1) else ends(calls)

    started: list[int] = []
    cluster.ends = ready_first
    assert list(team(cluster).map(square, range(30))) == [n**2 for n in range(30)]
    assert cluster.killed


def test_no_more_workers_start_than_there_are_items(team):
    cluster = Cluster(8)
    assert list(team(cluster).map(square, [2, 3])) == [4, 9]
    assert len(cluster.actors) == 2
    assert list(team(cluster).map(square, [])) == []
    assert len(cluster.actors) == 2


def test_an_error_of_a_worker_ends_the_work_in_its_line(team):
    with pytest.raises(EngineError, match=r"^a number below 0; expected one from 0$"):
        list(team(Cluster(2)).map(square, [1, 2, -1, 3]))
