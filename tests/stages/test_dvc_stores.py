"""Stores under DVC: views given up, damage behind links, linked folders, and experiments."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pipeline.core.errors import ConfigError, MismatchError
from stages.dvc import cached_objects, naming_experiments, require_outputs_inside
from tests import patience
from tests.stages.dvc_projects import ENVIRONMENT, call, change, commit, stages_run
from tests.stages.test_dvc import STORE
from tests.stages.test_interruption import content


@pytest.fixture
def repository(dumped_by_dvc) -> Path:
    call("dvc", "config", "cache.type", "hardlink,copy")
    call("dvc", "remote", "add", "-d", "box", "remote")
    call("dvc", "push")
    commit("remote")
    return dumped_by_dvc


def fails(*command: str) -> str:
    """Run a command that must fail; return what it printed."""
    done = subprocess.run(command, env=ENVIRONMENT, text=True, capture_output=True)
    assert done.returncode != 0
    return done.stdout + done.stderr


def damage_through_links() -> None:
    """Link the store to the cache, and change a shard in place."""
    call("dvc", "checkout", "--relink", "--force", str(STORE))
    shard = STORE / "train/codes/c/1/0/0"
    assert shard.stat().st_nlink > 1
    shard.chmod(0o644)
    with shard.open("r+b") as file:
        file.write(b"?")


def told_to_run(printed: str) -> str:
    """Return the command at the end of the line that speaks of the cache."""
    line = next(line for line in printed.splitlines() if "DVC's cache" in line)
    return line.rpartition("run: ")[2]


def test_damage_behind_links_is_mended_as_verify_says(repository):
    expected = content(STORE)
    damage_through_links()
    told = fails("pipeline", "verify", str(STORE))
    assert "dvc checkout cannot restore it" in told
    call("bash", "-ec", told_to_run(told))
    assert content(STORE) == expected
    call("pipeline", "verify", str(STORE))


def test_damage_behind_links_is_mended_by_a_repair_and_in_the_cache(repository):
    expected = content(STORE)
    damage_through_links()
    shutil.rmtree("remote")
    done = subprocess.run(
        ["pipeline", "verify", str(STORE), "--repair"], env=ENVIRONMENT, text=True, capture_output=True
    )
    assert done.returncode == 0
    assert content(STORE) == expected
    assert "dvc push would send it" in done.stderr
    call("bash", "-ec", told_to_run(done.stderr))
    assert call("dvc", "status", "cache-logits@main").strip() == "Data and pipelines are up to date."
    call("dvc", "push")
    shutil.rmtree(STORE)
    shutil.rmtree(".dvc/cache")
    call("dvc", "pull", "--force", str(STORE))
    assert content(STORE) == expected


def test_a_mistyped_number_of_views_leaves_nothing_to_reproduce(repository):
    expected = content(STORE)
    text = Path("params.yaml").read_text()
    change(lambda params: params["dumps"]["main"].update(batch_size=1))
    change(lambda params: params["dumps"]["main"]["views"].update(count=400))
    process = subprocess.Popen(
        ["dvc", "repro", "cache-logits@main"], env=ENVIRONMENT, stdout=subprocess.DEVNULL
    )
    while not list(STORE.glob("growth/records/*.record")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.wait()
    Path("params.yaml").write_text(text)
    # The stage ends after DVC; each command waits for it for some seconds.
    tries = (patience.call(["pipeline", "cache-logits", "main"], env=ENVIRONMENT) for _ in range(50))
    assert any(done.returncode == 0 for done in tries)
    assert stages_run(call("dvc", "repro", "cache-logits@main")) == []
    assert {n: d for n, d in content(STORE).items() if not n.startswith("growth/")} == expected
    assert list(STORE.glob("growth/records/*.record"))


def test_a_linked_folder_of_outputs_is_refused_before_the_work(repository, tmp_path):
    Path("data/logits").rename(tmp_path / "logits")
    Path("data/logits").symlink_to(tmp_path / "logits")
    change(lambda params: params["dumps"]["main"]["views"].update(count=4))
    told = fails("dvc", "repro", "cache-logits@main")
    assert "data/logits: is a link out of the repository" in told
    assert "images" not in told
    call("pipeline", "cache-logits", "main")


def test_an_experiment_with_another_codec_says_how_to_compare(repository):
    told = fails("dvc", "exp", "run", "-S", "dumps.main.codec=fp16", "cache-logits@main")
    assert "written with a different codec" in told
    assert "define a dump with a new name in params.yaml" in told
    assert "rm -r" not in told


@pytest.mark.parametrize(("stage", "folder"), [("prepare", "data"), ("train-student", "runs")])
def test_every_stages_outputs_are_looked_at(tmp_path, monkeypatch, stage, folder):
    (tmp_path / "outside").mkdir()
    root = tmp_path / "root"
    root.mkdir()
    monkeypatch.chdir(root)
    (root / folder).symlink_to(tmp_path / "outside")
    require_outputs_inside([stage, "x"])
    monkeypatch.setenv("DVC_STAGE", f"{stage}@x")
    require_outputs_inside(["inspect", "x"])
    for out in (["--out", "x"], ["--out=x"]):
        require_outputs_inside([stage, "x", *out])
    for given in ([stage, "x"], ["--debug", stage, "x"]):
        with pytest.raises(ConfigError, match=rf"{folder}: is a link out of the repository.*dvc cache dir"):
            require_outputs_inside(given)


def test_by_hand_the_way_out_stays_as_it_is(monkeypatch):
    monkeypatch.delenv("DVC_EXP_BASELINE_REV", raising=False)
    with pytest.raises(MismatchError, match="rm -r store"), naming_experiments():
        raise MismatchError(
            "store: written with a different codec; a store is never overwritten: rm -r store"
        )


def test_links_without_a_cache_are_nobodys(tmp_path):
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("x")
    os.link(file, link)
    assert cached_objects(link.parent, [link.name, "absent"]) == []
