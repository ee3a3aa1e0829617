"""Other last layers over a dump by the commands: files, class maps, probes, and their students."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from pipeline import LogitStore, PreparedData, ReplayDataset
from pipeline.dump.spec import splits_of
from pipeline.store.labels import words_of
from pipeline.store.opening import open_logits
from pipeline.store.rehead import Reheaded
from tests.stages.conftest import PARAMS, run

STORE, NEW = Path("data/logits/main.zarr"), Path("data/logits/new.zarr")
# A budget that the small teacher's features keep under any head.
FINE = {"dumps": {"main": {"codec": "features", "max_kl": 1e-6}}}
LOOSE = ("--max-kl", 1)


@pytest.fixture(scope="module")
def dumped(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a dump that keeps features."""
    folder = tmp_path_factory.mktemp("rehead") / "project"
    shutil.copytree(template, folder)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["dumps"]["main"] |= FINE["dumps"]["main"]
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert run("cache-logits", "main") == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def dump(dumped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which is the working folder."""
    folder = tmp_path / "dump"
    shutil.copytree(dumped, folder)
    monkeypatch.chdir(folder)
    return folder


def features(view: int = 0) -> torch.Tensor:
    """Return the stored features (N, D) of a view."""
    store = LogitStore.open(STORE)
    assert store.codec.features is not None
    arrays = {name: torch.from_numpy(values) for name, values in store.encoded_view(view).items()}
    return store.codec.features.decode(arrays)


def own_head() -> dict[str, Any]:
    """Return the teacher's last layer as the parts of a head's file, without its last class."""
    state = LogitStore.open(STORE).codec.state
    names = np.array(PreparedData.open(Path("data/prepared")).classes)
    return {"weight": state["weight"].numpy(), "bias": state["bias"].numpy(), "classes": names}


def write(path: str = "head.npz", **parts: Any) -> str:
    """Write the teacher's own last layer with some parts replaced; None leaves one out."""
    kept = {name: value for name, value in {**own_head(), **parts}.items() if value is not None}
    np.savez(path, **kept)
    return path


def error(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("pipeline:")]
    return line


def test_the_teachers_own_head_gives_its_own_labels_and_trains_a_student(dump, edit, capsys):
    edit({"reheads": {"new": {"of": "main", "head": write()}}})
    size = sum(file.stat().st_size for file in STORE.rglob("*") if file.is_file())
    assert run("cache-logits", "new") == 0
    said = capsys.readouterr().out
    assert "new: main with head head.npz, 3 views, 4 classes" in said
    assert "estimated on 77 rows" in said
    assert {file.name for file in NEW.iterdir()} == {"head.safetensors", "manifest.json"}
    assert sum(file.stat().st_size for file in STORE.rglob("*") if file.is_file()) == size
    made, store = open_logits(NEW), LogitStore.open(STORE)
    for view in range(3):
        torch.testing.assert_close(made.view(view), store.view(view))
    prepared = PreparedData.open(Path("data/prepared"))
    assert made.label_changes(words_of(splits_of(prepared))).changed is False
    dataset = ReplayDataset(NEW, "data/prepared")
    dataset.set_view(2)
    place = store.rows_of(prepared.train)[5]
    torch.testing.assert_close(dataset[5][2], store.view(2)[place])
    assert run("train-student", "pupil", "kd", 0, "--dump", "new") == 0
    edit({"sweep": {"dumps": ["new"], "baselines": []}})
    assert run("report") == 0, capsys.readouterr().err
    results = json.loads(Path("reports/results.json").read_text())
    assert results["dumps"]["new"]["teacher"] == "tutor"
    assert (
        results["dumps"]["new"]["teacher_top1"]
        == json.loads((NEW / "manifest.json").read_text())["teacher_top1"]
    )
    assert results["students"][0]["agreement"] is not None


def test_a_head_of_safetensors_is_taken_at_any_place_of_the_row(dump, capsys):
    parts = own_head()
    tensors = {name: torch.from_numpy(parts[name]).half() for name in ("weight", "bias")}
    save_file(tensors, "head.safetensors", metadata={"classes": json.dumps(parts["classes"].tolist())})
    assert run("rehead", "main", "--head", "head.safetensors", "--out", "new") == 0
    told = capsys.readouterr().err
    assert "add to params.yaml: reheads: {new: {of: main, head: head.safetensors}}" in told
    expected = features(1) @ tensors["weight"].float().T + tensors["bias"].float()
    found = open_logits(NEW).view(1)
    torch.testing.assert_close(found, expected - expected.amax(1, keepdim=True), rtol=1e-4, atol=1e-4)


def test_merged_classes_have_the_sum_of_their_probabilities(dump, capsys):
    classes = own_head()["classes"].tolist()
    Path("groups.yaml").write_text(yaml.safe_dump({"low": classes[:2], "high": [3]}, sort_keys=False))
    assert run("rehead", "main", "--head", "groups.yaml", "--out", "new") == 0
    said = capsys.readouterr()
    assert "1 of 4 classes are in no group and left out: 2" in said.err
    assert "the head has 2 classes (low, high), and the data has 4 (0, 1, 2" in said.err
    each = LogitStore.open(STORE).view(2).double().softmax(1)
    low, high = each[:, 0] + each[:, 1], each[:, 3]
    found = open_logits(NEW).view(2).double().softmax(1)
    torch.testing.assert_close(found[:, 0], low / (low + high), rtol=1e-4, atol=1e-6)
    assert run("inspect", NEW, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["n_classes"], summary["rehead"]["of"]) == (2, "main.zarr")


def test_a_student_of_other_classes_than_the_datas_is_refused(dump, edit, capsys):
    Path("groups.yaml").write_text(yaml.safe_dump({"low": [0, 1], "high": [2, 3]}))
    edit({"reheads": {"new": {"of": "main", "head": "groups.yaml"}}})
    assert run("cache-logits", "new") == 0
    capsys.readouterr()
    assert run("train-student", "pupil", "kd", 0, "--dump", "new") == 1
    line = error(capsys)
    assert "new: the head has 2 classes (high, low), and the data has 4 (0, 1, 2" in line


def test_prototypes_compare_directions(dump):
    vectors = np.random.default_rng(0).normal(size=own_head()["weight"].shape).astype(np.float32)
    path = write(weight=None, bias=None, prototypes=vectors, temperature=np.float32(0.5))
    assert run("rehead", "main", "--head", path, "--out", "new", *LOOSE) == 0
    cosines = torch.nn.functional.cosine_similarity(
        features()[:, None], torch.from_numpy(vectors)[None], dim=2
    )
    expected = cosines / 0.5
    found = open_logits(NEW).view(0)
    torch.testing.assert_close(found, expected - expected.amax(1, keepdim=True), rtol=1e-4, atol=1e-4)


def test_a_probe_learns_the_labels_without_the_teacher(dump, edit, capsys):
    shutil.rmtree("models")
    edit({"probes": {"new": {"of": "main", "max_kl": 1}}})
    assert run("cache-logits", "new") == 0, capsys.readouterr().err
    first = (NEW / "head.safetensors").read_bytes()
    data = PreparedData.open(Path("data/prepared"))
    made = open_logits(NEW)
    right = made.view(0)[made.rows_of(data.train)].argmax(1).numpy() == data.train.labels
    assert right.mean() > 0.8
    assert isinstance(made, Reheaded)
    assert made.finding.teacher_top1 is not None
    assert run("cache-logits", "new") == 0
    assert (NEW / "head.safetensors").read_bytes() == first
    edit({"data": {"labels_per_class": 2}})
    assert run("cache-logits", "new") == 0
    assert "24 labelled rows" in capsys.readouterr().err
    assert (NEW / "head.safetensors").read_bytes() != first


def test_a_head_too_sharp_for_the_features_is_refused_and_writes_nothing(dump, capsys):
    weight = np.random.default_rng(0).normal(0, 30, own_head()["weight"].shape).astype(np.float32)
    path = write(weight=weight)
    assert run("rehead", "main", "--head", path, "--out", "new") == 1
    line = error(capsys)
    assert "the features of dump 'main' are too coarse for this head: KL(teacher || cached)" in line
    assert "expected at most 0.001 on average; raise max_kl" in line
    assert not NEW.exists()


def test_a_dump_of_logits_alone_is_refused_with_the_way_out(project, capsys):
    assert run("cache-logits", "main") == 0
    Path("groups.yaml").write_text("{low: [0, 1], high: [2, 3]}")
    assert run("rehead", "main", "--head", "groups.yaml", "--out", "new") == 1
    line = error(capsys)
    assert "codec affine8 keeps outputs alone" in line
    assert "dump again under a new name with codec: features" in line


def test_a_dump_that_has_grown_is_noticed_and_its_new_views_are_there_after_another_run(dump, edit, capsys):
    edit({"reheads": {"new": {"of": "main", "head": write()}}})
    assert run("cache-logits", "new") == 0
    edit({"dumps": {"main": {"views": {"count": 4}}}})
    assert run("cache-logits", "main") == 0
    capsys.readouterr()
    assert run("train-student", "pupil", "kd", 0, "--dump", "new") == 1
    assert "refers to an older main.zarr" in error(capsys)
    assert run("cache-logits", "new") == 0
    assert open_logits(NEW).n_views == 4


def test_damage_behind_a_re_headed_dump_is_seen_through_it(dump, capsys):
    assert run("rehead", "main", "--head", write(), "--out", "new") == 0
    capsys.readouterr()
    assert run("verify", NEW, "--replay", 12, "--json") == 0
    audit = json.loads(capsys.readouterr().out)
    assert (audit["ok"], audit["replayed"]) == (True, 12)
    shard = next(file for file in STORE.glob("train/codes/c/1/**/*") if file.is_file())
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(bytes(content))
    assert run("verify", NEW) == 1
    told = capsys.readouterr()
    assert "train/codes/c/1" in told.out + told.err
    assert run("verify", NEW, "--repair") == 1
    assert "repair the dump behind it" in error(capsys)


def test_a_changed_head_is_noticed(dump, edit, capsys):
    edit({"reheads": {"new": {"of": "main", "head": write()}}})
    assert run("cache-logits", "new") == 0
    write(bias=own_head()["bias"] + np.float32([1, 0, 0, 0]))
    assert run("train-student", "pupil", "kd", 0, "--dump", "new") == 1
    assert "rebuild it with: pipeline cache-logits new" in error(capsys)
    stored = NEW / "head.safetensors"
    content = bytearray(stored.read_bytes())
    content[-1] ^= 1
    stored.write_bytes(bytes(content))
    assert run("inspect", NEW) == 1
    assert "head.safetensors changed since it was written" in error(capsys)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"weight": None}, "has bias, classes; expected weight (C, D) or prototypes (C, D), and classes"),
        ({"classes": None}, "has bias, weight; expected"),
        ({"weight": np.zeros((4, 7), np.float32)}, "the head has weights of 7 features; expected 64"),
        ({"weight": np.zeros((4, 64), np.int64)}, "weight is int64; expected floats (C, D)"),
        ({"weight": np.full((4, 64), np.nan, np.float32)}, "weight has NaN or infinite values"),
        ({"weight": np.zeros(4, np.float32)}, "weight has shape (4,); expected (C, D)"),
        ({"bias": np.zeros(3, np.float32)}, "bias has 3 values for 4 rows"),
        ({"classes": np.array(["a", "b", "a", "c"])}, "two outputs are named 'a'"),
        ({"classes": np.array(["a", "b"])}, "has 2 classes for 4 outputs"),
        ({"classes": np.array(["a", "b", "c", None])}, "it has pickled objects, which could run code"),
        ({"groups": np.array([0, 2, 2, -1])}, "groups are 0, 2; expected 0 to C - 1, each used"),
        ({"temperature": np.float32(1)}, "has weight and temperature; expected prototypes"),
    ],
)
def test_a_file_that_is_no_head_is_one_line(dump, capsys, parts, message):
    assert run("rehead", "main", "--head", write(**parts), "--out", "new") == 1
    assert message in error(capsys)
    assert not NEW.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{a: [0, 1], b: [1, 2]}", "'1' is in 'a' and 'b'; expected each class in one group"),
        ("{a: [0, 9], b: [1]}", "9 is no class of the teacher; expected one of its 4 classes"),
        ("{a: [0, 1, 2]}", "has one class; expected two or more for a softmax"),
        ("[a, b]", "no class map; expected {new class: [old class, ...]}"),
    ],
)
def test_a_class_map_that_does_not_fit_is_one_line(dump, capsys, content, message):
    Path("groups.yaml").write_text(content)
    assert run("rehead", "main", "--head", "groups.yaml", "--out", "new") == 1
    assert message in error(capsys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reheads": {"new": {"of": "other", "head": "h.npz"}}}, "reheads.new.of names 'other'"),
        ({"reheads": {"main": {"of": "main", "head": "h.npz"}}}, "'main' is both a dump and a re-headed"),
        ({"reheads": {"new": {"of": "main", "head": "probe"}}}, "a probe is an entry of `probes`"),
        ({"probes": {"new": {"of": "main", "penalty": 0}}}, "penalty is 0.0; expected more than 0"),
        ({"probes": {"new": {"of": "main", "head": "h"}}}, "unknown key probes.new.head; expected one of"),
    ],
)
def test_parameters_that_make_no_head_are_refused(dump, edit, capsys, change, message):
    edit(change)
    assert run("cache-logits", "main") == 1
    assert message in capsys.readouterr().err


def test_what_cannot_be_re_headed_is_named(dump, edit, capsys):
    edit({"reheads": {"new": {"of": "main", "head": write()}}, "dumps": {"b": PARAMS["dumps"]["main"]}})
    edit({"ensembles": {"both": {"of": ["main", "b"]}}})
    assert run("rehead", "new", "--head", "head.npz", "--out", "newer") == 1
    assert "'new' is a re-headed dump, which keeps no features of its own" in error(capsys)
    assert run("rehead", "both", "--head", "head.npz", "--out", "newer") == 1
    assert "re-head one of main, b" in error(capsys)
    assert run("rehead", "main", "--head", "none.npz", "--out", "newer") == 1
    assert "none.npz: no such file" in error(capsys)
    assert run("rehead", "main", "--head", "head.npz", "--out", "main") == 1
    assert "'main' is defined differently in params.yaml" in error(capsys)


def test_a_plan_costs_no_forward_pass(dump, edit, capsys):
    edit({"reheads": {"new": {"of": "main", "head": write()}}})
    assert run("plan", "new", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["teacher_forwards"], found["bytes_total"]) == (0, 4 * (4 * 64 + 4))
    assert not NEW.exists()


def test_an_encoder_in_a_job_of_classes_gets_its_heads_there(project, edit, capsys):
    """One params.yaml: a teacher that gives embeddings, its dump, a probe of it, and a student."""
    weights = "models/teachers/tutor.pt"
    shutil.copy(weights, "tutor.pt")
    shutil.copy("models/teachers/tutor.json", "tutor.json")
    encoder = {"model": "resnet8", "weights": "tutor.pt", "output": "embedding"}
    vectors = {**PARAMS["dumps"]["main"], "teacher": "encoder", "codec": "auto", "max_error": 1e-4}
    vectors["allow_poor_teacher"] = True
    edit({"teachers": {"encoder": encoder}, "dumps": {"vectors": vectors}})
    edit({"probes": {"new": {"of": "vectors", "max_kl": 1}}})
    for command in ("train-teacher encoder", "plan vectors", "cache-logits vectors", "cache-logits new"):
        assert run(*command.split()) == 0, capsys.readouterr().err
    assert run("train-student", "pupil", "kd", 0, "--dump", "vectors") == 1
    line = error(capsys)
    assert "is of task 'embedding', and the data of task 'classes'" in line
    assert "pipeline rehead vectors --head FILE" in line
    assert run("train-student", "pupil", "kd", 0, "--dump", "new") == 0, capsys.readouterr().err
    edit({"sweep": {"dumps": ["new"], "baselines": []}})
    assert run("report") == 0, capsys.readouterr().err
    assert run("verify", NEW, "--replay", 12) == 0, capsys.readouterr().err
    assert run("verify", "data/logits/vectors.zarr", "--replay", 12) == 0, capsys.readouterr().err


def test_a_dump_in_a_place_of_its_own_is_re_headed_there(dump, edit):
    edit({"places": {"logits": "big"}})
    Path("data/logits").rename("big")
    assert run("rehead", "main", "--head", "map.yaml", "--out", "new") == 1
    Path("map.yaml").write_text("{a: [0, 1], b: [2, 3]}")
    assert run("rehead", "main", "--head", "map.yaml", "--out", "new") == 0
    assert open_logits("big/new.zarr").n_classes == 2
    assert json.loads(Path("data/logits/new.json").read_text())["place"] == "big/new.zarr"
