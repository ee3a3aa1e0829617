"""A dump whose number of views was mistyped: given up, finished, and used meanwhile."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pipeline.store.reader import LogitStore
from tests.stages.conftest import VIEWS, run
from tests.stages.test_interruption import DUMP, ENVIRONMENT, STORE, content

GROWTH = STORE / "growth"
MORE = ("--set", f"dumps.main.views.count={VIEWS + 5}")


def outside(store: Path) -> dict[str, str]:
    return {name: digest for name, digest in content(store).items() if not name.startswith("growth/")}


@pytest.fixture
def complete(project) -> dict[str, str]:
    """The bytes of a complete dump, which is there."""
    assert run("cache-logits", "main") == 0
    return content(STORE)


@pytest.fixture
def grown(complete) -> dict[str, str]:
    """The bytes of a complete dump, to which half of a growth was added."""
    assert run("cache-logits", "main", *MORE, "--shards", "1/2") == 0
    assert any(GROWTH.glob("records/*.record"))
    return complete


def test_a_mistyped_number_of_views_is_given_up(grown, capsys, monkeypatch):
    assert outside(STORE) == grown
    monkeypatch.setattr("pipeline.models.teacher.Teacher.output", None)
    assert run("cache-logits", "main") == 0
    told = capsys.readouterr().err
    assert f"unfinished growth to {VIEWS + 5} views" in told
    assert f"rm -r {GROWTH}" in told
    assert run("verify", STORE) == 0
    assert run("verify", STORE, "--repair") == 0
    assert outside(STORE) == grown
    shutil.rmtree(GROWTH)
    assert run("verify", STORE) == 0


def test_students_and_reports_use_what_is_complete_meanwhile(grown, capsys):
    assert run("train-student", "pupil", "kd", 0, "--dump", "main") == 0
    assert run("train-student", "pupil", "scratch", 0) == 0
    assert run("report") == 0
    assert run("verify", STORE, "--replay", 8) == 0
    capsys.readouterr()
    assert run("inspect", STORE, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["complete"], summary["n_views"]) == (True, VIEWS)
    assert summary["growing"]["n_views"] == VIEWS + 5
    assert 0 < summary["growing"]["shards"]["done"] < summary["growing"]["shards"]["total"]


def test_a_student_of_views_that_are_still_to_come_is_told_both_ways_out(grown, capsys):
    assert run("train-student", "pupil", "kd", 0, "--dump", "main", *MORE) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert "pipeline cache-logits main" in told
    assert f"--set dumps.main.views.count={VIEWS}" in told
    assert "rm -r" not in told


def test_a_growth_goes_on_with_fewer_views_and_loses_none(grown, capsys, monkeypatch):
    """Shards beyond the number that is asked for wait for the next growth."""
    fewer = ("--set", f"dumps.main.views.count={VIEWS + 1}")
    assert run("cache-logits", "main", *fewer) == 0
    assert LogitStore.open(STORE).n_views == VIEWS + 1
    assert run("verify", STORE) == 0
    capsys.readouterr()
    assert run("cache-logits", "main", *MORE) == 0
    assert "resuming" in capsys.readouterr().err
    assert not GROWTH.exists()
    at_once = content(STORE)
    shutil.rmtree(STORE)
    assert run("cache-logits", "main", *MORE) == 0
    assert content(STORE) == at_once


def test_a_dump_that_was_never_complete_gives_views_up_too(project, capsys):
    assert run("cache-logits", "main", *MORE, "--shards", "1/2") == 0
    assert run("cache-logits", "main") == 0
    assert "unfinished growth" in capsys.readouterr().err
    assert run("verify", STORE) == 0
    complete = outside(STORE)
    assert run("cache-logits", "main", *MORE) == 0
    larger = content(STORE)
    shutil.rmtree(STORE)
    assert run("cache-logits", "main") == 0
    assert content(STORE) == complete
    assert run("cache-logits", "main", *MORE) == 0
    assert content(STORE) == larger


def test_a_growth_of_the_former_program_is_given_up_or_finished(complete, tmp_path):
    """It had rewritten the header and removed the manifest of what was complete."""
    assert run("cache-logits", "main", *MORE, "--shards", "1/2") == 0
    former = tmp_path / "former.zarr"
    (STORE / "manifest.json").unlink()
    for file in sorted(GROWTH.rglob("*")):
        place = STORE / file.relative_to(GROWTH)
        if file.is_file() and file.name != "records.jsonl":
            place.parent.mkdir(parents=True, exist_ok=True)
            file.rename(place)
    shutil.rmtree(GROWTH)
    shutil.copytree(STORE, former)
    assert run("cache-logits", "main") == 0
    assert outside(STORE) == complete
    assert run("cache-logits", "main", *MORE) == 0
    assert run("cache-logits", "main", *MORE, "--out", former) == 0
    assert content(STORE) == content(former)


def test_a_growth_that_cannot_be_read_stands_in_nobodys_way(grown, capsys):
    (GROWTH / "zarr.json").write_text("{")
    for command in (("cache-logits", "main"), ("verify", STORE), ("inspect", STORE)):
        assert run(*command) == 0
    capsys.readouterr()
    assert run("cache-logits", "main", *MORE) == 1
    assert capsys.readouterr().err.strip().endswith(f"remove it with: rm -r {GROWTH}")
    shutil.rmtree(GROWTH)
    assert run("cache-logits", "main", *MORE) == 0


def test_a_growth_of_another_store_is_not_gone_on_with(grown, tmp_path, capsys, edit):
    kept = tmp_path / "growth"
    GROWTH.rename(kept)
    shutil.rmtree(STORE)
    edit({"dumps": {"main": {"precision": "bf16"}}})
    assert run("cache-logits", "main") == 0
    kept.rename(GROWTH)
    assert run("cache-logits", "main", *MORE) == 1
    assert "this unfinished growth belongs to a different store" in capsys.readouterr().err
    assert run("cache-logits", "main") == 0


def test_a_student_that_has_opened_the_store_goes_on_when_it_has_grown(grown):
    store = LogitStore.open(STORE)
    views = [store.view(view) for view in range(VIEWS)]
    opened = LogitStore.open(STORE)
    assert run("cache-logits", "main", *MORE) == 0
    assert all(bool((opened.view(view) == views[view]).all()) for view in range(VIEWS))


def test_terminated_in_the_middle_of_a_growth(complete):
    slow = ["--set", "dumps.main.batch_size=1", "--set", "dumps.main.views.count=400"]
    with subprocess.Popen([*DUMP, *slow], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        while not list(GROWTH.glob("records/*.record")) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == 143
    assert outside(STORE) == complete
    assert run("cache-logits", "main") == 0
    assert LogitStore.open(STORE).n_views == VIEWS
