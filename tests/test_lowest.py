"""The lower bounds of pyproject.toml equal the versions that `make lowest` tests."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def lowest():
    spec = importlib.util.spec_from_file_location("lowest", ROOT / ".ci/lowest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_lower_bound_is_tried_but_those_of_torch_and_dvc(lowest):
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    tried = lowest.lowest_versions(ROOT / "pyproject.toml")
    bounded = {Requirement(line).name: Requirement(line).specifier for line in lines}
    assert set(bounded) - set(tried) == {"torch", "torchvision", "dvc"}
    for name, version in tried.items():
        assert Version(version) in bounded[name]
        below = [part.version for part in bounded[name] if part.operator == ">="]
        assert below == [version]


def test_torch_is_not_allowed_below_a_reported_hole():
    # CVE-2026-24747: before 2.10, loading weights only could run code of a file.
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    allowed = {Requirement(line).name: Requirement(line).specifier for line in lines}
    assert Version("2.10") in allowed["torch"]
    assert not any(Version(version) in allowed["torch"] for version in ("2.9.1", "2.9.99"))
    assert not any(Version(version) in allowed["torchvision"] for version in ("0.24.1", "0.24.99"))


def test_the_lower_bounds_of_the_extras_that_commands_import_are_tried(lowest):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    tried = lowest.lowest_extras(ROOT / "pyproject.toml")
    assert [f"{name}>={version}" for name, version in tried.items()] == extras["timm"] + extras["export"]
    assert set(tried) == {"timm", "onnx", "onnxscript", "onnxruntime"}
    assert any("onnx" in command for command in lowest.JOB)
    assert "timm:" in lowest.PARAMS


@pytest.mark.parametrize(
    "line", ["click", "click<9", "click==8.1", "click>8", "click>=8.1; python_version>'3'"]
)
def test_a_dependency_whose_lowest_version_is_not_told_is_refused(lowest, tmp_path, line):
    (tmp_path / "pyproject.toml").write_text(f'[project]\ndependencies = ["{line}"]\n')
    with pytest.raises(ValueError, match=r"expected NAME>=VERSION"):
        lowest.lowest_versions(tmp_path / "pyproject.toml")


def test_the_job_runs_the_commands_of_a_main_job(lowest):
    used = {command[0] for command in lowest.JOB}
    assert used >= {
        "prepare",
        "train-teacher",
        "cache-logits",
        "train-student",
        "report",
        "inspect",
        "verify",
    }


def test_no_command_imports_dvc():
    for folder in ("pipeline", "stages"):
        for file in (ROOT / folder).rglob("*.py"):
            assert not re.search(r"^\s*(import|from) dvc\b", file.read_text(), re.MULTILINE), file


def test_continuous_integration_tries_them():
    assert "lowest" in (ROOT / ".ci/run").read_text()
    assert ".ci/lowest.py" in (ROOT / "Makefile").read_text()
