"""Start Ray on this machine, or connect to a cluster of it, and find how many workers it can have."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import ConfigError, EngineError, PipelineError, brief, counted
from pipeline.core.package import extra_command
from stages.engine import Engine, threads_per_worker
from stages.failures import explain
from stages.runtime import usable_processors

# Further attempts at work whose worker dies: more than a few kills, and no endless loop if memory is too
# small.
TRIES = 10
# Ray starts a worker in seconds; a cluster that grows may take minutes.
PATIENCE_SECONDS = 30.0
_STARTS = 3
_LOOK_SECONDS = 1.0
_STORE_BYTES = 256 << 20  # for Ray's objects, which are small or few


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

    def wait(self, calls: Sequence[Any], seconds: float) -> list[Any]:
        """Return a call that has ended; none if none ends in this time. SIGTERM is seen meanwhile."""
        start = time.monotonic()
        done: list[Any] = []
        while not done and time.monotonic() - start < seconds:
            with holding_back_sigterm():
                done, _ = self.ray.wait(calls, num_returns=1, timeout=_LOOK_SECONDS)
        return done


@contextmanager
def started(engine: Engine, together: int = 1) -> Iterator[Cluster]:
    """Start Ray on this machine, or connect to a cluster, for a `with` block.

    Args:
        engine: the cluster and its workers.
        together: workers that must run at the same time, e.g. the ranks of one training.

    Raises:
        ConfigError: Ray is not installed, or this machine has fewer GPUs than workers.
        EngineError: no Ray answers at the address, or it has another version.
    """
    ray, address = _load(), engine.address or os.environ.get("RAY_ADDRESS") or None
    try:
        with holding_back_sigterm():
            _connect(ray, engine, address, together)
    except Exception as error:  # of any class: Ray has none of its own for this
        where, expected = "this machine", "a machine that is not too busy; run the command again"
        if address is not None:
            where = address
            expected = "a running cluster of the same versions of Ray and Python; check the address"
        raise EngineError(
            f"ray does not start or answer on {where}: {brief(error)}; expected {expected}"
        ) from error
    try:
        yield _cluster(ray, engine, together, is_here=address is None)
    except BrokenPipeError:
        raise  # of this process's own output
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


def _connect(ray: Any, engine: Engine, address: str | None, together: int) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is not None:
        ray.init(address=address, **quiet)
        return
    processors = max(usable_processors(), max(engine.workers or 0, together) * threads_per_worker())
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
def holding_back_sigterm() -> Iterator[None]:
    """Handle SIGTERM after a `with` block, a call of Ray: it would turn our exit status into its own."""
    held: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if held and callable(before):
            before(held[0], None)


def _cluster(ray: Any, engine: Engine, together: int, *, is_here: bool) -> Cluster:
    has = ray.cluster_resources()
    found = 0 if engine.device == "cpu" else int(has.get("GPU", 0))
    if engine.device == "cuda" and not found:
        raise ConfigError("--device cuda: Ray has no GPU; expected one for each worker; use --device cpu")
    if not found:
        cpus = threads_per_worker()
        workers = engine.workers or max(1, int(has.get("CPU", 1)) // cpus)
        return Cluster(ray=ray, workers=workers, cpus=cpus, gpus=0, is_here=is_here)
    least = max(engine.workers or 0, together)
    if is_here and least > found:
        raise ConfigError(
            f"{counted(least, 'worker')} of --workers or params.yaml: this machine has "
            f"{counted(found, 'GPU')}; expected one for each worker; use fewer workers, or --device cpu"
        )
    nodes = (node["Resources"] for node in ray.nodes() if node["Alive"])
    # A worker's share of the CPUs of its machine, the smallest of all machines.
    cpus = min(int(node.get("CPU", 1) // node["GPU"]) for node in nodes if node.get("GPU", 0) >= 1)
    return Cluster(ray=ray, workers=engine.workers or found, cpus=max(1, cpus), gpus=1, is_here=is_here)


def enter(folder: str) -> None:
    """Make a process one of the project in this folder, which has its user code.

    Raises:
        ConfigError: the folder is not there.
    """
    if not Path(folder).is_dir():
        raise ConfigError(
            f"{folder}: no such folder; expected the project at the same path on every machine, e.g. on a "
            "shared file system"
        )
    os.chdir(folder)
    if folder not in sys.path:
        sys.path.insert(0, folder)


def next_of(cluster: Cluster, calls: Iterable[Any]) -> list[Any]:
    """Return a call that has ended; none if none ends in `PATIENCE_SECONDS`."""
    return cluster.wait(list(calls), PATIENCE_SECONDS)


def result_of(cluster: Cluster, call: Any) -> Any:
    """Return the result of a call that has ended, or raise its error in one line."""
    ray = cluster.ray
    try:
        return ray.get(call)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise (cause if isinstance(cause, PipelineError) else EngineError(explain(cause))) from error
    except ray.exceptions.RayError as error:
        raise EngineError(
            f"ray: a worker could not start, or died {TRIES + 1} times at the same work, or its cluster "
            f"is gone ({brief(error)}); expected workers with enough memory; use fewer --workers or a "
            "lower batch_size, and run the command again"
        ) from error
