"""`pipeline init` for a folder of sounds."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from stages.params_file import load_params
from tests import patience
from tests.pipeline.modalities.audio.clips import noise, tone, write
from tests.stages.conftest import run
from tests.stages.dvc_projects import ENVIRONMENT
from tests.stages.test_init import STAGES, asked

pytestmark = pytest.mark.usefixtures("preloaded")


def record(folder: Path, each: int = 12, seconds: float = 0.3) -> Path:
    """Write tones of three pitches into folders of classes."""
    for label, hertz in (("low", 300), ("middle", 800), ("high", 2000)):
        for number in range(each):
            clip = (
                tone(hertz, int(11_025 * seconds), rate=11_025) + noise(int(11_025 * seconds), number) // 10
            )
            write(folder / label / f"{number}.wav", clip, 11_025)
    return folder


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """A project of `pipeline init`; the sounds lie beside it."""
    folder = tmp_path_factory.mktemp("begun")
    record(folder / "sounds")
    (folder / "project").mkdir()
    before = Path.cwd()
    os.chdir(folder / "project")
    try:
        assert run("init", "../sounds") == 0
    finally:
        os.chdir(before)
    return folder / "project"


def test_sounds_are_recognised_and_fitted(begun):
    params = load_params(begun / "params.yaml")
    assert (params.data.modality, params.data.source) == ("audio", "folder:../sounds")
    assert (params.data.options.sample_rate, params.data.options.clip_seconds) == (16_000, 0.3)
    assert "train 28, test 8 clips; 0.30 to 0.30 seconds" in (begun / "params.yaml").read_text()
    assert params.dump("main").views.count == 16


def test_dvc_finds_every_key_that_its_stages_name(begun):
    stages = (begun / "dvc.yaml").read_text()
    assert "- data.clip_seconds" in stages
    assert "image_size" not in stages
    assert sorted(asked(begun, "stage", "list", "--name-only").split()) == STAGES
    assert "prepare" in asked(begun, "status", "prepare")


def test_files_without_a_header_are_told(tmp_path, monkeypatch, capsys):
    record(tmp_path / "sounds", each=6)
    (tmp_path / "sounds/low/x.wav").write_bytes(b"no sound")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run("init", "../sounds") == 0
    assert "1 of " in (told := capsys.readouterr().err)
    assert "have no sound header: low/x.wav" in told


@pytest.mark.slow
def test_the_project_runs(tmp_path, monkeypatch):
    """All of it, as a user would; with fewer epochs."""
    record(tmp_path / "sounds", each=60)
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    assert run("init", "../sounds") == 0
    params = Path("params.yaml")
    params.write_text(params.read_text().replace("epochs: 64", "epochs: 16"))
    done = patience.call(["dvc", "repro"], cwd=Path.cwd(), env=ENVIRONMENT)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(Path("reports/results.json").read_text())
    found = {run["recipe"]: run["top1"] > 0.6 for run in results["students"]}
    assert found == {"kd": True, "scratch": True}
