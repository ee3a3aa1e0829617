"""A store that somebody else made is data: it chooses no file and no code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.pipeline.store.forging import forge
from tests.stages.conftest import run

CARD = {
    "architecture": {"name": "subprocess:getoutput", "num_classes": 4, "channels": 3, "stem_stride": 1}
    | {"options": {"cmd": "touch PWNED"}},
    "preprocessing": {"size": 16, "mean": [0.5] * 3, "std": [0.5] * 3, "crop_fraction": 1.0},
    "classes": ["0", "1", "2", "3"],
}


@pytest.fixture(scope="module")
def done(template, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("done") / "project"
    shutil.copytree(template, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run("cache-logits", "main") == 0
        assert run("train-student", "pupil", "kd", 0, "--dump", "main") == 0
        assert run("train-student", "pupil", "scratch", 0) == 0
    return folder


@pytest.fixture
def store(done, tmp_path, monkeypatch) -> Path:
    shutil.copytree(done, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return Path("data/logits/main.zarr")


@pytest.mark.parametrize("name", ["../../data/logits/main.zarr/train/card", "{here}/card", "v1.0"])
def test_a_teachers_name_is_no_path(store, name, capsys):
    for folder in (store / "train", Path("models/teachers")):
        (folder / "card.json").write_text(json.dumps(CARD))
        shutil.copy("models/teachers/tutor.pt", folder / "card.pt")
    name = name.format(here=(store / "train").absolute())
    forge(store, lambda manifest: manifest["teacher"].update(name=name))
    assert run("report") == 0
    assert (
        f"teacher 'tutor' is named {name!r} in the store; the weights are the same"
        in capsys.readouterr().err
    )
    for file in (store / "train").glob("card.*"):
        file.unlink()
    for asked in (["--replay", 2], ["--repair"]):
        assert run("verify", store, *asked) == 1
        assert "is not a valid name" in capsys.readouterr().err
    assert run("verify", store) == 0
    assert run("inspect", store) == 0
    assert not Path("PWNED").exists()


def test_a_forged_store_ends_each_command_in_one_line(store, capsys):
    forge(store, lambda manifest: manifest["metadata"].update({"../../../params.yaml": "0" * 64}))
    before = Path("params.yaml").read_bytes()
    commands = (
        *(("inspect", store), ("inspect", store, "--json"), ("verify", store), ("report",)),
        *(("train-student", "pupil", "kd", 1, "--dump", "main"), ("cache-logits", "main")),
    )
    for command in commands:
        assert run(*command) == 1
        said = capsys.readouterr().err.splitlines()
        assert "metadata lists '../../../params.yaml', which is not a file of this layout" in said[-1]
    assert run("verify", store, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"]
    assert len(found["bad"]) == 1
    run("verify", store, "--repair")
    assert Path("params.yaml").read_bytes() == before
