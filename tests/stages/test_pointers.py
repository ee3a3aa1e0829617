"""Stores in a place of their own, behind pointers that DVC tracks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from pipeline.core.errors import ConfigError, IncompleteStoreError, MismatchError
from pipeline.core.hashing import file_digest
from pipeline.modalities.table import find_modality
from stages import paths
from stages.dvc import require_pointer_stage
from stages.params import Params, PlacesParams
from stages.places import find_store, place_of, write_pointer
from stages.render import stages_of
from tests.stages.dvc_projects import call, change, stages_run
from tests.stages.test_dvc_stores import fails

pytestmark = pytest.mark.usefixtures("preloaded")

POINTER = Path("data/logits/main.json")


@pytest.fixture
def params(tmp_path, monkeypatch) -> Params:
    """Parameters of a project whose store of one file lies elsewhere, with its pointer."""
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    found = Params(places=PlacesParams(logits=str(tmp_path / "big")))
    store = place_of(found, "main")
    store.mkdir(parents=True)
    (store / "manifest.json").write_text('{"shards": 1}')
    write_pointer(found, "main")
    return found


def test_a_pointer_names_place_and_manifest(params, tmp_path):
    store = tmp_path / "big" / "main.zarr"
    expected = {"manifest": file_digest(store / "manifest.json"), "place": str(store)}
    assert json.loads(POINTER.read_text()) == expected
    assert find_store(params, "main") == store


def test_a_folder_of_another_name_serves_the_same_pointer(params, tmp_path):
    (tmp_path / "big").rename(tmp_path / "moved")
    moved = Params(places=PlacesParams(logits=str(tmp_path / "moved")))
    assert find_store(moved, "main") == tmp_path / "moved" / "main.zarr"


def test_a_store_that_is_gone_is_refused(params, tmp_path):
    shutil.rmtree(tmp_path / "big")
    message = (
        r"main\.zarr: has no manifest\.json, but .*main\.json points to.*; restore it, .* rm .*main\.json"
    )
    with pytest.raises(IncompleteStoreError, match=message) as caught:
        find_store(params, "main")
    assert "\n" not in str(caught.value)


def test_a_store_that_changed_is_refused(params, tmp_path):
    (tmp_path / "big" / "main.zarr" / "manifest.json").write_text("{}")
    with pytest.raises(
        MismatchError, match=r"has changed since .*main\.json.*run|accept it with: pipeline"
    ):
        find_store(params, "main")
    write_pointer(params, "main")
    find_store(params, "main")


@pytest.mark.parametrize("text", ["", "[]", '{"manifest": 3, "place": "x"}', '{"place": "x"}'])
def test_a_damaged_pointer_is_refused(params, text):
    POINTER.write_text(text)
    with pytest.raises(MismatchError, match=r"main\.json: is not a pointer.*pipeline cache-logits main"):
        find_store(params, "main")


def test_a_missing_pointer_is_refused(params):
    POINTER.unlink()
    with pytest.raises(
        IncompleteStoreError, match=r"main\.json: is missing.*run: pipeline cache-logits main"
    ):
        find_store(params, "main")


def test_a_pointer_without_its_place_is_refused(params):
    with pytest.raises(ConfigError, match=r"places\.logits is not set; expected the folder"):
        find_store(Params(), "main")


def test_without_a_place_stores_stay_where_they_were(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pointer(Params(), "main")
    assert not POINTER.exists()
    assert find_store(Params(), "main") == place_of(Params(), "main") == paths.store("main")


def test_a_stage_that_expects_the_store_is_refused_before_the_dump(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    modality = find_modality()
    Path("dvc.yaml").write_text(stages_of(modality))
    require_pointer_stage()
    monkeypatch.setenv("DVC_STAGE", "cache-logits@main")
    with pytest.raises(ConfigError, match=r"expected data/logits/\$\{key\}\.json"):
        require_pointer_stage()
    Path("dvc.yaml").write_text(stages_of(modality, pointer=True))
    require_pointer_stage()
    laid_out = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
    for name in ("cache-logits", "average-logits", "rehead", "probe"):
        Path("dvc.yaml").write_text(
            yaml.safe_dump({"stages": {name: laid_out[name]}}).replace(".json", ".zarr")
        )
        with pytest.raises(ConfigError, match=r"expected data/logits/\$\{key\}\.json"):
            require_pointer_stage()


def test_no_stage_of_pointers_names_a_file_of_a_store():
    laid_out = yaml.safe_load(stages_of(find_modality(), pointer=True))["stages"]
    assert [name for name, stage in laid_out.items() if ".zarr" in str(stage)] == []
    assert "data/logits/${item.of}.json" in laid_out["rehead"]["do"]["deps"]
    assert "data/logits/${item.of}.json" in laid_out["probe"]["do"]["deps"]


def test_init_writes_a_project_with_pointers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "test"):
        for name in ("a", "b"):
            folder = tmp_path / "texts" / split / name
            folder.mkdir(parents=True)
            for row in range(3):
                (folder / f"{row}.txt").write_text(f"{name} text of {split}, number {row}")
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    call("pipeline", "init", "../texts", "--logits", "stores")
    assert yaml.safe_load(Path("params.yaml").read_text())["places"] == {"logits": "stores"}
    dumping = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]["cache-logits"]["do"]
    assert dumping["outs"] == [{"data/logits/${key}.json": {"persist": True}}]
    for name in (".dvcignore", ".gitignore"):
        assert "/stores" in Path(name).read_text().splitlines()
    call("dvc", "stage", "list")


def test_dvc_tracks_the_pointer_and_students_refuse_another_store(dumped_by_dvc, tmp_path):
    student = "train-student@main-pupil-kd-0"
    place = tmp_path / "big"
    shutil.rmtree("data/logits")
    Path("dvc.yaml").write_text(stages_of(find_modality(), pointer=True))
    change(lambda params: params.update(places={"logits": str(place)}))
    assert stages_run(call("dvc", "repro", student)) == ["cache-logits@main", student]
    assert not Path("data/logits/main.zarr").exists()
    assert stages_run(call("dvc", "repro", student)) == []

    # As many files as a large dump would have: none of them concerns DVC.
    store = place / "main.zarr"
    recorded = yaml.safe_load(Path("dvc.lock").read_text())["stages"]
    (out,) = recorded["cache-logits@main"]["outs"]
    assert (out["path"], "nfiles" in out) == (str(POINTER), False)
    assert str(POINTER) in [dep["path"] for dep in recorded[student]["deps"]]
    store.rename(tmp_path / "away")
    assert call("dvc", "status", student).strip() == "Data and pipelines are up to date."

    # Gone, then back.
    change(lambda params: params["recipes"]["kd"].update(temperature=2))
    assert f"{store}: has no manifest.json, but {POINTER} points to" in fails("dvc", "repro", student)
    (tmp_path / "away").rename(store)

    # More views change the pointer, so students follow.
    change(lambda params: params["dumps"]["main"]["views"].update(count=4))
    assert stages_run(call("dvc", "repro", student)) == ["cache-logits@main", student]
