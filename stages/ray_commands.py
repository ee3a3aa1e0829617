"""Commands of this program on Ray: each is a process, or shared by the workers of a Ray Train group.

    Job(words)                  a task of Ray, which runs the command as a process of its own
    Job(words, processes=8)     eight workers of Ray Train, the ranks of one command, on any machines
    run_commands(cluster, jobs) all of them, as many at a time as there are workers
    run_command(cluster, job)   one, shared; its progress is printed meanwhile
    train_together(engine, 8)   the command of this process itself, in that way

State lies in the project folder. So a command that is started again resumes, with any number of processes.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from pipeline.core.errors import ConfigError, EngineError, PipelineError, brief, counted
from pipeline.core.hashing import spec_digest
from pipeline.core.package import extra_command
from pipeline.core.progress import note
from stages import paths
from stages.engine import Engine
from stages.environment import fill_in
from stages.failures import explain
from stages.launchers import without_launcher
from stages.on_ray import TRIES, enter, next_of, result_of
from stages.options import MOST_WORKERS, given_words
from stages.ranks import require_alone
from stages.ray_cluster import Cluster, started
from stages.runtime import STARTED_BY, command_line

_LOOK_SECONDS = 1.0
# Ray notices a dead worker within a few seconds, and ends the others. They fail, too, since a rank is gone,
# but report it only after this time, so that a death is not taken for an error.
_NOTICE_SECONDS = 10.0
# So many seconds without a first line: the cluster may have no room for the workers.
_ROOM_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Job:
    """A command of this program.

    Args:
        words: arguments after `pipeline`.
        processes: that share it, as its ranks.
    """

    words: Sequence[str]
    processes: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A command that has ended: its exit status and its output."""

    status: int
    stdout: str
    stderr: str


def run_commands(cluster: Cluster, jobs: Mapping[str, Job]) -> Iterator[tuple[str, Ended]]:
    """Run commands in the working folder.

    Args:
        cluster: has as many processes at a time as it is to have workers, or those of one command.
        jobs: name -> command.

    Yields:
        Name and result of each command, in the order in which they end.
    """
    waiting, running = deque(jobs.items()), dict[Any, str]()
    while waiting or running:
        while waiting and (not running or _fits(cluster, jobs, running.values(), waiting[0][1])):
            name, job = waiting.popleft()
            running[_start(cluster, job)] = name
        for call in next_of(cluster, running):
            yield running.pop(call), _ended(cluster, call)


def run_command(cluster: Cluster, job: Job) -> Ended:
    """Run one command by the workers of a Ray Train group, and print its progress."""
    told = _told(cluster)
    call, begun, silent = _start_group(cluster, job, told), time.monotonic(), True
    ended: list[Any] = []
    while not ended:
        ended = cluster.wait([call], _LOOK_SECONDS)
        for line in cluster.ray.get(told.take.remote()):
            note(line)
            silent = False
        if silent and time.monotonic() - begun > _ROOM_SECONDS:
            needs = ", ".join(f"{count} {kind}" for kind, count in _resources(cluster).items())
            note(f"ray: waiting for {counted(job.processes, 'worker')}, each with {needs}")
            silent = False
    return _ended(cluster, call)


def train_together(engine: Engine, workers: int) -> None:
    """Run the command of the current context again, by workers that are its ranks, and print its output.

    Args:
        engine: its `workers`, if set, are the number of ranks.
        workers: else this is their number.

    Raises:
        EngineError: the command failed there.
    """
    require_alone()
    words = given_words(click.get_current_context(), without=("on", "workers"))
    job = Job(words, engine.workers or workers)
    with started(engine, job.processes) as cluster:
        ended = run_command(cluster, job)
    click.echo(ended.stdout, nl=False)
    if ended.status:
        raise EngineError(ended.stderr.splitlines()[-1])


def _fits(cluster: Cluster, jobs: Mapping[str, Job], running: Iterable[str], job: Job) -> bool:
    return sum(jobs[name].processes for name in running) + job.processes <= cluster.workers


def _start(cluster: Cluster, job: Job) -> Any:
    if job.processes > 1:
        return _start_group(cluster, job, _told(cluster))
    task = cluster.ray.remote(_run_process).options(max_retries=TRIES, **cluster.needs)
    return task.remote(str(Path.cwd()), _words(cluster, job), cluster.cpus)


def _ended(cluster: Cluster, call: Any) -> Ended:
    """Return the result of a command; one that Ray gave up has failed, and stops no other."""
    try:
        return result_of(cluster, call)  # type: ignore[no-any-return]
    except PipelineError as error:
        return Ended(status=1, stdout="", stderr=str(error))


def _words(cluster: Cluster, job: Job) -> list[str]:
    """Return the arguments of a process with the CPUs and GPU of a worker."""
    device = () if cluster.gpus else ("--device", "cpu")
    return [*job.words, *device, "--workers", str(min(cluster.cpus, MOST_WORKERS))]


def _run_process(folder: str, words: Sequence[str], threads: int) -> Ended:
    enter(folder)
    # `ray start` may itself have been started by srun.
    environment = {**without_launcher(os.environ), "OMP_NUM_THREADS": str(threads)}
    finished = subprocess.run(  # noqa: S603
        command_line(words),
        env={**environment, STARTED_BY: str(os.getpid())},
        capture_output=True,
        text=True,
        check=False,
    )
    return Ended(status=finished.returncode, stdout=finished.stdout, stderr=finished.stderr)


# Groups of Ray Train.


class _Told:
    """An actor that collects the lines of a group's first rank, and the first error of any rank."""

    def __init__(self) -> None:
        self._lines: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self._taken, self._error = 0, ""

    def add(self, stream: str, line: str) -> None:
        """Keep a line of the first rank."""
        self._lines[stream].append(line)

    def fail(self, line: str) -> None:
        """Keep the error of a rank."""
        self._error = self._error or line

    def take(self) -> list[str]:
        """Return the new lines of stderr."""
        new = self._lines["stderr"][self._taken :]
        self._taken += len(new)
        return new

    def failed(self) -> bool:
        """Whether a rank has failed."""
        return bool(self._error)

    def ended(self) -> Ended:
        """Return the output; an error is its last line, and status 1."""
        lines = {**self._lines, "stderr": [*self._lines["stderr"], *filter(None, [self._error])]}
        streams = {name: "".join(f"{line}\n" for line in lines[name]) for name in lines}
        return Ended(status=int(self.failed()), **streams)


class _Sending(io.TextIOBase):
    """A stream whose lines go to an actor."""

    def __init__(self, told: Any, stream: str) -> None:
        self._told, self._stream, self._begun = told, stream, ""

    def write(self, text: str) -> int:
        """Send whole lines, and keep the rest."""
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._told.add.remote(self._stream, line)
        return len(text)


def _told(cluster: Cluster) -> Any:
    return cluster.ray.remote(_Told).options(num_cpus=0).remote()


def _resources(cluster: Cluster) -> dict[str, int]:
    return {"CPU": cluster.cpus, **({"GPU": cluster.gpus} if cluster.gpus else {})}


def _start_group(cluster: Cluster, job: Job, told: Any) -> Any:
    """Start a task that waits for a group; its result is an `Ended`."""
    rank = {"folder": str(Path.cwd()), "words": _words(cluster, job), "threads": cluster.cpus}
    task = cluster.ray.remote(_run_group).options(num_cpus=0, max_retries=0)
    return task.remote(rank, job.processes, _resources(cluster), told)


def _run_group(rank: dict[str, Any], processes: int, resources: dict[str, int], told: Any) -> Ended:
    """Let Ray Train start a group until it ends; it is started again if one of its workers dies."""
    import ray

    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")  # the default since 2.51
    try:
        from ray.train import RunConfig, ScalingConfig, WorkerGroupError
        from ray.train.torch import TorchTrainer
    except ImportError as error:
        raise ConfigError(
            f"students and teachers with workers need Ray Train, which does not import here "
            f"({brief(error)}); run: {extra_command('ray')}"
        ) from error
    enter(rank["folder"])
    # Ray Train keeps its own notes there. Those of a killed command have the same name: it begins anew.
    storage = Path(rank["folder"]) / paths.STATE / f"ray-{spec_digest(rank['words'])[:16]}"
    shutil.rmtree(storage, ignore_errors=True)
    try:
        for number in range(TRIES + 1):
            trainer = TorchTrainer(
                _be_rank,
                train_loop_config={**rank, "told": told},
                scaling_config=ScalingConfig(
                    num_workers=processes, use_gpu="GPU" in resources, resources_per_worker=resources
                ),
                run_config=RunConfig(name=str(number), storage_path=str(storage)),
            )
            try:
                trainer.fit()
            except WorkerGroupError:
                if not ray.get(told.failed.remote()):
                    ray.get(told.add.remote("stderr", "ray: a worker died; all start again, and resume"))
                    continue
            return ray.get(told.ended.remote())  # type: ignore[no-any-return]
    finally:
        shutil.rmtree(storage, ignore_errors=True)
    raise EngineError(
        f"ray: workers died {TRIES + 1} times at the same training; expected enough memory; lower "
        "batch_size, and run the command again"
    )


def _be_rank(given: dict[str, Any]) -> None:
    """Be one rank of a command, in a worker of Ray Train, whose process group is used as it is."""
    import ray
    from torch import set_num_threads

    from stages.cli import call

    enter(given["folder"])
    # Of Ray Train's own variables, those for its ranks are torch's, like torchrun's.
    ours = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE")}
    kept = {**without_launcher(os.environ), **ours, "OMP_NUM_THREADS": str(given["threads"])}
    for name in os.environ.keys() - kept.keys():
        del os.environ[name]
    os.environ.update(kept)
    fill_in()
    set_num_threads(given["threads"])
    told, is_first = given["told"], ray.train.get_context().get_world_rank() == 0
    streams = [_Sending(told, name) if is_first else io.StringIO() for name in ("stdout", "stderr")]
    try:
        with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
            call(given["words"])
    except Exception as error:
        if _may_be_of_a_dead_rank(error):
            time.sleep(_NOTICE_SECONDS)
        ray.get(told.fail.remote(explain(error)))
        raise
    # Calls of one process arrive in their order: the last line is there.
    ray.get(told.failed.remote())


def _may_be_of_a_dead_rank(error: BaseException | None) -> bool:
    """Whether an error is torch's, whose process group raises one when another rank dies."""
    while error is not None:
        if isinstance(error, RuntimeError):
            return True
        error = error.__cause__ or error.__context__
    return False
