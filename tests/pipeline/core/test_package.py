"""The version is that of pyproject.toml wherever it is told; extras go to where the code runs."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest

import pipeline
from pipeline.core import package
from pipeline.store.records import written_by
from stages.cli import main

ROOT = Path(__file__).parents[3]


@pytest.fixture
def lies_in(monkeypatch):
    """Return a function that makes the program believe to lie in another folder."""

    def move(folder: Path) -> None:
        monkeypatch.setattr(package, "_ROOT", folder)
        package._checkout.cache_clear()

    yield move
    package._checkout.cache_clear()


def test_all_that_tell_the_version_of_a_checkout_agree(capsys):
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    main(["--version"])
    assert capsys.readouterr().out.split()[-1] == told
    assert pipeline.__version__ == written_by()["softlabel-pipeline"] == package.program_version() == told


@pytest.mark.parametrize(
    "content",
    [None, "name = ", '[project]\nname = "stranger"\nversion = "9"', 'project = "x"', "[project]", b"\xff"],
)
def test_beside_a_strangers_file_the_installed_version_is_told(lies_in, tmp_path, monkeypatch, content):
    if content is not None:
        (tmp_path / "pyproject.toml").write_bytes(
            content if isinstance(content, bytes) else content.encode()
        )
    lies_in(tmp_path)
    monkeypatch.setattr(package, "version", lambda name: f"{name} 7")
    assert package.program_version() == "softlabel-pipeline 7"
    assert package.extra_command("s3") == "pip install 'softlabel-pipeline[s3]'"


def test_a_program_that_is_not_installed_has_an_unknown_version(lies_in, tmp_path, monkeypatch):
    lies_in(tmp_path)
    monkeypatch.setattr(package, "NAME", "no-such-package")
    assert package.program_version() == "unknown"


def test_an_extra_is_installed_by_the_folder_of_the_checkout(lies_in, tmp_path):
    assert package.extra_command("timm") == f"pip install -e '{ROOT}[timm]'"
    folder = tmp_path / "it's here"
    folder.mkdir()
    (folder / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    lies_in(folder)
    command = package.extra_command("export")
    assert shlex.split(command) == ["pip", "install", "-e", f"{folder}[export]"]


def test_extras_that_errors_name_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [
        file.read_text() for folder in ("pipeline", "stages") for file in (ROOT / folder).rglob("*.py")
    ]
    named = {extra for text in texts for extra in re.findall(r"extra_command\('(\w+)'\)", text)}
    assert named == {"s3", "cloud", "timm", "export", "parquet", "text", "audio", "transformers", "ray"}
    assert named <= set(project["optional-dependencies"])
