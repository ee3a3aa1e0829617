"""The stages under DVC: what runs again, what survives a kill, and a dump made on another machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import boto3
import pytest
import torch
import yaml

from pipeline.store.reader import LogitStore
from tests import patience
from tests.stages.conftest import PARAMS
from tests.stages.dvc_projects import (
    ENVIRONMENT,
    INSTALLED,
    ROOT,
    call,
    change,
    commit,
    lay_out,
    stages_run,
)
from tests.stages.test_interruption import content

pytestmark = pytest.mark.usefixtures("preloaded")
STORE = Path("data/logits/main.zarr")


@pytest.fixture
def repository(template, tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "repository"
    lay_out(folder, template / "data.npz", PARAMS)
    monkeypatch.chdir(folder)
    call("git", "init", "-q")
    commit("start")
    return folder


def test_only_what_changed_runs_again(repository):
    first = stages_run(call("dvc", "repro"))
    assert sorted(first) == [
        "cache-logits@main",
        "prepare",
        "report",
        "train-baseline@pupil-scratch-0",
        "train-student@main-pupil-kd-0",
        "train-teacher@tutor",
    ]
    assert stages_run(call("dvc", "repro")) == []
    assert "git" not in call("git", "status", "--porcelain", "--", ".gitignore")

    students = ["train-baseline@pupil-scratch-0", "train-student@main-pupil-kd-0"]
    change(lambda params: params["students"]["pupil"].update(learning_rate=0.02))
    assert sorted(json.loads(call("dvc", "status", "--json"))) == students
    change(lambda params: params["students"]["pupil"].pop("learning_rate"))

    # Which params.yaml did not name.
    change(lambda params: params["data"].update(labels_per_class=5))
    fewer = json.loads(call("dvc", "status", "--json"))
    assert sorted(fewer) == students
    change(lambda params: params["data"].pop("labels_per_class"))

    shown = call("dvc", "metrics", "show", "--json")
    assert "main-pupil-kd-0" in shown
    assert "top1" in shown
    call("dvc", "plots", "show", "--json")

    tried = call("dvc", "exp", "run", "-S", "+recipes.kd.temperature=3")
    assert stages_run(tried) == ["train-student@main-pupil-kd-0", "report"]
    assert yaml.safe_load(Path("params.yaml").read_text())["recipes"]["kd"]["temperature"] == 3


def test_a_dump_from_another_machine(dumped_by_dvc, tmp_path, monkeypatch):
    remote, laptop = tmp_path / "remote", tmp_path / "laptop"
    call("dvc", "remote", "add", "-d", "box", str(remote))
    shutil.rmtree(STORE)
    call("pipeline", "cache-logits", "main")
    call("dvc", "commit", "-f", "cache-logits@main")
    commit("dump")
    call("dvc", "push")

    call("git", "clone", "-q", str(dumped_by_dvc), str(laptop))
    monkeypatch.chdir(laptop)
    call("dvc", "pull", "--allow-missing")
    # No stage of these runs a teacher.
    ran = stages_run(call("dvc", "repro"))
    assert sorted(ran) == ["report", "train-baseline@pupil-scratch-0", "train-student@main-pupil-kd-0"]
    call("pipeline", "verify", str(STORE), "--replay", "4")


def test_a_pushed_store_is_read_where_it_lies(dumped_by_dvc, s3_server):
    """A version-aware remote keeps names, so that a student's machine needs no copy."""
    boto3.client("s3").create_bucket(Bucket="dumps")
    boto3.client("s3").put_bucket_versioning(Bucket="dumps", VersioningConfiguration={"Status": "Enabled"})
    environment = {**os.environ, **ENVIRONMENT}
    call("dvc", "remote", "add", "-d", "storage", "s3://dumps/project")
    call("dvc", "remote", "modify", "storage", "version_aware", "true")
    call("dvc", "push", "cache-logits@main", environment=environment)
    remote = LogitStore.open(f"s3://dumps/project/{STORE}")
    assert torch.equal(remote.view(1), LogitStore.open(STORE).view(1))
    assert remote.summary() == LogitStore.open(STORE).summary()


@pytest.fixture(scope="module")
def slow_dump(dvc_template, tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A repository with a teacher, whose dump takes long enough to be stopped; and what it will contain."""
    folder = tmp_path_factory.mktemp("slow") / "repository"
    shutil.copytree(dvc_template, folder, symlinks=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        change(lambda params: params["dumps"]["main"].update(batch_size=1, shard_rows=8))
        call("pipeline", "cache-logits", "main", "--out", "expected.zarr")
        expected = content(Path("expected.zarr"))
        shutil.rmtree("expected.zarr")
        shutil.rmtree(STORE)
        lock = yaml.safe_load(Path("dvc.lock").read_text())
        del lock["stages"]["cache-logits@main"]
        Path("dvc.lock").write_text(yaml.safe_dump(lock))
    return folder, expected


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_repro_ends_with_the_same_store(slow_dump, tmp_path, monkeypatch, number):
    made, expected = slow_dump
    shutil.copytree(made, tmp_path / "repository", symlinks=True)
    monkeypatch.chdir(tmp_path / "repository")

    process = subprocess.Popen(
        ["dvc", "repro", "--no-run-cache", "cache-logits@main"],
        env=INSTALLED,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert patience.until(lambda: len(list(STORE.glob("records/*.record"))) >= 3, process)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    patience.finish(process)
    assert process.returncode != 0
    recorded = yaml.safe_load(Path("dvc.lock").read_text())["stages"]
    assert "cache-logits@main" not in recorded

    call("dvc", "repro", "cache-logits@main")
    assert content(STORE) == expected
    LogitStore.open(STORE)


def test_dvc_finds_one_pipeline_in_a_clone_of_this_repository(tmp_path):
    """DVC collects every dvc.yaml of a repository, whatever its folder: a second one would be run, too."""
    command = ["git", "ls-files"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [name for name in listed.splitlines() if Path(name).name == "dvc.yaml"] == ["dvc.yaml"]


def test_a_changed_head_is_read_again_and_a_probe_needs_no_file(dumped_by_dvc):
    fine = {**PARAMS["dumps"]["main"], "codec": "features", "max_kl": 1e-6}
    heads = {
        "reheads": {"all": {"of": "fine", "head": "map.yaml"}},
        "probes": {"fitted": {"of": "fine", "max_kl": 1}},
    }
    Path("map.yaml").write_text("{a: [0, 1], b: [2, 3]}")
    change(lambda params: (params["dumps"].update(fine=fine), params.update(heads)))
    call("dvc", "repro", "rehead@all", "probe@fitted")
    assert {store.name for store in Path("data/logits").glob("*.zarr")} == {
        "all.zarr",
        "fine.zarr",
        "fitted.zarr",
        "main.zarr",
    }
    Path("map.yaml").write_text("{a: [0], b: [1, 2, 3]}")
    assert stages_run(call("dvc", "repro", "rehead@all", "probe@fitted")) == ["rehead@all"]
