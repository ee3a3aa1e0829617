"""Dumps, students and sweeps on Ray, on this machine with two workers: `make heavy`; slow ones by hand."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import boto3
import psutil
import pytest

from pipeline.places.objects import ObjectPlace
from stages.engine import threads_per_worker
from stages.options import make_engine
from tests import patience
from tests.ray_processes import family_of, ranks_of, workers_of
from tests.stages.conftest import run, write_pictures
from tests.stages.projects import content, differing

ROOT = Path(__file__).parents[2]
STORE = Path("data/logits/main.zarr")
# A folder of this name is found, too.
HAS_RAY = getattr(find_spec("ray"), "origin", None) is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="needs ray: make heavy")
TRAIN = ("train-student", "pupil", "kd", 0, "--dump", "main")
ON_RAY = ("cache-logits", "main", "--on", "ray", "--workers", "2")
KILLED, TERMINATED = -9, 143


def environment() -> dict[str, str]:
    where = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": where, "OMP_NUM_THREADS": "1"}


def words(*arguments: object) -> list[str]:
    return [sys.executable, "-c", "from stages.cli import main; main()", *map(str, arguments)]


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    done = patience.call(words(*arguments), env=environment())
    assert "Traceback" not in done.stderr, done.stderr
    return done


def begin(*arguments: object) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words(*arguments), env=environment(), **pipes)


def wait_for_the_end_of(processes: list[psutil.Process]) -> None:
    deadline = time.monotonic() + patience.HANGING_SECONDS
    while any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes):
        assert time.monotonic() < deadline, processes
        time.sleep(0.1)


@pytest.fixture
def alone(project, edit) -> Path:
    """A project with many small shards, and a copy of it in which one process has made the dump."""
    edit({"dumps": {"main": {"shard_rows": 16, "views": {"count": 12}}}})
    folder = project.with_name("alone")
    shutil.copytree(project, folder)
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert call("cache-logits", "main").returncode == 0
    finally:
        os.chdir(before)
    return folder


@needs_ray
def test_workers_write_the_bytes_of_one_process(project, alone):
    done = call(*ON_RAY)
    assert done.returncode == 0, done.stderr
    assert "main: 12 views, " in done.stdout
    assert differing(STORE, alone / STORE) == []


@needs_ray
@pytest.mark.slow
def test_workers_write_to_a_bucket_view_by_view(project, alone, s3_server):
    name = f"bucket-{os.urandom(4).hex()}"
    boto3.client("s3", endpoint_url=s3_server).create_bucket(Bucket=name)
    done = call(*ON_RAY, "--by-view", "--out", f"s3://{name}/main.zarr")
    assert done.returncode == 0, done.stderr
    place, here = ObjectPlace.open(f"s3://{name}/main.zarr"), alone / STORE
    assert {name: place.get(name) for name in place.sizes()} == {
        str(file.relative_to(here)): file.read_bytes() for file in here.rglob("*") if file.is_file()
    }


@needs_ray
@pytest.mark.slow
def test_killed_workers_and_a_killed_command_leave_no_trace(project, alone):
    records = STORE / "records"
    with begin(*ON_RAY) as process:
        assert patience.until(
            lambda: len(list(records.glob("train*"))) > 0 and workers_of(process), process
        )
        workers_of(process)[0].kill()
        done = len(list(records.glob("train*")))
        assert patience.until(lambda: len(list(records.glob("train*"))) > done + 2, process, 0.5)
        family = family_of(process)
        process.kill()
    wait_for_the_end_of(family)
    assert not (STORE / "manifest.json").exists()
    done = call(*ON_RAY)
    assert done.returncode == 0, done.stderr
    assert "resuming: " in done.stderr
    assert differing(STORE, alone / STORE) == []


@needs_ray
@pytest.mark.slow
def test_a_terminated_command_ends_its_workers(project, edit):
    edit({"dumps": {"main": {"shard_rows": 16, "views": {"count": 40}}}})
    with begin(*ON_RAY) as process:
        assert patience.until(lambda: bool(workers_of(process)), process, 0.5), patience.finish(process)
        family = family_of(process)
        process.terminate()
        _, told = patience.finish(process)
    assert process.returncode == TERMINATED
    assert "terminated; completed work is saved" in told
    wait_for_the_end_of(family)


@needs_ray
def test_workers_find_what_one_process_finds(project, edit):
    edit({"dumps": {"main": {"shard_rows": 16}}})
    assert run("cache-logits", "main") == 0
    done = call("verify", STORE, "--on", "ray", "--workers", "2")
    assert (done.returncode, done.stdout) == (0, f"{STORE}: 79 files checked, 0 bad\n")
    for name in ("train/codes/c/1/0/0", "train/scale/c/2/3", "test/codes/c/0/1/0"):
        file = STORE / name
        file.write_bytes(file.read_bytes()[:-1])
    (STORE / "notes.txt").touch()
    there, here = (call("verify", STORE, "--json", *more) for more in (("--on", "ray"), ()))
    assert (there.returncode, here.returncode) == (1, 1)
    assert json.loads(there.stdout) == json.loads(here.stdout)
    assert len(json.loads(here.stdout)["bad"]) == 4


@needs_ray
def test_workers_prepare_the_bytes_of_one_process_and_write_its_report(project, edit):
    write_pictures(project)
    edit({"data": {"source": "folder:photos", "watch": "photos"}})
    alone = project.with_name("alone")
    shutil.copytree(project, alone)
    os.chdir(alone)
    student = ("train-student", "pupil")
    for command in (
        *(("prepare",), ("train-teacher", "tutor"), ("cache-logits", "main")),
        *((*student, "kd", 0, "--dump", "main"), (*student, "scratch", 0), ("report",)),
    ):
        assert run(*command) == 0
    os.chdir(project)
    on_ray = ("--on", "ray", "--workers", "2")
    done = call("prepare", *on_ray)
    assert done.returncode == 0, done.stderr
    assert content(project, ("data/prepared",)) == content(alone, ("data/prepared",))
    for folder in ("data/logits", "models", "runs"):
        shutil.copytree(alone / folder, folder, dirs_exist_ok=True)
    done = call("report", *on_ray)
    assert done.returncode == 0, done.stderr
    assert content(project, ("reports/results.json",)) == content(alone, ("reports/results.json",))


@needs_ray
def test_the_error_of_a_worker_is_one_line(project):
    Path("models/teachers/tutor.pt").unlink()
    done = call(*ON_RAY)
    assert done.returncode == 1
    *_, last = done.stderr.splitlines()
    assert last.startswith("pipeline: models/teachers/tutor.pt: no such file; the teacher is not trained")


@needs_ray
def test_an_address_without_a_cluster_is_told(project):
    done = call("cache-logits", "main", "--on", "ray://127.0.0.1:9")
    assert done.returncode == 1
    assert "ray does not start or answer on ray://127.0.0.1:9" in done.stderr.splitlines()[-1]


@needs_ray
@pytest.mark.slow
def test_a_sweep_trains_the_runs_that_the_commands_train(project):
    assert call("cache-logits", "main").returncode == 0
    one_by_one = project.with_name("one-by-one")
    shutil.copytree(project, one_by_one)
    done = call("sweep", "--on", "ray", "--workers", "2")
    assert done.returncode == 0, done.stderr
    os.chdir(one_by_one)
    assert call("sweep").returncode == 0
    for names in ("runs/main", "runs/baseline", "models/students", "reports/results.json"):
        assert content(one_by_one, (names,)) == content(project, (names,))


@pytest.fixture
def by_torchrun(project, edit) -> Callable[[int], Path]:
    """Train a student by two processes of torchrun in a copy of the project, which is returned."""

    def train(epochs: int) -> Path:
        edit({"students": {"pupil": {"workers": 2, "epochs": epochs}}})
        assert call("cache-logits", "main").returncode == 0
        folder = project.with_name("torchrun")
        shutil.copytree(project, folder)
        launch = "from torch.distributed.run import main; main()"
        options = ("--standalone", "--nproc-per-node", "2", "--no-python")
        done = patience.call(
            [sys.executable, "-c", launch, *options, *words(*TRAIN)], env=environment(), cwd=folder
        )
        assert done.returncode == 0, done.stderr
        return folder

    return train


def weights(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("models/students/*.pt")}


@needs_ray
def test_workers_train_what_torchrun_trains(project, by_torchrun):
    expected = weights(by_torchrun(2))
    done = call(*TRAIN, "--on", "ray")
    assert done.returncode == 0, done.stderr
    assert "epoch 2/2: loss" in done.stderr
    assert "main-pupil-kd-0: test top-1" in done.stdout
    assert weights(project) == expected
    assert not list(Path("runs/.state").glob("ray-*"))
    shutil.rmtree("data/logits")
    done = call("train-student", "pupil", "kd", 1, "--dump", "main", "--on", "ray")
    assert done.returncode == 1
    assert "pipeline: data/logits/main.zarr: no such store" in done.stderr.splitlines()[-1]


@needs_ray
@pytest.mark.slow
def test_a_killed_worker_of_a_training_leaves_no_trace(project, by_torchrun):
    expected = weights(by_torchrun(30))
    with begin(*TRAIN, "--on", "ray") as process:
        assert patience.until(lambda: bool(ranks_of(process)), process)
        state = Path("runs/.state/main-pupil-kd-0.pt")
        assert patience.until(state.exists, process), patience.finish(process)
        ranks_of(process)[1].kill()
        out, told = patience.finish(process)
    assert process.returncode == 0, told
    assert "ray: a worker died; all start again, and resume" in told
    assert "resuming after epoch" in told
    assert "main-pupil-kd-0: test top-1" in out
    assert weights(project) == expected


@needs_ray
@pytest.mark.slow
def test_a_sweep_has_students_that_several_workers_share(project, by_torchrun):
    expected = weights(by_torchrun(2))
    done = call("sweep", "--on", "ray", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert "2 of 2 runs done" in done.stderr
    assert expected.items() <= weights(project).items()
    assert "0 of 2 runs to train" in call("sweep", "--on", "ray", "--workers", "1").stderr


@pytest.mark.skipif(HAS_RAY, reason="ray is installed")
@pytest.mark.parametrize("command", [("cache-logits", "main"), ("sweep",), ("train-teacher", "tutor")])
@pytest.mark.parametrize("folder", [False, True])
def test_the_missing_library_is_told_with_its_extra(project, command, folder, capsys, monkeypatch):
    if folder:
        monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    if command == ("sweep",):
        assert run("cache-logits", "main") == 0
    assert run(*command, "--on", "ray") == 1
    assert "--on ray needs ray, which is not installed; run: pip install" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (("--on", "dask"), 2, "'dask'; expected ray, or ray://HOST:PORT"),
        (("--on", "ray://host"), 2, "expected ray, or ray://HOST:PORT"),
        (("--on", "ray", "--device", "cuda:1"), 2, "each worker gets a GPU of its own"),
        (("--on", "ray", "--shards", "0/2"), 1, "--shards is for jobs without an engine"),
    ],
)
def test_options_that_make_no_sense_are_refused(project, options, status, message, capsys):
    assert run("cache-logits", "main", *options) == status
    assert message in capsys.readouterr().err


def test_an_ensemble_is_no_work_for_an_engine(project, edit, capsys):
    edit({"ensembles": {"both": {"of": ["main", "other"]}}})
    edit({"dumps": {"other": {"teacher": "tutor", "views": {"count": 3, "seed": 3}}}})
    assert run("cache-logits", "both", "--on", "ray") == 1
    assert "--on does not apply to ensemble 'both'" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "threads"), [("", 1), ("4", 4), ("0", 1), ("4,2", 1)])
def test_a_worker_has_the_threads_of_the_environment(given, threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert threads_per_worker() == threads


def test_an_engine_has_the_address_that_is_asked_for():
    assert make_engine("ray", "auto", None).address is None
    assert make_engine("ray://head:10001", "cpu", 3).address == "ray://head:10001"
