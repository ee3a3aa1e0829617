"""Commands on Ray, on a cluster of plain objects: which start when, and what their words are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import click
import pytest

from pipeline.core.errors import ConfigError, DataError, ModelError
from stages.options import given_words
from stages.ray_commands import Ended, Job, _may_be_of_a_dead_rank, _Sending, _Transcript, run_all


class Cluster:
    """A cluster whose calls end in the order in which they started.

    Args:
        workers: as many as it is to have.
    """

    cpus, gpus, needs = 3, 0, {"num_cpus": 3}

    def __init__(self, workers: int) -> None:
        self.workers, self.words = workers, []
        errors = SimpleNamespace(RayTaskError=KeyError, RayError=KeyError)
        has = {"CPU": 6}
        self.ray = SimpleNamespace(remote=self._remote, get=lambda call: call, exceptions=errors)
        self.ray.cluster_resources = lambda: has

    def wait(self, calls: Sequence[Any], seconds: float) -> list[Any]:
        return calls[:1]

    def _remote(self, work: Any) -> Any:
        def start(*given: Any) -> Any:
            if work is _Transcript:
                return _Transcript()
            count = given[1] if isinstance(given[1], int) else 1
            self.words.append(given[0]["words"] if count > 1 else given[1])
            return Ended(status=0, stdout=f"{count}\n", stderr=str(len(self.words)))

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=start))


def test_commands_that_several_processes_share_begin_when_there_is_room(capsys):
    jobs = {"a": Job(["a"], 2), "b": Job(["b"]), "c": Job(["c"]), "d": Job(["d"], 8), "e": Job(["e"])}
    cluster = Cluster(3)
    begun = []
    for name, ended in run_all(cluster, jobs):
        begun.append((name, len(cluster.words)))
        assert ended.stdout == f"{jobs[name].processes}\n"
    # c waits for the two processes of a, and d, which needs more than there are, for all others.
    assert begun == [("a", 2), ("b", 3), ("c", 3), ("d", 4), ("e", 5)]
    assert cluster.words[0] == ["a", "--device", "cpu", "--workers", "3"]
    waiting = "ray: 8 workers need 24 CPUs together, and the cluster has 6; waiting for more"
    assert capsys.readouterr().err.splitlines() == [waiting]


def test_a_transcript_keeps_the_output_and_the_first_error():
    transcript = _Transcript()
    streams = {name: _Sending(_Remote(transcript), name) for name in ("stdout", "stderr")}
    print("epoch 1\nepo", end="", file=streams["stderr"])
    assert transcript.take() == ["epoch 1"]
    print("ch 2", file=streams["stderr"])
    print("top-1", file=streams["stdout"])
    assert (transcript.take(), transcript.take()) == (["epoch 2"], [])
    assert transcript.ended() == Ended(status=0, stdout="top-1\n", stderr="epoch 1\nepoch 2\n")
    assert transcript.ended("a worker failed").error == "a worker failed"
    for line in ("no such file", "connection closed"):
        transcript.fail(line)
    failed = transcript.ended("a worker failed")
    assert (failed.status, failed.error) == (1, "no such file")
    assert transcript.ended().error == ""
    transcript.begin()
    begun = transcript.ended("a worker failed")
    assert (begun.stdout, begun.error) == ("", "a worker failed")
    assert begun.stderr == failed.stderr


class _Remote:
    """An actor whose methods are called at once."""

    def __init__(self, held: Any) -> None:
        self.add = SimpleNamespace(remote=held.add)


def chained(error: Exception, cause: Exception) -> Exception:
    try:
        raise error from cause
    except Exception as raised:
        return raised


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (RuntimeError("Connection closed by peer"), True),
        (chained(ModelError("a training step fails"), RuntimeError("Connection closed by peer")), True),
        (ConfigError("no such recipe"), False),
        (chained(DataError("bad"), KeyError("x")), False),
    ],
)
def test_an_error_of_torch_may_come_from_the_death_of_another_rank(error, found):
    assert _may_be_of_a_dead_rank(error) is found


@pytest.fixture
def words() -> Callable[..., list[str]]:
    """Return a function that parses words and returns those that start the command again."""

    @click.command()
    @click.argument("name")
    @click.option("--on")
    @click.option("--set", "overrides", multiple=True)
    @click.option("--count", type=int, default=3)
    @click.option("--follow", is_flag=True)
    @click.pass_context
    def command(context: click.Context, **_: Any) -> list[str]:
        return given_words(context, without=("on",))

    return lambda *given: command.main(list(given), "command", standalone_mode=False)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["x"], []),
        (["x", "--on", "ray"], []),
        (["--count", "3", "x", "--follow"], ["--count", "3", "--follow"]),
        (["x", "--set", "a=[1, 2]", "--set", "b="], ["--set", "a=[1, 2]", "--set", "b="]),
    ],
)
def test_a_command_is_started_again_by_the_words_that_it_was_given(words, given, expected):
    again = words(*given)
    assert again[:2] == ["command", "x"]
    assert sorted(again[2:]) == sorted(expected)
    assert words(*again[1:]) == again
