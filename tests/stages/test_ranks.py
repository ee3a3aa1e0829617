"""One of several processes: they share the work if they can meet, and are refused if they cannot."""

from __future__ import annotations

import os

import pytest
import torch

from pipeline.core.errors import ConfigError
from pipeline.store.lock import WHOLE, Slice
from stages.launchers import find_launch, without_launcher
from stages.ranks import local_device, local_ranks, rank_slice, training_ranks
from tests.stages.conftest import run

CPU = torch.device("cpu")
SEVERAL = [
    {"RANK": "0", "WORLD_SIZE": "2"},
    {"RANK": "1", "WORLD_SIZE": "2"},
    {"WORLD_SIZE": "2"},
    {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"},
    {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"},
    {"SLURM_NTASKS": "2", "SLURM_PROCID": "1"},
    {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"},
    {"PMI_SIZE": "2", "PMI_RANK": "0"},
]
ALONE = [
    {},
    {"RANK": "0", "WORLD_SIZE": "1"},
    {"RANK": "3"},
    {"RANK": "", "WORLD_SIZE": "many"},
    # A batch script that calls the command without srun.
    {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},
    # An interactive step of a job of eight tasks.
    {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},
]


PREFIXES = ("SLURM_", "OMPI_", "PMI", "MPI_", "MV2_", "JSM_", "TORCHELASTIC_", "MASTER_")
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in os.environ:
        if name.startswith(PREFIXES) or name in NAMES:
            monkeypatch.delenv(name)


@pytest.fixture(params=SEVERAL, ids=lambda given: "-".join(given))
def several(request, monkeypatch) -> dict[str, str]:
    for name, value in request.param.items():
        monkeypatch.setenv(name, value)
    return request.param


def test_ranks_of_another_launcher_do_not_train(several):
    message = r"several processes \(.*; use torchrun"
    with pytest.raises(ConfigError, match=message) as caught, training_ranks(CPU):
        pass
    assert "\n" not in str(caught.value)


def test_ranks_of_another_launcher_make_no_whole_dump_but_their_parts(several):
    with pytest.raises(ConfigError, match=r"several processes \(.*--shards I/N"):
        rank_slice(WHOLE)
    assert rank_slice(Slice(1, 2)) == Slice(1, 2)


@pytest.mark.parametrize("given", ALONE, ids=lambda given: "-".join(given))
def test_one_process_works_alone(monkeypatch, given):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert rank_slice(WHOLE) == WHOLE
    with training_ranks(CPU) as ranks:
        assert (ranks.index, ranks.count) == (0, 1)


MEETING = {"MASTER_ADDR": "head", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("given", "expected", "meeting", "local"),
    [
        ({"RANK": "3", "WORLD_SIZE": "4", **MEETING}, Slice(3, 4), ("head", 29500), (0, 1)),
        (
            {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", **MEETING},
            Slice(3, 4),
            ("head", 29500),
            (1, 2),
        ),
        (
            {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_STEP_ID": "2", "SLURM_JOB_ID": "1000"}
            | {"SLURM_STEP_NODELIST": "gpu[03-04]", "SLURM_LOCALID": "1"}
            | {"SLURM_STEP_TASKS_PER_NODE": "4(x2)"},
            Slice(5, 8),
            ("gpu03", 27002),
            (1, 4),
        ),
        (
            {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "2"}
            | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4", **MEETING},
            Slice(2, 4),
            ("head", 29500),
            (2, 4),
        ),
    ],
    ids=["Kubeflow", "Ray Train", "srun", "mpirun"],
)
def test_processes_that_can_meet_share_the_work(monkeypatch, given, expected, meeting, local):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    launch = find_launch()
    assert (rank_slice(WHOLE), launch.meeting) == (expected, meeting)
    assert (launch.local_rank, local_ranks()) == local
    assert rank_slice(Slice(1, 2)) == Slice(expected.count + expected.index, 2 * expected.count)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert local_device() == f"cuda:{local[0]}"
    # Each task sees its own GPU alone, e.g. by srun --gpus-per-task=1.
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert local_device() == "cuda:0"


@pytest.mark.parametrize("given", [*SEVERAL, *ALONE], ids=lambda given: "-".join(given))
def test_a_process_without_a_launcher_is_alone(monkeypatch, given):
    """A command that a worker of Ray starts, which itself may have been started by srun."""
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    kept = without_launcher(os.environ)
    for name in given:
        if name not in kept:
            monkeypatch.delenv(name)
    assert find_launch() is None


@pytest.mark.parametrize(
    "inner",
    [
        {"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "5", **MEETING},
        {"WORLD_SIZE": "8", "RANK": "5", **MEETING},
    ],
    ids=["mpirun", "Ray Train"],
)
def test_the_inner_one_of_two_launchers_counts(monkeypatch, inner):
    step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_JOB_ID": "7"}
    for name, value in {**step, "SLURM_STEP_NODELIST": "gpu[1-2]", **inner}.items():
        monkeypatch.setenv(name, value)
    assert rank_slice(WHOLE) == Slice(5, 8)


def test_a_part_that_several_processes_got_is_divided_and_told(monkeypatch, capsys):
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", **MEETING}.items():
        monkeypatch.setenv(name, value)
    assert rank_slice(Slice(2, 3)) == Slice(8, 12)
    assert "the 4 processes of a launcher such as Ray Train or Kubeflow divide part 2/3" in (
        capsys.readouterr().err
    )


def test_processes_that_do_not_meet_are_one_line(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", **MEETING}.items():
        monkeypatch.setenv(name, value)

    def wait(*_, **given):
        raise torch.distributed.DistNetworkError("the client socket has timed out\nmore")

    monkeypatch.setattr("torch.distributed.init_process_group", wait)
    message = r"the 2 processes of .* did not meet at head:29500 \(the client socket has timed out\)"
    with pytest.raises(ConfigError, match=message), training_ranks(CPU):
        pass


def test_torchrun_under_another_launcher_is_torchrun(monkeypatch):
    given = {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2", "SLURM_STEP_NUM_TASKS": "2"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert rank_slice(WHOLE) == Slice(1, 2)


@pytest.mark.parametrize(("given", "expected"), [("2", 2), ("", 1), ("many", 1), ("0", 1), ("-1", 1)])
def test_a_number_of_ranks_that_is_none_is_one(monkeypatch, given, expected):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", given)
    assert local_ranks() == expected


@pytest.mark.parametrize(
    "command",
    [
        *(["prepare"], ["train-teacher", "tutor"], ["train-student", "pupil", "scratch", "0"]),
        *(["cache-logits", "main"], ["report"], ["verify", "data/logits/main.zarr", "--repair"]),
        ["export", "models/teachers/tutor.pt", "--format", "pt2", "--out", "tutor.pt2"],
        *(["sweep"], ["rehead", "main", "--head", "head.npz", "--out", "other"]),
        ["export-logits", "main", "--format", "parquet", "--out", "exported"],
        *(["verify", "data/logits/main.zarr", "--upgrade"], ["cache-logits", "main", "--on", "ray"]),
        ["verify", "data/logits/main.zarr", "--on", "ray"],
    ],
    ids=lambda command: " ".join(word for word in command if word[0] != "d")[:30],
)
def test_a_command_of_several_processes_ends_before_it_writes(project, monkeypatch, capsys, command):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    before = sorted(project.rglob("*"))
    assert run(*command) == 1
    assert "RANK=1" in capsys.readouterr().err.splitlines()[-1]
    assert sorted(project.rglob("*")) == before


@pytest.mark.parametrize("command", [["prepare"], ["report"]])
def test_work_that_is_not_shared_is_refused_under_torchrun_too(project, monkeypatch, capsys, command):
    given = {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "2"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert run(*command) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "torchrun started several processes (WORLD_SIZE=2 and RANK=0)" in line
    assert "use one process; run the command once" in line


def test_a_command_that_only_reads_goes_on_in_each_process(project, several, capsys):
    assert run("verify", "--data") == 0
    assert run("plan", "main") == 0
