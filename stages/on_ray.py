"""Workers on Ray: they take units of work one after the other; killed ones restart.

    with started(engine) as cluster:         ray_cluster.py
        RayCrew(cluster, …)                  the workers of a dump: each opens data and teacher once
        RayTeam(cluster, bench)              calls a function for many items, e.g. parts of a store
        run_commands(cluster, jobs)          ray_commands.py: whole commands

Each machine has this program with the same versions, and the project folder at the same path, e.g. on a
shared file system.
"""

from __future__ import annotations

import io
import pickle
import socket
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pipeline.codecs.own_code import is_own_codec, trust_codec
from pipeline.core.errors import (
    EngineError,
    MismatchError,
    counted,
)
from pipeline.core.progress import duration, note
from pipeline.dump.crew import Begun, DumpWorker, Unit
from pipeline.dump.plan import plan_dump
from pipeline.modalities.table import MODALITIES
from pipeline.places.folder import Root
from pipeline.tasks.table import TASKS
from stages.engine import Engine
from stages.environment import fill_in
from stages.failures import explain
from stages.machine import find_machine
from stages.options import trust_code
from stages.params import Params
from stages.ray_cluster import PATIENCE_SECONDS, TRIES, Cluster, enter, next_of, result_of
from stages.teachers import dumping

T = TypeVar("T")
R = TypeVar("R")
# Results that are not taken yet, for each worker.
_AHEAD = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where a worker works, as plain values.

    Args:
        folder: the project folder.
        threads: of the worker.
        is_here: whether the command runs on the same machine.
        modality, task: names of user code in that folder, or of the tables; None if none is used.
        trusted: further code that may run, of `--trust-code`.
        codecs: user code of params.yaml's dumps.
    """

    folder: str
    threads: int
    is_here: bool
    modality: str | None = None
    task: str | None = None
    trusted: tuple[str, ...] = ()
    codecs: tuple[str, ...] = ()

    @classmethod
    def of(cls, cluster: Cluster, params: Params | None = None, trusted: Collection[str] = ()) -> Bench:
        """Return the bench of a cluster's workers for the project in the working folder."""
        codecs = [] if params is None else [dump.codec for dump in params.dumps.values()]
        return cls(
            folder=str(Path.cwd()),
            threads=cluster.cpus,
            is_here=cluster.is_here,
            modality=None if params is None else params.data.modality,
            task=None if params is None else params.data.task,
            trusted=tuple(sorted(trusted)),
            codecs=tuple(filter(is_own_codec, codecs)),
        )

    def enter(self) -> None:
        """Make a new process one of the project's."""
        from torch import set_num_threads

        fill_in()
        enter(self.folder)
        if self.modality is not None and self.task is not None:
            MODALITIES.use(self.modality)
            TASKS.use(self.task)
        trust_code(self.trusted)
        for codec in self.codecs:
            trust_codec(codec)
        # Not by OMP_NUM_THREADS, which each machine may set differently.
        set_num_threads(self.threads)

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Turn any error into one of a single line, which can be sent to the command."""
        try:
            yield
        except Exception as error:
            where = "" if self.is_here else f" (worker on {socket.gethostname()})"
            # Its class matters to the command: under `dvc exp run` it has another remedy.
            kind = MismatchError if isinstance(error, MismatchError) else EngineError
            raise kind(f"{explain(error)}{where}") from error


class _Worker:
    """A process of Ray that holds an object and calls its methods.

    Args:
        bench: where it works.
        opens: a function that opens the object, pickled: it may name user code of the project folder.
    """

    def __init__(self, bench: Bench, opens: bytes) -> None:
        self._bench, self._opens = bench, opens
        self._opened: Any = None

    def ready(self) -> None:
        """Return as soon as the process has started."""

    def do(self, method: str, arguments: Sequence[Any]) -> Any:
        """Call a method of the object."""
        with self._bench.telling():
            # Here, not in __init__: Ray would report an error there as a dead worker.
            if self._opened is None:
                self._bench.enter()
                self._opened = pickle.loads(self._opens)()  # noqa: S301 (sent by the command)
            return getattr(self._opened, method)(*arguments)

    def do_and_tell(self, method: str, arguments: Sequence[Any]) -> tuple[Any, list[str]]:
        """Do the same; return the lines that it printed to stderr, too, which is else Ray's log."""
        with redirect_stderr(io.StringIO()) as printed:
            return self.do(method, arguments), printed.getvalue().splitlines()


class _Workers:
    """The workers of one command.

    Args:
        cluster: runs them.
        bench: where they work.
        opens: opens what each of them holds; called there, once.
    """

    def __init__(self, cluster: Cluster, bench: Bench, opens: Callable[[], Any]) -> None:
        self._cluster = cluster
        actor = cluster.ray.remote(_Worker).options(
            max_restarts=-1, max_task_retries=TRIES, **cluster.needs
        )
        started = (actor.remote(bench, pickle.dumps(opens)) for _ in range(cluster.workers))
        self._starting = {one.ready.remote(): one for one in started}

    def do(self, method: str, *arguments: Any) -> Any:
        """Let the worker that starts first call a method; print the lines that it printed."""
        while not (there := next_of(self._cluster, self._starting)):
            self._tell_waiting()
        call = self._starting[there[0]].do_and_tell.remote(method, arguments)
        while not next_of(self._cluster, [call]):
            continue
        result, lines = result_of(self._cluster, call)
        for line in lines:
            note(line)
        return result

    def each(
        self, method: str, items: Iterable[Sequence[Any]], may_begin: Callable[[int], bool] = lambda _: True
    ) -> Iterator[tuple[int, Any]]:
        """Give each worker that has started an item at a time, as the arguments of a method.

        Args:
            method: of the object that workers hold.
            items: arguments of each call.
            may_begin: whether the item of this number may begin; asked when a worker is free.

        Yields:
            Number and result of each item, in the order in which they end.
        """
        waiting, running = deque(enumerate(items)), dict[Any, tuple[Any, int]]()
        free, silent = list[Any](), 0
        while waiting or running:
            while waiting and free and may_begin(waiting[0][0]):
                worker, (number, arguments) = free.pop(), waiting.popleft()
                running[worker.do.remote(method, arguments)] = worker, number
            done = next_of(self._cluster, [*self._starting, *running])
            silent = 0 if done else silent + 1
            self._tell_silence(silent, len(running))
            for call in done:
                if call in self._starting:
                    result_of(self._cluster, call)
                    free.append(self._starting.pop(call))
                    continue
                worker, number = running.pop(call)
                free.append(worker)
                yield number, result_of(self._cluster, call)
            # Processors of idle workers may be what a worker of a lost machine waits for.
            if not waiting:
                while free:
                    self._cluster.ray.kill(free.pop())
            elif silent == 1 and running and free:  # one a silence: results may just be slow
                self._cluster.ray.kill(free.pop())

    def _tell_silence(self, silent: int, running: int) -> None:
        """Tell, after so many times `PATIENCE_SECONDS` without a result, what the workers do."""
        if silent and not running:
            self._tell_waiting()
        elif silent and not silent & (silent - 1):  # a power of two: after 30 s, 1, 2, 4, … minutes
            since = duration(silent * PATIENCE_SECONDS)
            note(f"ray: {counted(running, 'unit')} under way, none finished for {since}")

    def _tell_waiting(self) -> None:
        needs, has = self._cluster.needs, self._cluster.ray.available_resources()
        wanted, free = (
            f"{counted(int(found.get(cpu, 0)), 'CPU')} and {counted(int(found.get(gpu, 0)), 'GPU')}"
            for found, cpu, gpu in ((needs, "num_cpus", "num_gpus"), (has, "CPU", "GPU"))
        )
        note(f"ray: no worker has started yet; each needs {wanted}, and free are {free}; waiting")


class RayCrew:
    """The workers of one dump; see `pipeline.dump.crew.Crew`.

    Args:
        cluster: runs them.
        params: all of params.yaml.
        dump: name of the dump.
        place: the store's folder or place.
        engine: the device and the rendering that the command asks for.
    """

    def __init__(self, cluster: Cluster, params: Params, dump: str, place: Root, engine: Engine) -> None:
        self.size = cluster.workers
        device = engine.device if cluster.gpus else "cpu"
        opens = partial(
            _open_dump, params, dump, place, device=device, render=engine.render, threads=cluster.cpus
        )
        self._workers = _Workers(cluster, Bench.of(cluster, params), opens)

    def begin(self) -> Begun:
        """Let the worker that starts first begin the dump; print the notes that it made."""
        note("ray: a worker opens the dump and makes its held-out samples")
        begun: Begun = self._workers.do("begin", self.size)
        return begun

    def make(self, begun: Begun, units: Sequence[Unit]) -> Iterator[Unit]:
        """Give each worker that has started a unit at a time; yield each one when it is written."""
        for number, _ in self._workers.each("make", [(begun, unit) for unit in units]):
            yield units[number]


def _open_dump(
    params: Params, dump: str, place: Root, *, device: str, render: str, threads: int
) -> DumpWorker:
    """Open data and teacher in a worker."""
    from torch import set_num_threads

    machine = find_machine(device, threads, render)
    # It may have lowered this number, which decides the last bits of outputs.
    set_num_threads(threads)
    context, teacher, spec = dumping(params, dump, machine)
    return DumpWorker(place, partial(plan_dump, context, teacher, spec, place))


class RayTeam:
    """Workers that call a function for many items; see `pipeline.core.team.Team`.

    Args:
        cluster: runs them.
        bench: where they work.
    """

    def __init__(self, cluster: Cluster, bench: Bench) -> None:
        self._cluster, self._bench, self.size = cluster, bench, cluster.workers

    def map(self, work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """Call a function with each item; yield the results in the order of the items."""
        if not items:
            return
        cluster = replace(self._cluster, workers=min(self.size, len(items)))
        workers = _Workers(cluster, self._bench, partial(_Callable, work))
        held, taken = dict[int, R](), 0
        most = _AHEAD * self.size
        ended = workers.each("call", [(item,) for item in items], lambda number: number < taken + most)
        for number, result in ended:
            held[number] = result
            while taken in held:
                yield held.pop(taken)
                taken += 1


class _Callable:
    """A function as an object with a method."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self.call = work
