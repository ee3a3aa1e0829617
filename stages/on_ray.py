"""Ray: its workers take units of a dump, or whole commands, one after the other; Ray restarts killed ones.

Owns all that is Ray's own. Each machine has this program with the same versions, and the project folder at
the same path, e.g. on a shared file system. A worker of a dump opens data and teacher once.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.core.errors import (
    ConfigError,
    EngineError,
    MismatchError,
    PipelineError,
    brief,
    counted,
)
from pipeline.core.package import extra_command
from pipeline.core.progress import duration, note
from pipeline.dump.crew import Begun, DumpWorker, Unit
from pipeline.dump.plan import plan_dump
from pipeline.modalities.table import MODALITIES
from pipeline.places.folder import Root
from pipeline.tasks.table import TASKS
from stages.engine import Engine, threads_per_worker
from stages.environment import fill_in
from stages.failures import explain
from stages.machine import find_machine
from stages.options import MOST_WORKERS
from stages.params import Params
from stages.ranks import without_launcher
from stages.runtime import STARTED_BY, command_line, usable_processors
from stages.teachers import dumping

# Attempts at a unit or a command whose worker dies: more than a few kills, and no endless loop if memory is
# too small.
_TRIES = 10
# Ray starts a worker in seconds; a cluster that grows may take minutes.
_PATIENCE_SECONDS = 30.0
_STARTS = 3
_LOOK_SECONDS = 1.0
_STORE_BYTES = 100 << 20  # for Ray's objects, of which there are none but small ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A Ray that runs, and the workers that it is to have.

    Args:
        ray: the module.
        workers: their number.
        cpus, gpus: of each worker.
        is_here: whether Ray runs on this machine alone.
    """

    ray: Any
    workers: int
    cpus: int
    gpus: int
    is_here: bool

    @property
    def needs(self) -> dict[str, int]:
        """What a worker needs, as Ray's options."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus}


@contextmanager
def started(engine: Engine) -> Iterator[Cluster]:
    """Start Ray on this machine, or connect to a cluster, for a `with` block.

    Raises:
        ConfigError: Ray is not installed, or this machine has fewer GPUs than workers.
        EngineError: no Ray answers at the address, or it has another version.
    """
    ray, address = _load(), engine.address or os.environ.get("RAY_ADDRESS") or None
    try:
        with _holding_back_sigterm():
            _connect(ray, engine, address)
    except Exception as error:  # of any class: Ray has none of its own for this
        where, expected = "this machine", "a machine that is not too busy; run the command again"
        if address is not None:
            where = address
            expected = "a running cluster of the same versions of Ray and Python; check the address"
        raise EngineError(
            f"ray does not start or answer on {where}: {brief(error)}; expected {expected}"
        ) from error
    try:
        yield _cluster(ray, engine, is_here=address is None)
    except ConnectionError as error:
        raise EngineError(
            f"ray: the cluster is gone ({brief(error)}); finished work is kept; start it, and run the "
            "command again"
        ) from error
    finally:
        ray.shutdown()


def _load() -> Any:
    # Read when Ray is imported. 0: the GPUs of a worker without one are not hidden from it, which Ray would
    # announce with a warning; it is told to use the CPU.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError as error:
        missing = error.name
    else:
        # Without the library, a folder of this name imports as an empty package.
        if hasattr(ray, "init"):
            return ray
        missing = "ray"
    raise ConfigError(f"--on ray needs {missing}, which is not installed; run: {extra_command('ray')}")


def _connect(ray: Any, engine: Engine, address: str | None) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is not None:
        ray.init(address=address, **quiet)
        return
    processors = max(usable_processors(), (engine.workers or 0) * threads_per_worker())
    sizes = {"num_cpus": processors, "object_store_memory": _STORE_BYTES}
    for last in (*(False,) * (_STARTS - 1), True):
        try:
            ray.init(address="local", include_dashboard=False, **sizes, **quiet)
        except Exception:
            # Ray gives up after 30 s, which a busy machine may need for its processes.
            if last:
                raise
            ray.shutdown()
        else:
            return


@contextmanager
def _holding_back_sigterm() -> Iterator[None]:
    """Handle SIGTERM after a `with` block, a call of Ray: it would turn our exit status into its own."""
    held: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if held and callable(before):
            before(held[0], None)


def _cluster(ray: Any, engine: Engine, *, is_here: bool) -> Cluster:
    has = ray.cluster_resources()
    found = 0 if engine.device == "cpu" else int(has.get("GPU", 0))
    if engine.device == "cuda" and not found:
        raise ConfigError("--device cuda: Ray has no GPU; expected one for each worker; use --device cpu")
    if not found:
        cpus = threads_per_worker()
        workers = engine.workers or max(1, int(has.get("CPU", 1)) // cpus)
        return Cluster(ray=ray, workers=workers, cpus=cpus, gpus=0, is_here=is_here)
    if is_here and (engine.workers or 0) > found:
        raise ConfigError(
            f"--workers {engine.workers}: this machine has {counted(found, 'GPU')}; expected one for each "
            "worker; use fewer workers, or --device cpu"
        )
    nodes = (node["Resources"] for node in ray.nodes() if node["Alive"])
    # A worker's share of the CPUs of its machine, the smallest of all machines.
    cpus = min(int(node.get("CPU", 1) // node["GPU"]) for node in nodes if node.get("GPU", 0) >= 1)
    return Cluster(ray=ray, workers=engine.workers or found, cpus=max(1, cpus), gpus=1, is_here=is_here)


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpJob:
    """What a worker of a dump needs to know.

    Args:
        folder: the project folder.
        params: all of params.yaml, pickled: its classes may be of user code in that folder.
        modality: names such code.
        dump: name of the dump.
        place: the store's folder or place.
        engine: the device and the rendering that the command asks for.
        threads: of the worker.
        is_here: whether the command runs on the same machine.
    """

    folder: str
    params: bytes
    modality: str
    dump: str
    place: Root
    engine: Engine
    threads: int
    is_here: bool


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
        self._cluster = cluster
        job = DumpJob(
            folder=str(Path.cwd()),
            params=pickle.dumps(params),
            modality=params.data.modality,
            dump=dump,
            place=place,
            engine=engine if cluster.gpus else replace(engine, device="cpu"),
            threads=cluster.cpus,
            is_here=cluster.is_here,
        )
        actor = cluster.ray.remote(_DumpActor).options(
            max_restarts=-1, max_task_retries=_TRIES, **cluster.needs
        )
        self._starting = {(one := actor.remote(job)).ready.remote(): one for _ in range(cluster.workers)}

    @property
    def size(self) -> int:
        """Number of workers."""
        return self._cluster.workers

    def begin(self) -> Begun:
        """Let the worker that starts first begin the dump; print the notes that it made."""
        ray = self._cluster.ray
        while not (there := _done(ray, self._starting)):
            self._tell_waiting()
        call = self._starting[there[0]].begin.remote(self.size)
        note("ray: a worker opens the dump and makes its held-out samples")
        while not _done(ray, [call]):
            continue
        begun, notes = _result(ray, call)
        for line in notes:
            note(line)
        return begun  # type: ignore[no-any-return]

    def make(self, begun: Begun, units: Sequence[Unit]) -> Iterator[Unit]:
        """Give each worker that has started a unit at a time; yield each one when it is written."""
        ray, waiting, running = self._cluster.ray, deque(units), dict[Any, tuple[Any, Unit]]()
        silent = 0
        while waiting or running:
            done = _done(ray, [*self._starting, *running])
            silent = 0 if done else silent + 1
            if not done and not running:
                self._tell_waiting()
            elif silent and not silent & (silent - 1):  # a power of two: after 30 s, 1, 2, 4, … minutes
                since = duration(silent * _PATIENCE_SECONDS)
                note(f"ray: {counted(len(running), 'unit')} under way, none finished for {since}")
            for call in done:
                _result(ray, call)
                if call in running:
                    worker, unit = running.pop(call)
                    yield unit
                else:
                    worker = self._starting.pop(call)
                if waiting:
                    unit = waiting.popleft()
                    running[worker.make.remote(begun, unit)] = worker, unit
                else:
                    # Its processors may be what a worker of a lost machine waits for.
                    ray.kill(worker)

    def _tell_waiting(self) -> None:
        needs, has = self._cluster.needs, self._cluster.ray.available_resources()
        wanted, free = (
            f"{counted(int(found.get(cpu, 0)), 'CPU')} and {counted(int(found.get(gpu, 0)), 'GPU')}"
            for found, cpu, gpu in ((needs, "num_cpus", "num_gpus"), (has, "CPU", "GPU"))
        )
        note(f"ray: no worker has started yet; each needs {wanted}, and free are {free}; waiting")


class _DumpActor:
    """A process of Ray that makes shards of a dump, see `DumpWorker`."""

    def __init__(self, job: DumpJob) -> None:
        self._job = job
        self._opened: DumpWorker | None = None

    def ready(self) -> None:
        """Return as soon as the process has started."""

    def begin(self, sharing: int) -> tuple[Begun, list[str]]:
        """Begin the dump that so many workers share; return the notes that it printed, too."""
        with _told(self._job), redirect_stderr(io.StringIO()) as printed:
            return self._worker.begin(sharing), printed.getvalue().splitlines()

    def make(self, begun: Begun, unit: Unit) -> None:
        """Make the shards of a unit."""
        with _told(self._job):
            self._worker.make(begun, unit)

    @property
    def _worker(self) -> DumpWorker:
        # Here, not in __init__: Ray would report an error there as a dead worker.
        if self._opened is None:
            self._opened = _open(self._job)
        return self._opened


def _open(job: DumpJob) -> DumpWorker:
    """Open data and teacher in a worker."""
    from torch import set_num_threads

    fill_in()
    _enter(job.folder)
    MODALITIES.use(job.modality)
    params: Params = pickle.loads(job.params)  # noqa: S301
    TASKS.use(params.data.task)
    machine = find_machine(job.engine.device, job.threads, job.engine.render)
    # Not by OMP_NUM_THREADS, which each machine may set differently.
    set_num_threads(job.threads)
    context, teacher, spec = dumping(params, job.dump, machine)
    return DumpWorker(job.place, partial(plan_dump, context, teacher, spec, job.place))


def _enter(folder: str) -> None:
    if not Path(folder).is_dir():
        raise ConfigError(
            f"{folder}: no such folder; expected the project at the same path on every machine, e.g. on a "
            "shared file system"
        )
    os.chdir(folder)
    if folder not in sys.path:
        sys.path.insert(0, folder)


@contextmanager
def _told(job: DumpJob) -> Iterator[None]:
    """Turn any error into one of a single line, which can be sent to the command."""
    try:
        yield
    except Exception as error:
        where = "" if job.is_here else f" (worker on {socket.gethostname()})"
        # Its class matters to the command: under `dvc exp run` it has another remedy.
        kind = MismatchError if isinstance(error, MismatchError) else EngineError
        raise kind(f"{explain(error)}{where}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A command that has ended: its exit status and its output."""

    status: int
    stdout: str
    stderr: str


def run_commands(cluster: Cluster, commands: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, Ended]]:
    """Run commands of this program in the working folder, each in a process of its own.

    Args:
        cluster: runs as many at a time as it is to have workers.
        commands: name -> arguments after `pipeline`.

    Yields:
        Name and result of each command, in the order in which they end.
    """
    ray, waiting, running = cluster.ray, deque(commands.items()), dict[Any, str]()
    task = ray.remote(_run_command).options(max_retries=_TRIES, **cluster.needs)
    while waiting or running:
        while waiting and len(running) < cluster.workers:
            name, arguments = waiting.popleft()
            words = [*arguments, *(() if cluster.gpus else ("--device", "cpu"))]
            running[task.remote(str(Path.cwd()), words, cluster.cpus)] = name
        for call in _done(ray, running):
            yield running.pop(call), _ended(ray, call)


def _ended(ray: Any, call: Any) -> Ended:
    """Return the result of a command; one that Ray gave up has failed, and stops no other."""
    try:
        return _result(ray, call)  # type: ignore[no-any-return]
    except PipelineError as error:
        return Ended(status=1, stdout="", stderr=str(error))


def _run_command(folder: str, arguments: Sequence[str], threads: int) -> Ended:
    _enter(folder)
    # `ray start` may itself have been started by srun.
    environment = {**without_launcher(os.environ), "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(  # noqa: S603
        command_line([*arguments, "--workers", str(min(threads, MOST_WORKERS))]),
        env={**environment, STARTED_BY: str(os.getpid())},
        capture_output=True,
        text=True,
        check=False,
    )
    return Ended(status=done.returncode, stdout=done.stdout, stderr=done.stderr)


def _done(ray: Any, calls: Iterable[Any]) -> list[Any]:
    """Return a call that has ended; none if none ends in `_PATIENCE_SECONDS`. SIGTERM is seen meanwhile."""
    asked, start = list(calls), time.monotonic()
    done: list[Any] = []
    while not done and time.monotonic() - start < _PATIENCE_SECONDS:
        with _holding_back_sigterm():
            done, _ = ray.wait(asked, num_returns=1, timeout=_LOOK_SECONDS)
    return done


def _result(ray: Any, call: Any) -> Any:
    """Return the result of a call that has ended, or raise its error in one line."""
    try:
        return ray.get(call)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise (cause if isinstance(cause, PipelineError) else EngineError(explain(cause))) from error
    except ray.exceptions.RayError as error:
        raise EngineError(
            f"ray: a worker could not start, or died {_TRIES + 1} times at the same work, or its cluster "
            f"is gone ({brief(error)}); expected workers with enough memory; use fewer --workers or a "
            "lower batch_size, and run the command again"
        ) from error
