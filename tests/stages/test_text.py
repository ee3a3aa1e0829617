"""Texts go through every command, from the preset to the report and an exported network."""

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

from pipeline import Feed, Loader, LogitStore, ReplayDataset, Targets
from pipeline.core.errors import ModelError
from pipeline.losses import kd
from pipeline.modalities.prepared import PreparedData
from pipeline.modalities.table import views_of
from pipeline.modalities.text.words import text_of
from pipeline.models.card import CardFile
from pipeline.models.checkpoint import load_checkpoint
from pipeline.models.teacher import Teacher
from tests.stages.conftest import run

TOPICS = {
    "sea": "wave salt harbour ship tide sail deck anchor gull storm",
    "wood": "tree moss fern bark owl leaf root path deer mushroom",
    "town": "street tram roof square market bridge lamp window noise crowd",
}
SMALL = (
    *("data.source=csv:table", "data.watch=table", "data.validation=0.25", "data.vocabulary=50"),
    *("training.batch_size=16", "training.epochs=16", "training.learning_rate=0.02"),
    *(
        "teachers.teacher.options={dim: 32, blocks: 1}",
        "teachers.teacher.learning_rate=0.01",
        "dumps.main.views.count=2",
    ),
    *("students.bytes.options={dim: 16, blocks: 1}", "students.words.options={dim: 16, filters: 8}"),
)


def write_table(folder: Path, each: int = 30) -> None:
    """Write train.csv and test.csv of sentences about three topics; long and short ones."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for split, count in (("train", each), ("test", 12)):
        with (folder / f"{split}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["text", "label"])
            for number in range(count):
                for topic, words in TOPICS.items():
                    chosen = rng.choice(words.split(), 3 + number % 9)
                    table.writerow([f"The {', the '.join(chosen)}.", topic])


def pipeline(*arguments: object) -> int:
    """Run a command on the preset with small changes."""
    changes = [part for change in SMALL for part in ("--set", change)]
    return run(arguments[0], *changes, *arguments[1:])


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The preset's job on a small table, made once; to be read only."""
    folder = tmp_path_factory.mktemp("text")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_table(folder / "table")
        assert run("preset", "text", "--out", "params.yaml") == 0
        for command in (
            *("prepare", "train-teacher teacher", "plan main", "cache-logits main"),
            *("train-student bytes kd 0 --dump main", "train-student words kd 0 --dump main"),
            *("train-student bytes scratch 0", "train-student words scratch 0", "report"),
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
    assert {(row["student"], row["recipe"]) for row in results["students"]} == {
        (student, recipe) for student in ("bytes", "words") for recipe in ("kd", "scratch")
    }
    assert results["teachers"]["teacher"]["top1"] > 0.9
    assert all(row["top1"] > 0.6 and row["macs"] > 1000 for row in results["students"])


def test_the_report_marks_changed_words(made):
    page = (made / "reports/index.html").read_text()
    pictures = [base64.b64decode(text).decode() for text in re.findall(r"svg\+xml;base64,([^\"]+)", page)]
    assert len(pictures) >= 12
    assert sum("background:#ffd54d" in picture for picture in pictures) >= 3
    assert any("line-through" in picture for picture in pictures)


def test_a_card_has_the_whole_tokenizer_and_a_store_its_digest(made):
    card = CardFile.read(made / "models/students/main-words-kd-0.json").card
    assert len(card.preprocessing.tokenizer.words) <= 50
    assert "harbour" in card.preprocessing.tokenizer.words
    described = json.loads((made / "data/logits/main.zarr/zarr.json").read_text())
    teacher = described["attributes"]["teacher"]
    assert set(teacher["preprocessing"]["tokenizer"]) == {"kind", "size", "digest"}


def test_teacher_and_student_see_the_same_texts_by_different_tokens(project):
    data = PreparedData.open(Path("data/prepared"))
    store = LogitStore.open(Path("data/logits/main.zarr"))
    cards = [
        CardFile.read(Path(f"models/students/main-{name}-kd-0.json")).card for name in ("bytes", "words")
    ]
    first, second = (ReplayDataset(store, data, card.preprocessing) for card in cards)
    rows = np.arange(8)
    shown = [[text_of(one) for one in some._feed.evidence(1, rows)] for some in (first, second)]
    assert shown[0] == shown[1]
    assert shown[0] != [text_of(data.train.array(row)) for row in range(8)]
    for dataset in (first, second):
        dataset.set_view(1)
    (bytes_0, label, logits), (words_0, *_) = first[0], second[0]
    assert (bytes_0.shape, words_0.shape, logits.shape) == ((128,), (32,), (3,))
    assert bytes(bytes_0[bytes_0 > 0].sub(4).tolist()).decode() == shown[0][0]
    assert label == data.train.labels[0]
    # The teacher's tokenizer is in its checkpoint, not in the store.
    with pytest.raises(ModelError, match="names its teacher's tokenizer by digest alone"):
        ReplayDataset(store, data)[0]


def test_a_store_of_texts_is_verified_and_replayed(project, capsys):
    assert run("verify", "data/logits/main.zarr", "--replay", "32", "--json") == 0
    audit = json.loads(capsys.readouterr().out)
    assert (audit["ok"], audit["replayed"]) == (True, 32)
    assert run("verify", "--data") == 0
    assert run("inspect", "data/logits/main.zarr") == 0


def test_more_views_and_more_rows_leave_finished_shards_alone(project):
    path = Path("data/logits/main.zarr")
    before = {file: file.read_bytes() for file in path.rglob("c/*/*") if file.is_file()}
    assert pipeline("cache-logits", "main", "--set", "dumps.main.views.count=3") == 0
    with Path("table/train.csv").open("a") as table:
        table.write("the gull and the wave,sea\n")
    assert pipeline("prepare") == 0
    assert pipeline("cache-logits", "main", "--set", "dumps.main.views.count=3") == 0
    assert LogitStore.open(path).n_views == 3
    assert before
    assert all(file.read_bytes() == content for file, content in before.items())


def test_slices_and_one_process_write_the_same_bytes(project):
    small = ("--set", "dumps.main.shard_rows=16", "--set", "dumps.main.batch_size=8")
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


@pytest.mark.parametrize(
    ("change", "status", "told"),
    [({"text": "sail"}, 1, "written for a different dataset"), ({"label": "wood"}, 0, "label")],
)
def test_a_changed_text_is_refused_and_a_changed_label_told(project, capsys, change, status, told):
    path = Path("table/train.csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    rows[5] |= change
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, ["text", "label"])
        table.writeheader()
        table.writerows(rows)
    assert pipeline("prepare") == 0
    capsys.readouterr()
    assert pipeline("train-student", "bytes", "kd", "0", "--dump", "main") == status
    lines = [line for line in capsys.readouterr().err.splitlines() if "data/logits/main.zarr: " in line]
    assert any(told in line for line in lines), lines


def test_rows_may_change_places(project):
    path = Path("table/train.csv")
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *rows[::-1]]) + "\n")
    assert pipeline("prepare") == 0
    assert pipeline("train-student", "bytes", "kd", "0", "--dump", "main") == 0


def test_views_of_another_kind_are_refused(project, capsys):
    assert run("prepare", "--set", "dumps.main.views.mixup={}") == 1
    said = capsys.readouterr().err
    assert (
        "dumps.main.views.mixup: texts are not mixed, since the average of two is no text; remove it"
        in said
    )
    assert pipeline("train-student", "bytes", "kd", "0", "--dump", "main", "--render", "device") == 1
    assert "texts are rendered on the CPU" in capsys.readouterr().err


@pytest.mark.parametrize("student", ["bytes", "words"])
def test_networks_are_exported_with_their_tokenizer(project, capsys, student):
    onnxruntime = pytest.importorskip("onnxruntime")
    checkpoint = f"models/students/main-{student}-kd-0.pt"
    assert run("export", checkpoint, "--format", "pt2", "--with-normalise", "--out", "x.pt2") == 0
    assert run("export", checkpoint, "--format", "onnx", "--out", "x.onnx") == 0
    session = onnxruntime.InferenceSession("x.onnx")
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape) == ("tokens", "tensor(int64)", ["batch", "length"])
    described = json.loads(session.get_modelmeta().custom_metadata_map["input"])
    assert (described["pad"], described["axes"]) == (0, {"1": "length"})
    tokenizer = json.loads(Path("x.tokenizer.json").read_text())
    assert tokenizer["kind"] == student
    if student == "words":
        ids = [[4 + tokenizer["words"].index(word) for word in ("the", "harbour", "tide")]]
        (logits,) = session.run(None, {"tokens": np.array(ids)})
        classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
        assert classes[int(logits.argmax())] == "sea"


def test_a_network_is_exported_on_files_of_ones_own(project, capsys):
    Path("letters").mkdir()
    Path("letters/one.txt").write_text("the gull and the wave")
    checkpoint = "models/students/main-bytes-kd-0.pt"
    export = ("export", checkpoint, "--format", "pt2", "--out", "x.pt2", "--images", "letters")
    assert run(*export) == 0
    Path("letters/one.txt").write_text("")
    assert run(*export) == 1
    assert "letters/one.txt: no word in it" in capsys.readouterr().err


def test_stored_logits_are_those_of_the_teacher_in_the_loop(project):
    """With codec fp16, the losses of a student are those of online distillation."""
    exact = ("--set", "dumps.main.codec=fp16", "--set", "dumps.main.max_kl=null")
    assert pipeline("cache-logits", "main", "--out", "exact.zarr", *exact) == 0
    store, data = LogitStore.open(Path("exact.zarr")), PreparedData.open(Path("data/prepared"))
    network, card = load_checkpoint(Path("models/teachers/teacher.pt"))
    teacher = Teacher(name="teacher", network=network, card=card, precision="fp32")
    student, own = load_checkpoint(Path("models/students/main-words-kd-0.pt"))
    feed = Feed(data.train, views_of(store), own.preprocessing, device=torch.device("cpu"))
    loader, seen = (
        Loader(feed, Targets(store, feed), batch_size=16, seed=1),
        feed.seen_by(card.preprocessing),
    )
    differences, losses = [], []
    for epoch in (0, 1):
        for batch in loader.epoch(epoch):
            (ids,) = seen.batches(epoch, [batch.rows])
            with torch.inference_mode():
                told, said = student(batch.images), (batch.teacher_logits, teacher.logits(ids))
                losses.append([float(kd(told, batch.labels, logits)) for logits in said])
                stored, online = (logits - logits.amax(1, keepdim=True) for logits in said)
                differences.append(float((stored - online).abs().max()))
    # Half of fp16's step for values from 8 to 16.
    assert max(differences) <= 2**-8 + 1e-4
    stored_loss, online_loss = np.array(losses).mean(0)
    assert stored_loss == pytest.approx(online_loss, rel=5e-4)
