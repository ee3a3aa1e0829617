"""The stages under DVC: what runs again, what survives a kill, and a dump made on another machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import boto3
import pytest
import torch
import yaml

from pipeline.store.reader import LogitStore
from tests import patience
from tests.stages.conftest import PARAMS
from tests.stages.test_interruption import content

# Each is dozens of processes, of which each imports torch; `tests.patience` notices when one hangs.
pytestmark = pytest.mark.timeout(4 * 3600)
ROOT = Path(__file__).parents[2]
STORE = Path("data/logits/main.zarr")
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "GIT_AUTHOR_NAME": "test",
    "GIT_AUTHOR_EMAIL": "test@example.org",
    "GIT_COMMITTER_NAME": "test",
    "GIT_COMMITTER_EMAIL": "test@example.org",
}


def call(*command: str, environment: dict[str, str] = ENVIRONMENT) -> str:
    """Run a command that must succeed; return what it printed."""
    done = patience.call(command, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def stages_run(output: str) -> list[str]:
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


def lay_out(folder: Path, data: Path) -> None:
    """Make a project of this repository's DVC files and small data."""
    (folder / ".dvc").mkdir(parents=True)
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copy(data, folder / "data.npz")
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS))


def commit(message: str) -> None:
    call("git", "add", "-A")
    call("git", "commit", "-qm", message)


@pytest.fixture
def repository(template, tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "repository"
    lay_out(folder, template / "data.npz")
    monkeypatch.chdir(folder)
    call("git", "init", "-q")
    commit("start")
    return folder


def change(edit: object) -> None:
    path = Path("params.yaml")
    params = yaml.safe_load(path.read_text())
    edit(params)  # type: ignore[operator]
    path.write_text(yaml.safe_dump(params))


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

    change(lambda params: params["students"]["pupil"].update(learning_rate=0.02))
    again = stages_run(call("dvc", "repro"))
    assert sorted(again) == ["report", "train-baseline@pupil-scratch-0", "train-student@main-pupil-kd-0"]

    change(lambda params: params["recipes"]["kd"].update(temperature=2))
    assert stages_run(call("dvc", "repro")) == ["train-student@main-pupil-kd-0", "report"]

    # Which params.yaml did not name.
    change(lambda params: params["data"].update(labels_per_class=5))
    fewer = json.loads(call("dvc", "status", "--json"))
    assert sorted(fewer) == ["train-baseline@pupil-scratch-0", "train-student@main-pupil-kd-0"]
    change(lambda params: params["data"].pop("labels_per_class"))

    shown = call("dvc", "metrics", "show", "--json")
    assert "main-pupil-kd-0" in shown
    assert "top1" in shown
    call("dvc", "plots", "show", "--json")

    tried = call("dvc", "exp", "run", "-S", "recipes.kd.temperature=3")
    assert stages_run(tried) == ["train-student@main-pupil-kd-0", "report"]
    assert yaml.safe_load(Path("params.yaml").read_text())["recipes"]["kd"]["temperature"] == 3


def test_a_dump_from_another_machine(repository, tmp_path, monkeypatch):
    remote, laptop = tmp_path / "remote", tmp_path / "laptop"
    call("dvc", "remote", "add", "-d", "box", str(remote))
    call("dvc", "repro", "train-teacher@tutor")
    call("pipeline", "cache-logits", "main")
    call("dvc", "commit", "-f", "cache-logits@main")
    commit("dump")
    call("dvc", "push")

    call("git", "clone", "-q", str(repository), str(laptop))
    monkeypatch.chdir(laptop)
    # Every forward pass of a teacher leaves a line in a file.
    spy = tmp_path / "spy"
    spy.mkdir()
    (spy / "sitecustomize.py").write_text(
        "from pipeline.models import teacher\n"
        "original = teacher.Teacher.output\n"
        "def output(self, images):\n"
        f"    open({str(spy / 'forwards')!r}, 'a').write('x')\n"
        "    return original(self, images)\n"
        "teacher.Teacher.output = output\n"
    )
    spying = {**ENVIRONMENT, "PYTHONPATH": f"{spy}:{ROOT}"}
    call("dvc", "pull", "--allow-missing", environment=spying)
    ran = stages_run(call("dvc", "repro", environment=spying))
    assert sorted(ran) == ["report", "train-baseline@pupil-scratch-0", "train-student@main-pupil-kd-0"]
    assert not (spy / "forwards").exists()

    call("pipeline", "verify", str(STORE), "--replay", "4", environment=spying)
    assert (spy / "forwards").exists()


def test_a_pushed_store_is_read_where_it_lies(repository, s3_server):
    """A version-aware remote keeps names, so that a student's machine needs no copy."""
    boto3.client("s3").create_bucket(Bucket="dumps")
    boto3.client("s3").put_bucket_versioning(Bucket="dumps", VersioningConfiguration={"Status": "Enabled"})
    environment = {**os.environ, **ENVIRONMENT}
    call("dvc", "remote", "add", "-d", "storage", "s3://dumps/project")
    call("dvc", "remote", "modify", "storage", "version_aware", "true")
    call("dvc", "repro", "cache-logits@main")
    call("dvc", "push", "cache-logits@main", environment=environment)
    remote = LogitStore.open(f"s3://dumps/project/{STORE}")
    assert torch.equal(remote.view(1), LogitStore.open(STORE).view(1))
    assert remote.summary() == LogitStore.open(STORE).summary()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_repro_ends_with_the_same_store(repository, number):
    change(lambda params: params["dumps"]["main"].update(batch_size=1, shard_rows=8))
    call("dvc", "repro", "cache-logits@main")
    expected = content(STORE)
    shutil.rmtree(STORE)
    Path("dvc.lock").unlink()
    call("dvc", "repro", "train-teacher@tutor")

    process = subprocess.Popen(
        ["dvc", "repro", "--no-run-cache", "cache-logits@main"],
        env=ENVIRONMENT,
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


def test_a_changed_head_is_read_again_and_a_probe_needs_no_file(repository):
    fine = {"codec": "features", "max_kl": 1e-6}
    heads = {
        "reheads": {"all": {"of": "main", "head": "map.yaml"}},
        "probes": {"fitted": {"of": "main", "max_kl": 1}},
    }
    Path("map.yaml").write_text("{a: [0, 1], b: [2, 3]}")
    change(lambda params: (params["dumps"]["main"].update(fine), params.update(heads)))
    call("dvc", "repro", "rehead@all", "probe@fitted")
    assert {store.name for store in Path("data/logits").glob("*.zarr")} == {
        "all.zarr",
        "fitted.zarr",
        "main.zarr",
    }
    Path("map.yaml").write_text("{a: [0], b: [1, 2, 3]}")
    assert stages_run(call("dvc", "repro", "rehead@all", "probe@fitted")) == ["rehead@all"]
