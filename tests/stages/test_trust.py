"""Nothing that a store says chooses which file is loaded as a model, nor which code is run."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import ConfigError
from pipeline.core.hashing import spec_digest
from stages import paths
from tests.stages.conftest import run

STORE = Path("data/logits/main.zarr")
TUTOR = Path("models/teachers/tutor.pt")


@pytest.fixture
def dumped(project, edit) -> Path:
    """The project with its dump and a report's runs."""
    edit({"training": {"epochs": 1}})
    assert run("cache-logits", "main") == 0
    assert run("train-student", "pupil", "kd", 0, "--dump", "main") == 0
    assert run("train-student", "pupil", "scratch", 0) == 0
    return project


def _forge(name: str) -> None:
    """Give the store's teacher another name, with all digests right."""
    root = json.loads((STORE / "zarr.json").read_text())
    root["attributes"]["teacher"]["name"] = name
    (STORE / "zarr.json").write_text(json.dumps(root, sort_keys=True, indent=1) + "\n")
    manifest = json.loads((STORE / "manifest.json").read_text())
    manifest.pop("digest")
    written_by = manifest.pop("written_by")
    manifest["teacher"]["name"] = name
    manifest["metadata"]["zarr.json"] = hashlib.sha256((STORE / "zarr.json").read_bytes()).hexdigest()
    manifest |= {"digest": spec_digest(manifest), "written_by": written_by}
    (STORE / "manifest.json").write_text(json.dumps(manifest, sort_keys=True, indent=1) + "\n")


def _plant(path: Path, mark: Path) -> None:
    """Put a card that runs a command where a name leads."""
    card: dict[str, Any] = json.loads(TUTOR.with_suffix(".json").read_text())
    architecture = {"name": "subprocess:getoutput", "options": {"cmd": f"touch {mark}"}, "stem_stride": 4}
    card["architecture"] |= architecture
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(card))
    if path != TUTOR:
        shutil.copy(TUTOR, path)


@pytest.mark.parametrize(
    "name", ["../../data/logits/main.zarr/train/card", "/tmp/card", "..", "", "a/b", "tutor\n", "x" * 65]
)
def test_a_teachers_name_that_leads_elsewhere_is_refused(name):
    with pytest.raises(ConfigError, match="is not a valid name"):
        paths.teacher_checkpoint(name)


def test_a_store_whose_teacher_is_a_path_runs_nothing(dumped, capsys):
    mark = dumped / "PWNED"
    _plant(STORE / "train/card.pt", mark)
    _forge("../../data/logits/main.zarr/train/card")
    for command in (["verify", STORE, "--repair"], ["verify", STORE, "--replay", 4], ["report"]):
        capsys.readouterr()
        run(*command)
        assert not mark.exists()
        assert "asks for code" not in capsys.readouterr().err


def test_a_report_loads_the_teacher_of_params_not_of_the_store(dumped, capsys):
    mark = dumped / "PWNED"
    _plant(Path("models/teachers/other.pt"), mark)
    shutil.copytree("runs/teacher-tutor", "runs/teacher-other")
    _forge("other")
    assert run("report") == 0
    assert "asks for code" not in capsys.readouterr().err
    assert not mark.exists()


def test_a_teacher_of_other_code_than_params_name_is_not_run(dumped, capsys):
    mark = dumped / "PWNED"
    _plant(TUTOR, mark)
    # The report goes on without it.
    for command, status in (["cache-logits", "main"], 1), (["plan", "main"], 1), (["report"], 0):
        capsys.readouterr()
        assert run(*command) == status
        lines = [line for line in capsys.readouterr().err.splitlines() if "tutor.json" in line]
        assert "tutor.json: asks to run code, 'subprocess:getoutput'; a card alone" in lines[-1]
        assert lines[-1].endswith("name it in teachers.tutor.model, or run: pipeline train-teacher tutor")
    assert not mark.exists()


def test_a_flipped_bit_in_a_teacher_is_noticed_before_a_dump(project, capsys):
    content = bytearray(TUTOR.read_bytes())
    content[len(content) // 2] ^= 4
    TUTOR.write_bytes(content)
    assert run("cache-logits", "main") == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "tutor.pt: weights do not match tutor.json" in line
    assert not STORE.exists()
