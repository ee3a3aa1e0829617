"""The wheel's contents and commands, tested in a separate environment.

Dependencies come from the environment that runs the tests, since a second torch takes gigabytes.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
import tomllib
import zipfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest
from filelock import FileLock
from packaging.version import Version

import pipeline
from tests import patience

ROOT = Path(__file__).parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
PURE = "import sysconfig; print(sysconfig.get_path('purelib'))"
ABOUT = """
import json, pipeline
from pipeline.core.package import extra_command
from pipeline.store.records import written_by
about = {"file": pipeline.__file__, "version": pipeline.__version__, "timm": extra_command("timm")}
print(json.dumps({**about, "written_by": written_by()["softlabel-pipeline"]}))
"""
# Skip packages whose types take mypy three times as long as all others together.
MYPY = "[mypy]\nstrict = true\n[mypy-torch.*,torchvision.*,zarr.*,PIL.*]\nfollow_imports = skip\n"


@dataclass(frozen=True)
class Installed:
    """A wheel, an environment with the wheel installed, and an empty folder for commands."""

    wheel: Path
    environment: Path
    folder: Path

    def run(self, command: str, *arguments: object) -> str:
        """Run a command of the environment and return its output."""
        return call([self.environment / "bin" / command, *arguments], self.folder)


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel of this checkout, built and installed once per test run, for all its processes."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "wheel"
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            install(build(folder), folder / "environment")
            (folder / "done").touch()
    return Installed(next(folder.glob("*.whl")), folder / "environment", tmp_path_factory.mktemp("empty"))


def build(folder: Path) -> Path:
    """Build the wheel of a copy of this checkout, tests included, without a network."""
    found = version("setuptools")
    assert Version(found) >= Version("77"), (
        f"setuptools is {found}; expected 77 or newer; run: make develop"
    )
    source = folder / "source"
    for name in ("pipeline", "stages", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    call([sys.executable, "-c", BUILD, folder], source)
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel: Path, environment: Path) -> None:
    """Install a wheel into a new environment that shares all other packages with these tests."""
    call([sys.executable, "-m", "venv", environment], wheel.parent)
    python = environment / "bin/python"
    # A .pth file adds them after the environment's own packages. Their own .pth files, which may name this
    # checkout, are not followed.
    shared = [path for path in sys.path if Path(path).name == "site-packages"]
    own = call([python, "-c", PURE], wheel.parent).strip()
    Path(own, "shared.pth").write_text("\n".join(shared) + "\n")
    call([python, "-m", "pip", "install", "--no-deps", "--no-index", "--no-compile", wheel], wheel.parent)


def call(command: list[object], folder: Path) -> str:
    """Run a command that cannot find this checkout, and return its output."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = patience.call(command, cwd=folder, env={**environment, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return done.stdout


def test_the_wheel_has_every_file_of_the_two_packages_and_no_other(installed):
    with zipfile.ZipFile(installed.wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = {
        str(file.relative_to(ROOT))
        for folder in ("pipeline", "stages")
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert sorted(files - names) == [], "name them in pyproject.toml, [tool.setuptools.package-data]"
    assert sorted(names - files) == []


def test_commands_run_from_the_wheel_and_name_its_version(installed):
    assert installed.run("pipeline", "--version") == f"pipeline, version {VERSION}\n"
    assert "train-student" in installed.run("pipeline", "--help")
    about = json.loads(installed.run("python", "-c", ABOUT))
    assert Path(about["file"]).is_relative_to(installed.environment)
    assert about["version"] == about["written_by"] == VERSION


def test_the_wheel_brings_presets_and_the_built_in_data(installed):
    assert "imagenet-1k" in installed.run("pipeline", "preset")
    installed.run("pipeline", "preset", "imagenet-1k", "--out", "params.yaml")
    installed.run("pipeline", "prepare", "--set", "data.source=fashion-mnist-10k")
    description = json.loads((installed.folder / "data/prepared/dataset.json").read_text())
    assert len(description["classes"]) == 10


def test_the_command_that_errors_give_for_an_extra_asks_no_registry(installed):
    command = json.loads(installed.run("python", "-c", ABOUT))["timm"]
    assert command == "pip install 'softlabel-pipeline[timm]'"
    program, *arguments = shlex.split(command)
    installed.run(program, *arguments, "--no-index", "--no-deps")


def test_public_names_have_types_for_who_installs_the_wheel(installed):
    names = pipeline.__all__
    lines = [f"from pipeline import {', '.join(names)}, __version__"]
    lines += [f"reveal_type({name})" for name in (*names, "__version__", "LogitStore.open('x')")]
    (installed.folder / "program.py").write_text("\n".join(lines))
    (installed.folder / "mypy.ini").write_text(MYPY)
    python = installed.environment / "bin/python"
    told = ["--python-executable", python, "--config-file", "mypy.ini", "--cache-dir", "cache"]
    said = call([sys.executable, "-m", "mypy", *told, "program.py"], installed.folder)
    revealed = re.findall(r'program.py:(\d+): note: Revealed type is "(.*)"', said)
    assert [int(line) for line, _ in revealed] == list(range(2, len(lines) + 1))
    types = dict(zip((*names, "version", "store"), (kind for _, kind in revealed), strict=True))
    assert "Any" not in types.values()
    assert types["store"] == "pipeline.store.reader.LogitStore"
    assert types["losses"] == "types.ModuleType"
    assert types["version"] in ("str", "builtins.str")
