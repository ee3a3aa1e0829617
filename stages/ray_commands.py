"""Commands of this program on Ray: each is a process, or shared by the workers of a Ray Train group.

    Job(words)                  a task of Ray, which runs the command as a process of its own
    Job(words, processes=8)     eight workers of Ray Train, the ranks of one command, on any machines
    run_all(cluster, jobs)      all of them, as many at a time as there are workers
    run_together(engine, 8)     the command of this process itself, by eight ranks

Their state lies in the project folder, as always. So a command that is started again resumes, with any
number of processes.
"""

from __future__ import annotations

import io
import os
import subprocess
import time
import traceback
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from pipeline.core.errors import ConfigError, EngineError, PipelineError, brief, counted
from pipeline.core.package import extra_command
from pipeline.core.progress import note
from stages.engine import Engine
from stages.environment import fill_in
from stages.failures import explain
from stages.launchers import without_launcher
from stages.options import MOST_WORKERS, given_words
from stages.ranks import require_alone
from stages.ray_cluster import TRIES, Cluster, enter, next_of, result_of, started
from stages.runtime import STARTED_BY, command_line

_LOOK_SECONDS = 1.0
# Ray may need so long to notice that a rank is dead. The others fail, too, since it is gone, but report
# that only afterwards: else Ray Train would end the group before it knows of the death.
_NOTICE_SECONDS = 20.0


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
    """A command that has ended: its exit status, its output, and the error of ranks or of Ray."""

    status: int
    stdout: str
    stderr: str
    error: str = ""


def run_all(cluster: Cluster, jobs: Mapping[str, Job]) -> Iterator[tuple[str, Ended]]:
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


def run_together(engine: Engine, workers: int) -> None:
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
        ended = _run_group_and_print(cluster, job)
    click.echo(ended.stdout, nl=False)
    if ended.status:
        raise EngineError(ended.error)


def _run_group_and_print(cluster: Cluster, job: Job) -> Ended:
    """Run a command by a group, and print its progress."""
    transcript = _new_transcript(cluster)
    call, lines = _start_group(cluster, job, transcript), transcript.take.remote()
    while call not in (ready := cluster.wait([call, lines], _LOOK_SECONDS)):
        if lines in ready:
            _print(cluster, lines)
            time.sleep(_LOOK_SECONDS)
            lines = transcript.take.remote()
    _print(cluster, lines)
    _print(cluster, transcript.take.remote())
    return _ended(cluster, call)


def _print(cluster: Cluster, lines: Any) -> None:
    for line in result_of(cluster, lines):
        note(line)


def _fits(cluster: Cluster, jobs: Mapping[str, Job], running: Iterable[str], job: Job) -> bool:
    return sum(jobs[name].processes for name in running) + job.processes <= cluster.workers


def _start(cluster: Cluster, job: Job) -> Any:
    if job.processes > 1:
        return _start_group(cluster, job, _new_transcript(cluster))
    task = cluster.ray.remote(_run_process).options(max_retries=TRIES, **cluster.needs)
    return task.remote(str(Path.cwd()), _words(cluster, job), cluster.cpus)


def _ended(cluster: Cluster, call: Any) -> Ended:
    """Return the result of a command; one that Ray gave up has failed, and stops no other."""
    try:
        return result_of(cluster, call)  # type: ignore[no-any-return]
    except PipelineError as error:
        return Ended(status=1, stdout="", stderr="", error=str(error))


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


class _Transcript:
    """An actor that collects the output of a group's first rank, and the first error of any rank."""

    def __init__(self) -> None:
        self._lines: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self._taken, self._error = 0, ""

    def begin(self) -> None:
        """Forget results and errors of a group that is started again; its progress stays."""
        self._lines["stdout"], self._error = [], ""

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

    def arrived(self) -> None:
        """Return after all earlier calls of the same process."""

    def ended(self, failure: str = "") -> Ended:
        """Return the output; with a failure, the error of a rank, or that failure if none has told one."""
        streams = {name: "".join(f"{line}\n" for line in lines) for name, lines in self._lines.items()}
        return Ended(status=int(bool(failure)), error=failure and (self._error or failure), **streams)


class _Sending(io.TextIOBase):
    """A stream whose lines go to a transcript."""

    def __init__(self, transcript: Any, stream: str) -> None:
        self._transcript, self._stream, self._begun = transcript, stream, ""

    def write(self, text: str) -> int:
        """Send whole lines, and keep the rest."""
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._transcript.add.remote(self._stream, line)
        return len(text)


def _new_transcript(cluster: Cluster) -> Any:
    return cluster.ray.remote(_Transcript).options(num_cpus=0).remote()


def _start_group(cluster: Cluster, job: Job, transcript: Any) -> Any:
    """Start a task that waits for a group; its result is an `Ended`."""
    needs = {"CPU": cluster.cpus, **({"GPU": cluster.gpus} if cluster.gpus else {})}
    has = cluster.ray.cluster_resources()
    for kind, count in needs.items():
        if has.get(kind, 0) < count * job.processes:
            note(
                f"ray: {counted(job.processes, 'worker')} need {counted(count * job.processes, kind)} "
                f"together, and the cluster has {int(has.get(kind, 0))}; waiting for more"
            )
    rank = {"folder": str(Path.cwd()), "words": _words(cluster, job), "threads": cluster.cpus}
    task = cluster.ray.remote(_run_group).options(num_cpus=0, max_retries=TRIES)
    return task.remote(rank, job.processes, needs, transcript)


def _run_group(rank: dict[str, Any], processes: int, needs: dict[str, int], transcript: Any) -> Ended:
    """Let Ray Train run a group to its end; start it again if one of its workers dies."""
    import ray

    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")  # the default since 2.51
    try:
        from ray.train import ControllerError, RunConfig, ScalingConfig, TrainingFailedError
        from ray.train.torch import TorchTrainer
    except ImportError as error:
        raise ConfigError(
            f"students and teachers with workers need Ray Train, which does not import here "
            f"({brief(error)}); run: {extra_command('ray')}"
        ) from error
    for _ in range(TRIES + 1):
        ray.get(transcript.begin.remote())
        # For notes of Ray Train, which only its controller beside this process writes.
        with TemporaryDirectory(prefix="ray-train-") as storage:
            trainer = TorchTrainer(
                _be_rank,
                train_loop_config={**rank, "transcript": transcript},
                scaling_config=ScalingConfig(
                    num_workers=processes, use_gpu="GPU" in needs, resources_per_worker=needs
                ),
                run_config=RunConfig(storage_path=storage),
            )
            try:
                trainer.fit()
            except ControllerError as error:
                reason = brief(error.controller_failure)
                raise EngineError(
                    f"ray: {counted(processes, 'worker')} did not start ({reason}); expected this program "
                    "on every machine, and a network between them; run the command again"
                ) from error
            except TrainingFailedError as error:
                if not _is_death(error):
                    return ray.get(transcript.ended.remote(brief(error)))  # type: ignore[no-any-return]
            else:
                return ray.get(transcript.ended.remote())  # type: ignore[no-any-return]
        ray.get(transcript.add.remote("stderr", "ray: a worker died; all start again, and resume"))
    raise EngineError(
        f"ray: workers died {TRIES + 1} times at the same training; expected enough memory; lower "
        "batch_size, and run the command again"
    )


def _is_death(error: Exception) -> bool:
    """Whether a group ended since a worker died, not by an error of the command; then it may run again."""
    from ray.exceptions import RayActorError

    failures = getattr(error, "worker_failures", None)
    if failures is None:
        return True  # a machine that was taken away
    return any(
        isinstance(getattr(failure, "health_check_failure", None), RayActorError)
        or type(failure).__name__ == "WorkerHealthCheckTimeoutError"
        for failure in failures.values()
    )


def _be_rank(given: dict[str, Any]) -> None:
    """Be one rank of a command, in a worker of Ray Train, whose process group is used as it is."""
    import ray

    transcript, is_first = given["transcript"], ray.train.get_context().get_world_rank() == 0
    streams = [_Sending(transcript, name) if is_first else io.StringIO() for name in ("stdout", "stderr")]
    try:
        with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
            _run_rank(given)
    except BaseException as error:
        if _may_be_of_a_dead_rank(error):
            time.sleep(_NOTICE_SECONDS)
        if "--debug" in given["words"]:
            for line in traceback.format_exc().splitlines():
                transcript.add.remote("stderr", line)
        told = explain(error) if isinstance(error, Exception) else f"unexpected {type(error).__name__}"
        ray.get(transcript.fail.remote(told))
        raise EngineError(told) from None  # that of the command may not be one that can be sent
    # Calls of one process arrive in their order: now the last line is there.
    ray.get(transcript.arrived.remote())


def _run_rank(given: dict[str, Any]) -> None:
    from torch import set_num_threads

    from stages.cli import run_here

    enter(given["folder"])
    # Of the variables of launchers, torch's are those that Ray Train sets for its ranks.
    ours = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE")}
    kept = {**without_launcher(os.environ), **ours, "OMP_NUM_THREADS": str(given["threads"])}
    for name in os.environ.keys() - kept.keys():
        del os.environ[name]
    os.environ.update(kept)
    fill_in()
    set_num_threads(given["threads"])
    run_here(given["words"])


def _may_be_of_a_dead_rank(error: BaseException | None) -> bool:
    """Whether an error is torch's, whose process group raises one when another rank dies."""
    while error is not None:
        if isinstance(error, RuntimeError):
            return True
        error = error.__cause__ or error.__context__
    return False
