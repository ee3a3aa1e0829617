"""Processors of a container: affinity, quotas of cgroups of both versions, and the cap of the commands."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from stages import runtime
from stages.runtime import bound_threads, default_workers, usable_processors
from tests.stages.conftest import run

CGROUPS = "sys/fs/cgroup"


@pytest.fixture(autouse=True)
def _a_machine_of_96(monkeypatch):
    monkeypatch.setattr(runtime, "_allowed", lambda: 96)


@pytest.fixture
def root(tmp_path):
    """Return a function that lays out a file system: {path: content}."""

    def lay_out(files: dict[str, str]) -> Path:
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)
        return tmp_path

    return lay_out


@pytest.mark.parametrize(
    ("content", "expected"),
    [("200000 100000\n", 2), ("150000 100000\n", 2), ("10000 100000\n", 1), ("max 100000\n", 96), ("", 96)],
)
def test_a_quota_of_version_two_bounds_the_processors(root, content, expected):
    files = {"proc/self/cgroup": "0::/pod\n", f"{CGROUPS}/pod/cpu.max": content}
    assert usable_processors(root(files)) == expected


def test_the_quota_of_a_cgroup_around_it_holds_too(root):
    files = {"proc/self/cgroup": "0::/pod/container\n", f"{CGROUPS}/pod/cpu.max": "300000 100000",
             f"{CGROUPS}/pod/container/cpu.max": "max 100000"}  # fmt: skip
    assert usable_processors(root(files)) == 3


def test_a_container_that_sees_its_cgroup_as_the_root_is_bounded(root):
    files = {"proc/self/cgroup": "0::/../host/ab12\n", f"{CGROUPS}/cpu.max": "100000 100000"}
    assert usable_processors(root(files)) == 1


@pytest.mark.parametrize("place", ["docker/ab12/", ""])
@pytest.mark.parametrize(("quota", "expected"), [("250000", 3), ("-1", 96)])
def test_a_quota_of_version_one_bounds_the_processors(root, place, quota, expected):
    files = {"proc/self/cgroup": "9:memory:/docker/ab12\n4:cpu,cpuacct:/docker/ab12\n",
             f"{CGROUPS}/cpu,cpuacct/{place}cpu.cfs_quota_us": quota,
             f"{CGROUPS}/cpu,cpuacct/{place}cpu.cfs_period_us": "100000"}  # fmt: skip
    assert usable_processors(root(files)) == expected


def test_without_cgroups_the_processors_are_those_of_the_machine(root):
    assert usable_processors(root({})) == 96


def test_every_processor_has_a_thread_and_ranks_divide_them(monkeypatch):
    monkeypatch.setattr(runtime, "usable_processors", lambda: 96)
    assert [default_workers(sharing) for sharing in (1, 2, 8, 100)] == [96, 48, 12, 1]


def test_affinity_bounds_the_processors(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)
    assert usable_processors() == 1


def test_torch_gets_no_more_threads_than_the_quota_and_no_more_than_it_had(monkeypatch):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        monkeypatch.setattr(runtime, "usable_processors", lambda: 96)
        bound_threads()
        assert torch.get_num_threads() == 3
        monkeypatch.setattr(runtime, "usable_processors", lambda: 2)
        bound_threads()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "command",
    [["prepare"], ["report"], ["verify", "--data"], ["plan", "main"],
     ["export", "models/teachers/tutor.pt", "--format", "pt2", "--out", "x"]],
    ids=lambda command: command[0],
)  # fmt: skip
def test_every_command_that_computes_keeps_to_the_quota(project, monkeypatch, command):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        monkeypatch.setattr(runtime, "usable_processors", lambda: 1)
        run(*command)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
