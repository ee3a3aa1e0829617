"""Compare loaders that run in separate processes and take turns.

Separate processes keep threads, allocators and memory apart, so that each loader's use can be measured, and
a crash affects one loader only. One loader works at a time: each round gives every loader a turn of one
epoch, or as many epochs as fill a second.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from pipeline.core.progress import note
from stages.runtime import keep_freed_memory
from tests.benchmarks.loading_job import Job
from tests.benchmarks.resources import Memory, Peak, cpu_seconds, kill, memory_of
from tests.benchmarks.turns import Contender, LoaderError, OpenLoader, Turn

_SECONDS_TO_ANSWER = 300.0
_SECONDS_TO_END = 10.0


@dataclass(slots=True, kw_only=True)
class Record:
    """Measurements of a loader.

    Args:
        set_up_seconds: time until the loader is ready for its first epoch, including imports.
        first: the first epoch.
        memory: peak host memory in an epoch, minus that of Python, torch and the images.
        turns: later epochs, one turn per round.
    """

    set_up_seconds: float
    first: Turn
    memory: Memory
    turns: list[Turn] = field(default_factory=list)


def contest(
    contenders: Sequence[Contender], job: Job, *, rounds: int, turn_seconds: float = 1.0
) -> tuple[dict[str, Record], dict[str, str]]:
    """Let loaders take turns.

    Args:
        contenders: the loaders.
        job: the images and batches to load.
        rounds: turns per loader.
        turn_seconds: minimum duration of a turn.

    Returns:
        The records by name, and the reasons for the loaders without one.
    """
    runners: dict[str, Runner] = {}
    records: dict[str, Record] = {}
    left_out: dict[str, str] = {}

    @contextmanager
    def may_fail(name: str) -> Iterator[None]:
        try:
            yield
        except LoaderError as error:
            left_out[name] = str(error)
            note(f"{name}: skipped ({error})")
            if (failed := runners.pop(name, None)) is not None:
                failed.end()

    for contender in contenders:
        with may_fail(contender.name):
            convert(contender, job)
    with ExitStack() as processes:
        # Start all at once, because imports take seconds; the first turn waits until all are ready.
        for contender in contenders:
            if contender.name not in left_out:
                runners[contender.name] = processes.enter_context(Runner(contender, job))
        for name, runner in list(runners.items()):
            with may_fail(name):
                runner.wait()
        for name, runner in list(runners.items()):
            with may_fail(name):
                records[name] = runner.open(turn_seconds)
        for turn in range(rounds):
            note(f"round {turn + 1} of {rounds}")
            for name, runner in list(runners.items()):
                with may_fail(name):
                    records[name].turns.append(runner.turn(turn_seconds))
    return {name: records[name] for name in runners}, left_out


def convert(contender: Contender, job: Job) -> None:
    """Write a job's images in a loader's own format, if it has one, in a separate process."""
    if contender.convert is not None:
        with Runner(contender, job) as runner:
            runner.wait()
            runner.ask("convert")


class Runner:
    """A handle on a loader in a separate process.

    Args:
        contender: the loader.
        job: the images and batches to load.
    """

    def __init__(self, contender: Contender, job: Job) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, contender, job))
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        """Ask the process to end; kill it and its children if it does not."""
        self._pipe.close()
        self._process.join(_SECONDS_TO_END)
        if self._process.is_alive():
            kill(self._process.pid)
        self._process.join()

    def wait(self) -> None:
        """Wait until the process has finished its imports and read the images."""
        self._answer()

    def ask(self, what: str, *given: float) -> Any:
        """Call a method of the process's `OpenLoader`, and return its result.

        Raises:
            LoaderError: the method failed, or the process has ended or does not answer.
        """
        try:
            self._pipe.send((what, given))
        except OSError as error:
            raise LoaderError(f"the process has ended ({error})") from None
        return self._answer()

    def open(self, turn_seconds: float) -> Record:
        """Make the loader, run a first epoch, then run more while watching its memory."""
        pid = self._process.pid
        before = memory_of(pid)
        set_up_seconds = self.ask("open")
        first = self.turn(0.0)
        with Peak.watch(pid) as peak:
            self.ask("turn", turn_seconds)
        return Record(set_up_seconds=set_up_seconds, first=first, memory=peak.memory - before)

    def turn(self, at_least_seconds: float) -> Turn:
        """Run one epoch, and more until so many seconds have passed."""
        before = cpu_seconds(self._process.pid)
        turn: Turn = self.ask("turn", at_least_seconds)
        return replace(turn, cpu_seconds=cpu_seconds(self._process.pid) - before)

    def _answer(self) -> Any:
        try:
            if not self._pipe.poll(_SECONDS_TO_ANSWER):
                raise LoaderError(f"no answer for {_SECONDS_TO_ANSWER:g} seconds")
            answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(_SECONDS_TO_END)
            raise LoaderError(f"the process ended with status {self._process.exitcode}") from None
        if isinstance(answer, LoaderError):
            raise answer
        return answer


def _serve(pipe: Connection, contender: Contender, job: Job) -> None:
    """Serve calls in a loader's process until the pipe closes."""
    # This process was spawned and would spawn its workers too; these loaders expect Linux's fork.
    multiprocessing.set_start_method("fork", force=True)
    if job.device.type == "cpu":
        keep_freed_memory()
    job.touch()
    loader = OpenLoader(contender, job)
    pipe.send(None)
    while True:
        try:
            what, given = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(getattr(loader, what)(*given))
        except Exception as error:  # third-party code may raise anything
            pipe.send(LoaderError(_in_a_line(error)))


def _in_a_line(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, LoaderError) else f"{type(error).__name__}: {text}"
