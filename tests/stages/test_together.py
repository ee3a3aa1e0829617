"""Training by several processes: ranks that train one model, and students that share a store."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path

import pytest

from tests import patience
from tests.stages.conftest import run
from tests.stages.dvc_projects import ENVIRONMENT

# No dropout in it, and a step that two ranks share evenly or not.
STUDENT = ("batch_size=15", "model=wrn_16_2", "learning_rate=0.003")
STUDENT = tuple(word for text in STUDENT for word in ("--set", f"students.pupil.{text}"))
METRICS = Path("runs/main-pupil-kd-0/metrics.json")
FIGURES = ("nll", "kl_to_teacher", "validation_top1", "best_epoch")

Done = subprocess.CompletedProcess[str]
pytestmark = pytest.mark.usefixtures("preloaded")


def by_two_ranks(*arguments: str, launcher: tuple[str, ...] = ("--no-python", "pipeline")) -> Done:
    options = ("--standalone", "--nproc-per-node=2", *launcher)
    return patience.call(["torchrun", *options, *arguments], env=ENVIRONMENT)


def start(*arguments: str, **variables: str) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(["pipeline", *arguments], env={**ENVIRONMENT, **variables}, **pipes)


def test_ranks_of_any_launcher_train_the_student_that_one_process_trains(project):
    assert run("cache-logits", "main") == 0
    words = ("train-student", "pupil", "kd", "0", "--dump", "main", *STUDENT)
    assert run(*words) == 0
    alone = json.loads(METRICS.read_text())
    METRICS.unlink()
    done = by_two_ranks(*words)
    assert done.returncode == 0, done.stderr
    together = json.loads(METRICS.read_text())
    assert together["nll"] == pytest.approx(alone["nll"], rel=0.02)
    assert together["validation_top1"] == pytest.approx(alone["validation_top1"], abs=0.06)
    assert done.stdout.count("test top-1") == 1
    assert done.stderr.count("epoch 2/2") == 1
    assert not list(Path("runs/.state").glob("*.pt"))
    METRICS.unlink()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "SLURM_STEP_NUM_TASKS": "2"}
    ranks = [start(*words, **meeting, SLURM_PROCID=str(rank)) for rank in (0, 1)]
    told = [patience.finish(rank) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], told
    assert sum(out.count("test top-1") for out, _ in told) == 1
    found = json.loads(METRICS.read_text())
    for figure in FIGURES:
        assert found[figure] == together[figure]


GROUP = """
import sys
import torch.distributed as dist
from stages.cli import main

dist.init_process_group("gloo")
try:
    main(sys.argv[1:])
except SystemExit as done:
    assert not done.code
assert dist.is_initialized() and dist.get_world_size() == 2
"""


def test_a_process_group_that_exists_is_used_as_it_is(project):
    Path("group.py").write_text(GROUP)
    done = by_two_ranks("train-student", "pupil", "scratch", "0", *STUDENT, launcher=("group.py",))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test top-1") == 1


def test_a_step_that_ranks_cannot_share_is_refused(project):
    done = by_two_ranks("train-student", "pupil", "scratch", "0", "--set", "students.pupil.accumulate=16")
    assert done.returncode != 0
    assert "batch_size 16 is too small for 16 parts on 2 processes; expected at least 32" in done.stderr
    # torchrun has a traceback of its own.
    assert done.stderr.index("pipeline: batch_size 16") < done.stderr.index("Traceback")


def test_two_students_learn_from_one_store_at_once(project):
    assert run("cache-logits", "main") == 0
    at_once = [start("train-student", "pupil", "kd", str(seed), "--dump", "main") for seed in (1, 2)]
    told = [patience.finish(student) for student in at_once]
    assert [student.returncode for student in at_once] == [0, 0], told
    metrics = Path("runs/main-pupil-kd-1/metrics.json")
    together = json.loads(metrics.read_text())
    metrics.unlink()
    assert patience.finish(alone := start("train-student", "pupil", "kd", "1", "--dump", "main"))
    assert alone.returncode == 0
    for figure in FIGURES:
        assert together[figure] == json.loads(metrics.read_text())[figure]
