"""Items go through every command, from the preset to the report and an exported network."""

from __future__ import annotations

import base64
import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from pipeline import Feed, Loader, LogitStore, ReplayDataset, Targets
from pipeline.losses import kd
from pipeline.modalities.prepared import PreparedData
from pipeline.modalities.table import views_of
from pipeline.models.checkpoint import load_checkpoint
from pipeline.models.teacher import Teacher
from stages.params_file import load_params
from tests.pipeline.modalities.items.logs import rows, write_csv, write_inter
from tests.stages.conftest import run
from tests.stages.test_init import asked

SMALL = (
    *("data.source=inter:log", "data.watch=log", "data.samples_per_user=null", "data.max_length=12"),
    *("training.batch_size=32", "training.epochs=10", "training.learning_rate=0.02"),
    *("teachers.teacher.options={dim: 16, layers: 1}", "teachers.teacher.epochs=16"),
    *("dumps.main.views.count=2", "dumps.main.allow_poor_teacher=true"),
    *("students.small.options={dim: 8, layers: 1}", "students.recurrent.options={dim: 8, hidden: 8}"),
    *(
        "training.views={seed: 1, mask: {probability: 0.1}}",
        "students.recurrent.preprocessing.max_length=6",
    ),
    "dumps.main.views={count: 2, seed: 1, crop: {}, mask: {probability: 0.1}, reorder: {share: 0.3}}",
)


def pipeline(*arguments: object) -> int:
    """Run a command on the preset with small changes."""
    changes = [part for change in SMALL for part in ("--set", change)]
    return run(arguments[0], *changes, *arguments[1:])


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The preset's job on a small log, made once; to be read only."""
    folder = tmp_path_factory.mktemp("items")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_inter(folder / "log/walks.inter", rows())
        assert run("preset", "items", "--out", "params.yaml") == 0
        for command in (
            *("prepare", "train-teacher teacher", "plan main", "cache-logits main"),
            *("train-student small kd 0 --dump main", "train-student recurrent kd 0 --dump main"),
            *("train-student small scratch 0", "train-student recurrent scratch 0", "report"),
        ):
            assert pipeline(*command.split()) == 0
    return folder


@pytest.fixture
def project(made, tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "project"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    return folder


def test_the_presets_job_ends_in_a_report(made):
    results = json.loads((made / "reports/results.json").read_text())
    assert len(results["students"]) == 4
    for row in (*results["students"], results["teachers"]["teacher"]):
        # Of 24 items, a walk continues at one of two.
        assert 0.3 < row["mrr"] <= 1
        assert row["ndcg10"] <= row["hr10"]
        assert not {"top1", "top5", "ece"} & set(row)
    kept = {row["student"]: row["agreement"] for row in results["students"] if row["recipe"] == "kd"}
    assert all(share > 0.3 for share in kept.values())
    assert all(row["macs"] > 100 for row in results["students"])
    header = (made / "reports/results.csv").read_text().splitlines()[0].split(",")
    assert header[4:10] == ["ndcg10", "hr10", "mrr", "nll", "agreement", "kl_to_teacher"]
    assert results["dumps"]["main"]["label_errors"] is None  # a surprising next item is no error


def test_the_report_lists_items_and_marks_changes(made):
    page = (made / "reports/index.html").read_text()
    assert "NDCG@10" in page
    assert "Top-1, %" not in page
    pictures = [base64.b64decode(text).decode() for text in re.findall(r"svg\+xml;base64,([^\"]+)", page)]
    assert len(pictures) >= 12
    assert any("line-through" in picture for picture in pictures)
    assert any("background:#ffd54d" in picture for picture in pictures)
    assert all(re.search(r">i\d+<|\u2588", picture) for picture in pictures)


def test_a_store_of_histories_is_verified_and_replayed(project, capsys):
    assert run("verify", "data/logits/main.zarr", "--replay", "32", "--json") == 0
    audit = json.loads(capsys.readouterr().out)
    assert (audit["ok"], audit["replayed"]) == (True, 32)
    assert run("verify", "--data") == 0
    assert run("inspect", "data/logits/main.zarr") == 0
    assert "HR@10" in capsys.readouterr().out


def test_rows_are_keyed_by_user_and_position(project):
    data = PreparedData.open(Path("data/prepared"))
    assert set(data.train.names[:9]) == {f"u0/{n}" for n in range(1, 10)}
    assert list(data.test.names)[:2] == ["u0/11", "u1/11"]
    history, label, logits = ReplayDataset("data/logits/main.zarr", "data/prepared")[0]
    assert (history.shape, logits.shape, data.classes[label]) == ((12,), (24,), rows()[1][1])


def test_new_interactions_grow_a_dump(project):
    before = LogitStore.open(Path("data/logits/main.zarr"))
    last = {user: (item, time) for user, item, time in rows()}
    more = [(user, f"i{(int(item[1:]) + 1) % 24}", time + 10) for user, (item, time) in last.items()]
    write_inter(Path("log/walks.inter"), rows() + more)
    assert pipeline("prepare") == 0
    assert pipeline("cache-logits", "main") == 0
    after = LogitStore.open(Path("data/logits/main.zarr"))
    assert after.n_samples - before.n_samples == 60
    assert run("verify", "data/logits/main.zarr", "--replay", "16") == 0


def test_slices_and_one_process_write_the_same_bytes(project):
    small = ("--set", "dumps.main.shard_rows=64", "--set", "dumps.main.batch_size=16")
    for part in ("1/2", "2/2"):
        assert pipeline("cache-logits", "main", "--out", "parts.zarr", "--shards", part, *small) == 0
    for name in ("parts.zarr", "whole.zarr"):
        assert pipeline("cache-logits", "main", "--out", name, *small, "--workers", "3") == 0
    whole, parts = (
        {path.relative_to(name): path.read_bytes() for path in Path(name).rglob("c/*/*") if path.is_file()}
        for name in ("whole.zarr", "parts.zarr")
    )
    assert len(whole) > 10
    assert whole == parts


def test_stored_logits_are_those_of_the_teacher_in_the_loop(project):
    """With codec fp16, the losses of a student are those of online distillation."""
    exact = ("--set", "dumps.main.codec=fp16", "--set", "dumps.main.max_kl=null")
    assert pipeline("cache-logits", "main", "--out", "exact.zarr", *exact) == 0
    store, data = LogitStore.open(Path("exact.zarr")), PreparedData.open(Path("data/prepared"))
    network, card = load_checkpoint(Path("models/teachers/teacher.pt"))
    teacher = Teacher(name="teacher", network=network, card=card, precision="fp32")
    student, own = load_checkpoint(Path("models/students/main-recurrent-kd-0.pt"))
    feed = Feed(data.train, views_of(store), own.preprocessing, device=torch.device("cpu"))
    loader = Loader(feed, Targets(store, feed), batch_size=32, seed=1)
    seen, losses = feed.seen_by(card.preprocessing), []
    for epoch in (0, 1):
        for batch in loader.epoch(epoch):
            (ids,) = seen.batches(epoch, [batch.rows])
            with torch.inference_mode():
                told, said = student(batch.images), (batch.teacher_logits, teacher.logits(ids))
                losses.append([float(kd(told, batch.labels, logits)) for logits in said])
    stored, online = np.array(losses).mean(0)
    assert stored == pytest.approx(online, rel=1e-4)


@pytest.mark.parametrize("student", ["small", "recurrent"])
def test_networks_are_exported_with_item_ids_as_input(project, student):
    onnxruntime = pytest.importorskip("onnxruntime")
    checkpoint = f"models/students/main-{student}-kd-0.pt"
    assert run("export", checkpoint, "--format", "pt2", "--with-normalise", "--out", "x.pt2") == 0
    assert run("export", checkpoint, "--format", "onnx", "--out", "x.onnx") == 0
    session = onnxruntime.InferenceSession("x.onnx")
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape[0]) == ("items", "tensor(int64)", "batch")
    metadata = session.get_modelmeta().custom_metadata_map
    described, classes = json.loads(metadata["input"]), json.loads(metadata["classes"])
    assert (described["pad"], described["first"], described["padded"]) == (0, 1, "in front")
    length = json.loads(metadata["preprocessing"])["max_length"]
    walk = [classes.index(f"i{n}") + described["first"] for n in (3, 4, 5, 6)]
    ids = np.zeros((1, length), np.int64)
    ids[0, -4:] = walk
    (logits,) = session.run(None, {"items": ids})
    best = {classes[place] for place in np.argsort(-logits[0])[:6]}
    assert best & {"i7", "i8"}


def test_other_modalities_views_and_models_are_refused(project, capsys):
    assert run("prepare", "--set", "dumps.main.views.mixup={}") == 1
    assert "histories are not mixed, since the average of two items is no item" in capsys.readouterr().err
    assert run("prepare", "--set", "dumps.main.views.crop.scale=[2, 3]") == 1
    assert "crop.scale is [2.0, 3.0]" in capsys.readouterr().err
    assert pipeline("train-student", "small", "kd", "0", "--dump", "main", "--render", "device") == 1
    assert "histories are rendered on the CPU" in capsys.readouterr().err
    assert pipeline("train-teacher", "teacher", "--set", "teachers.teacher.model=kim_cnn") == 1
    assert len(capsys.readouterr().err.strip().splitlines()[-1]) < 400
    export = ("export", "models/students/main-small-kd-0.pt", "--format", "pt2", "--out", "x.pt2")
    assert run(*export, "--images", "log") == 1
    assert "modality 'items' does not read samples from single files" in capsys.readouterr().err


def test_init_recognises_logs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number, (name, source) in enumerate(
        (("ml", "inter:../ml"), ("ml/ml.inter", "inter:../ml/ml.inter"), ("log.csv", "csv:../log.csv"))
    ):
        write_inter(tmp_path / "ml/ml.inter", rows())
        write_csv(tmp_path / "log.csv", rows(), "userId,movieId,ts")
        (tmp_path / f"p{number}").mkdir()
        monkeypatch.chdir(tmp_path / f"p{number}")
        assert run("init", f"../{name}") == 0
        assert "24 items, 60 users, 540 training samples; half of the histories" in capsys.readouterr().out
        params = load_params(Path("params.yaml"))
        assert (params.data.source, params.data.modality, params.data.task) == (
            source,
            "items",
            "next_item",
        )
    assert params.data.options.timestamp == "ts"
    assert "- data.min_user_interactions" in Path("dvc.yaml").read_text()
    assert "validation_ndcg10" in Path("dvc.yaml").read_text()


def test_reviews_by_users_are_texts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Path("reviews.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["user_id", "product_id", "text", "label"])
        table.writerows([f"u{n}", "p", f"a word {n}", "good" if n % 2 else "bad"] for n in range(40))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run("init", "../reviews.csv") == 0
    assert load_params(Path("params.yaml")).data.modality == "text"


@pytest.mark.slow
def test_dvc_runs_a_project_for_a_log(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_inter(Path("../walks.inter"), rows())
    assert run("init", "../walks.inter") == 0
    tree = yaml.safe_load(Path("params.yaml").read_text())
    tree["training"] |= {"epochs": 2}
    tree["dumps"]["main"]["views"]["count"] = 2
    for model in (tree["teachers"]["teacher"], tree["students"]["student"]):
        model["options"] = {"dim": 8, "layers": 1}
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    asked(tmp_path / "here", "repro")
    assert len(json.loads(Path("reports/results.json").read_text())["students"]) == 2
    assert "Running stage" not in asked(tmp_path / "here", "repro")
