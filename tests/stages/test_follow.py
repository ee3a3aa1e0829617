"""Students of a dump that is still being written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.store import waiting
from tests.stages.conftest import run
from tests.stages.projects import content
from tests.stages.test_interruption import STORE

CTRL_C = ()
STUDENT = ("train-student", "pupil", "kd", 0, "--dump", "main", "--set", "training.epochs=4")


def shard(number: int) -> tuple[str, ...]:
    """Return the command that makes one of the 6 shards of 3 views of 2 blocks, block by block."""
    return ("cache-logits", "main", "--shards", f"{number}/6")


def last_line(capsys) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_student_that_follows_a_dump_ends_with_the_weights_of_one_that_waited(
    project, monkeypatch, capsys
):
    assert run("cache-logits", "main") == 0
    assert run(*STUDENT) == 0
    waited = content(Path(), ("models/students", "runs/main"))
    for folder in ("models/students", "runs", STORE):
        shutil.rmtree(folder)
    # The dump makes its next step whenever the student looks in vain: views 0 and 1, then all the rest.
    steps = [*map(shard, (0, 3)), CTRL_C, *map(shard, (1, 4)), ("cache-logits", "main", "--by-view")]

    class Clock:
        monotonic = staticmethod(waiting.time.monotonic)

        @staticmethod
        def sleep(_: float) -> None:
            step = steps.pop(0)
            if step is CTRL_C:
                raise KeyboardInterrupt
            assert run(*step) == 0

    monkeypatch.setattr(waiting, "time", Clock)
    capsys.readouterr()
    assert run(*STUDENT, "--follow") == 130
    assert run(*STUDENT, "--follow") == 0
    told = capsys.readouterr().err
    assert content(Path(), ("models/students", "runs/main")) == waited
    assert len(waited) == 6
    expected = ("waiting for the dump to begin", "waiting for view 0, 1 of 2 shards missing", "epoch 1/4")
    expected += ("waiting for view 1", "after epoch 1", "epoch 2/4", "waiting for view 2", "epoch 3/4")
    places = [told.index(text) for text in expected]
    assert places == sorted(places)


def test_a_dump_without_a_writer_is_refused_with_and_without_follow(project, capsys):
    assert run(*shard(0)) == 0
    assert run(*STUDENT) == 1
    assert "main.zarr: not complete (manifest.json is missing); resume the dump with" in last_line(capsys)
    assert run(*STUDENT, "--follow", "--follow-timeout", 0) == 1
    assert last_line(capsys).endswith(
        "waited for view 0, 1 of 2 shards missing, but no process has written the store for 0 s; resume "
        "the dump with: pipeline cache-logits main --by-view, then run this command again"
    )
    # A wrong store is refused before it is waited for.
    other = ("--set", "dumps.main.views.seed=4")
    assert run(*STUDENT, "--follow", "--follow-timeout", 0, *other) == 1
    assert "the stored views differ from the dump's parameters" in last_line(capsys)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("scratch", 0), "--follow concerns a dump's samples; use it with --dump DUMP, or remove it"),
        (("kd", 0, "--dump", "main", "--allow-drift"), "--allow-drift replays samples of all views"),
        (("kd", 0, "--dump", "both"), "'both' is made of complete dumps; --follow expects a dump that"),
    ],
)
def test_what_cannot_be_followed(project, edit, capsys, arguments, told):
    edit({"ensembles": {"both": {"of": ["main", "other"]}}})
    edit({"dumps": {"other": {"teacher": "tutor", "views": {"count": 3, "seed": 3}}}})
    assert run("train-student", "pupil", *arguments, "--follow") == 1
    assert told in last_line(capsys)
