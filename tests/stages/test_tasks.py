"""Every task from params.yaml alone: prepare, teacher, dump, growth, check, students and report."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import yaml

from pipeline import LogitStore, PreparedData, ReplayDataset
from pipeline.modalities.images.sources.arrays import CLASSES, load_subset
from pipeline.models.checkpoint import load_checkpoint, save_checkpoint
from pipeline.store.ensemble import Ensemble
from tests.stages.conftest import run

TRAIN, TEST = 120, 60
BASE: dict[str, Any] = {
    "data": {"watch": "", "validation": 0.25, "image_size": None},
    "training": {"epochs": 2, "batch_size": 20, "learning_rate": 0.02, "views": {"seed": 3}},
    "teachers": {"tutor": {"model": "wrn_16_2"}},
    "dumps": {
        "main": {"teacher": "tutor", "codec": "auto", "batch_size": 20, "allow_poor_teacher": True}
        | {"views": {"count": 1, "seed": 3, "pad_crop": {"padding": 2}, "mixup": {"alpha": 0.5}}}
    },
    "students": {"pupil": {"model": "resnet8"}},
    "sweep": {"dumps": ["main"], "students": ["pupil"], "recipes": ["taught"], "seeds": [0]},
}


def _canvases(split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Four quarter-size pictures of clothes a canvas, some left out, and the tags of the others."""
    arrays, rng = load_subset(), np.random.default_rng(len(split))
    images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    canvas, tags = np.zeros((count, 28, 28), np.uint8), np.zeros((count, len(CLASSES)), np.int8)
    for corner in range(4):
        y, x = (14 * place for place in divmod(corner, 2))
        chosen, there = rng.integers(0, len(images), count), rng.random(count) < 0.6
        canvas[there, y : y + 14, x : x + 14] = images[chosen[there], ::2, ::2]
        tags[there, labels[chosen[there]]] = 1
    return canvas, tags


def _write(params: dict[str, Any]) -> None:
    merged = {**BASE, **params, "data": {**BASE["data"], **params["data"]}}
    Path("params.yaml").write_text(yaml.safe_dump(merged))


def multilabel() -> str:
    """Pictures in folders, with a table of tags; the last tag of some is unknown."""
    for split, count in (("train", TRAIN), ("test", TEST)):
        canvas, tags = _canvases(split, count)
        Path("photos", split).mkdir(parents=True)
        with Path("photos", split, "labels.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["name", *CLASSES])
            for number, (image, row) in enumerate(zip(canvas, tags, strict=True)):
                torchvision.io.write_png(torch.from_numpy(image)[None], f"photos/{split}/{number:03d}.png")
                known = ["" if number % 5 == 0 and c == 9 else int(tag) for c, tag in enumerate(row)]
                table.writerow([f"{number:03d}.png", *known])
    _write(
        {
            "data": {"source": "folder:photos", "task": "multilabel", "channels": 1},
            "recipes": {"taught": {"loss": "binary_kd"}, "bce": {"loss": "bce", "pos_weight": 3}},
            "sweep": {**BASE["sweep"], "baselines": ["bce"]},
        }
    )
    return "map"


def scores() -> str:
    """The number of pictures of a canvas, and its brightness."""
    arrays = {}
    for split, count in (("train", TRAIN), ("test", TEST)):
        canvas, tags = _canvases(split, count)
        arrays[f"{split}_images"] = canvas
        arrays[f"{split}_labels"] = np.stack([tags.sum(1), canvas.mean((1, 2)) / 40], 1).astype(np.float64)
    np.savez("scores.npz", **arrays, classes=np.array(["pictures", "brightness"]))
    _write(
        {
            "data": {"source": "npz:scores.npz", "task": "scores"},
            "training": {**BASE["training"], "learning_rate": 0.002},
            "recipes": {"taught": {"loss": "l2", "label_weight": 0.2}, "alone": {"loss": "squared_error"}},
            "sweep": {**BASE["sweep"], "baselines": ["alone"]},
        }
    )
    return "spearman"


ENCODER = """
import torch
from torch import nn

def encoder():
    torch.manual_seed(0)
    body = nn.Conv2d(1, 12, 5, 2), nn.ReLU(), nn.Conv2d(12, 24, 5, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(*body, nn.Flatten())
"""


def embedding() -> str:
    """Vectors of a network of one's own, of other width than the student's, standardised."""
    arrays = load_subset()
    kept = {name: arrays[name][: TRAIN if name.startswith("train") else TEST] for name in arrays}
    del kept["train_positions"]
    np.savez("clothes.npz", **kept)
    Path("encoders.py").write_text(ENCODER)
    size = {"size": 28, "mean": [0.3], "std": [0.3]}
    tutor = {"model": "encoders:encoder", "weights": "pretrained", "preprocessing": size}
    _write(
        {
            "data": {"source": "npz:clothes.npz", "task": "embedding"},
            "teachers": {"tutor": {**tutor, "normalise": "features"}},
            "recipes": {"taught": {"loss": "cosine"}, "relations": {"loss": "relational"}},
            "sweep": {**BASE["sweep"], "recipes": ["taught", "relations"]},
        }
    )
    return "knn"


def test_a_student_learns_codewords(tmp_path, monkeypatch, capsys, edit):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    embedding()
    edit({"dumps": {"main": {"codec": "pq-4"}}, "recipes": {"codes": {"loss": "codes"}}})
    for command in ("prepare", "train-teacher tutor", "cache-logits main"):
        assert (
            run(*command.split(), *(["--set", "dumps.main.max_error=2"] if "main" in command else [])) == 0
        )
    learn = ("train-student", "pupil", "codes", 0, "--dump", "main", "--set", "students.pupil.epochs=3")
    assert run(*learn) == 0, capsys.readouterr().err
    with Path("runs/main-pupil-codes-0/history.csv").open() as lines:
        losses = [float(line["loss"]) for line in csv.DictReader(lines)]
    assert losses[-1] < losses[0] < 1.2 * math.log(256)
    assert run(*learn, "--set", "dumps.main.codec=digits") == 1
    assert "loss 'codes' learns codewords, but dump main has codec digits; exp" in capsys.readouterr().err


BAG = """
import torch
from torch import nn

class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.vectors = nn.Embedding(256, 24)

    def forward(self, tokens):
        return self.vectors(tokens.clamp(max=255)).mean(1)
"""


def test_texts_without_labels_have_embeddings(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for split, count in (("train", 60), ("test", 20)):
        lines = [f"the {n}th of many lines in {split}" for n in range(count)]
        Path(f"{split}.csv").write_text("\n".join(["text", *lines]) + "\n")
    Path("bags.py").write_text(BAG)
    tokens = {"tokenizer": "bytes", "max_length": 48}
    params = {
        "data": {"source": "csv:.", "modality": "text", "task": "embedding"},
        "teachers": {"tutor": {"model": "bags:Bag", "weights": "pretrained", "preprocessing": tokens}},
        "dumps": {"main": {"teacher": "tutor", "views": {"count": 2, "random_deletion": {}}}},
        "students": {"pupil": {"model": "byte_cnn", "options": {"dim": 8}}},
        "training": {"epochs": 2, "batch_size": 16},
        "recipes": {"taught": {"loss": "cosine"}},
        "sweep": {"dumps": ["main"], "students": ["pupil"], "recipes": ["taught"]},
    }
    Path("params.yaml").write_text(yaml.safe_dump(params))
    assert run("prepare") == 1
    told = "60 training samples, 0 of them labelled, with data.validation = 0.1 leave 60 for training and 0"
    assert told in capsys.readouterr().err
    Path("params.yaml").write_text(yaml.safe_dump({**params, "data": {**params["data"], "validation": 0}}))
    learn = "train-student pupil taught 0 --dump main"
    for command in ("prepare", "train-teacher tutor", "cache-logits main", learn, "report"):
        assert run(*command.split()) == 0, capsys.readouterr().err
    (student,) = json.loads(Path("reports/results.json").read_text())["students"]
    assert 0 < student["cka"] <= 1
    assert student["knn"] is None
    assert run("verify", "data/logits/main.zarr", "--replay", 8, "--trust-code", "bags") == 0


@pytest.mark.parametrize("make", [multilabel, scores, embedding])
def test_a_task_goes_from_its_data_to_a_report(
    make: Callable[[], str], tmp_path, monkeypatch, capsys, edit
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    main = make()
    for command in ("prepare", "train-teacher tutor", "plan main --json", "cache-logits main"):
        capsys.readouterr()
        assert run(*command.split()) == 0, capsys.readouterr().err
    edit({"dumps": {"main": {"views": {"count": 2}}}})
    assert run("cache-logits", "main") == 0
    capsys.readouterr()
    trust = ["--trust-code", "encoders"] if make is embedding else []
    assert run("verify", "data/logits/main.zarr", "--replay", 24, "--json", *trust) == 0
    audit = json.loads(capsys.readouterr().out)
    assert (audit["ok"], audit["replayed"], audit["bad"]) == (True, 24, [])
    store = LogitStore.open("data/logits/main.zarr")
    assert store.n_views == 2
    budget, fidelity = store.manifest.header.codec_spec.budget, store.manifest.fidelity()
    assert fidelity.within(1.5 * budget)
    assert run("inspect", "data/logits/main.zarr") == 0
    params = yaml.safe_load(Path("params.yaml").read_text())
    for recipe in params["recipes"]:
        taught = recipe not in params["sweep"].get("baselines", [])
        chosen = ["--dump", "main"] if taught else []
        assert run("train-student", "pupil", recipe, 0, *chosen) == 0, capsys.readouterr().err
    assert run("report") == 0, capsys.readouterr().err
    results = json.loads(Path("reports/results.json").read_text())
    figures = [student[main] for student in results["students"]]
    assert all(figure is not None and math.isfinite(figure) for figure in figures)
    if store.manifest.layout.measures.is_absolute:
        assert not {"top1", "top5", "ece"} & set(results["students"][0])
        assert results["dumps"]["main"]["label_errors"] is None
    assert "<h2" in Path("reports/index.html").read_text()


def test_a_dataset_of_tags_has_tags_and_absolute_logits(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    multilabel()
    for command in ("prepare", "train-teacher tutor", "cache-logits main"):
        assert run(*command.split()) == 0, capsys.readouterr().err
    data = PreparedData.open(Path("data/prepared"))
    dataset = ReplayDataset("data/logits/main.zarr", data)
    image, tags, logits = dataset[0]
    assert (image.shape, tags.shape, logits.shape) == ((1, 28, 28), (10,), (10,))
    # Of mixed views, tags are shares; the unknown ones stay unknown.
    assert tags.is_floating_point()
    assert bool(((tags >= 0) & (tags <= 1) | (tags == -1)).all())
    assert float(logits.max()) != 0


def test_an_ensemble_of_taggers_averages_probabilities(tmp_path, monkeypatch, capsys, edit):
    monkeypatch.chdir(tmp_path)
    multilabel()
    fine = {**BASE["dumps"]["main"], "codec": "fp16", "teacher": "other"}
    edit({"teachers": {"other": {"model": "resnet8"}}, "dumps": {"main": {"codec": "affine4"}}})
    edit({"dumps": {"fine": fine}})
    edit({"ensembles": {"both": {"of": ["main", "fine"], "weights": [3, 1]}}})
    for command in ("prepare", "train-teacher tutor", "train-teacher other"):
        assert run(*command.split(), "--set", "training.epochs=1") == 0, capsys.readouterr().err
    for dump in ("main", "fine", "both"):
        assert run("cache-logits", dump, "--set", "training.epochs=1") == 0, capsys.readouterr().err
    each = [LogitStore.open(f"data/logits/{name}.zarr").view(0).sigmoid() for name in ("main", "fine")]
    found = Ensemble.open("data/logits/both.zarr").view(0).sigmoid()
    torch.testing.assert_close(found, 0.75 * each[0] + 0.25 * each[1])


@pytest.mark.parametrize(
    ("settings", "command", "said"),
    [
        (["data.task=classes"], "prepare", "its labels are 0, 1 or -1"),
        (["data.task=scores"], "prepare", "task scores takes numbers"),
        (
            ["data.labels_per_class=3"],
            "train-student pupil bce 0",
            "labels_per_class is 3, and labels are tags",
        ),
        (["recipes.bce={loss: scratch}"], "train-student pupil bce 0", "expected one of bce, binary_kd"),
        (["dumps.main.max_kl=0.1"], "plan main", "expected max_error; rename it"),
        (["dumps.main.codec=topk-3"], "plan main", "keeps the likeliest classes of one softmax"),
        (["teachers.tutor.output=embedding"], "train-teacher tutor", "task multilabel takes an output per"),
        (
            ["teachers.tutor.output=pooled"],
            "train-teacher tutor",
            "expected embedding, layer:NAME or cls:NAME",
        ),
        (["teachers.tutor.normalise=features"], "train-teacher tutor", "measured on a finished teacher"),
    ],
)
def test_what_does_not_fit_the_task_is_one_line(tags, capsys, settings, command, said):
    overrides = [part for setting in settings for part in ("--set", setting)]
    assert run(*command.split(), *overrides) == 1
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("pipeline:")]
    assert said in line


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of tags with prepared data and a teacher."""
    folder = tmp_path_factory.mktemp("tagged")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        multilabel()
        assert run("prepare") == 0
        assert run("train-teacher", "tutor", "--set", "training.epochs=1") == 0
    return folder


@pytest.fixture
def tags(tagged: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder is `tagged`."""
    monkeypatch.chdir(tagged)
    return tagged


def test_a_project_of_tags_is_started_and_runs(tags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("init", tags / "photos") == 0
    assert f"{len(CLASSES)} tags; train {TRAIN}, test {TEST} images" in capsys.readouterr().out
    text = Path("params.yaml").read_text()
    assert "task: multilabel" in text
    assert "max_error: 0.001" in text
    assert "baselines: [bce]" in text
    quick = (
        "--set",
        "training.epochs=1",
        "--set",
        "training.warmup_epochs=0",
        "--set",
        "dumps.main.views.count=1",
        "--set",
        "data.image_size=32",
    )
    for command in (
        "prepare",
        "train-teacher teacher",
        "cache-logits main",
        "train-student student kd 0 --dump main",
        "train-student student bce 0",
    ):
        assert run(*command.split(), *quick) == 0
    assert json.loads(Path("runs/main-student-kd-0/metrics.json").read_text())["map"] is not None


def test_a_teacher_of_another_task_is_refused(tags, capsys):
    card = Path("models/teachers/tutor.json")
    content = json.loads(card.read_text())
    assert content["task"] == "multilabel"
    card.write_text(json.dumps({k: v for k, v in content.items() if k != "task"}))
    try:
        assert run("cache-logits", "main") == 1
    finally:
        card.write_text(json.dumps(content))
    error = capsys.readouterr().err
    assert "tutor was made for task 'classes', the data is of task 'multilabel'" in error


def test_a_tagger_that_says_the_same_of_all_is_refused_and_leaves_no_store(tags, tmp_path, capsys):
    path = Path("models/teachers/tutor.pt")
    network, card = load_checkpoint(path)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    save_checkpoint(path, {**before, "head.weight": torch.zeros_like(before["head.weight"])}, card)
    out = tmp_path / "constant.zarr"
    strict = ["--set", "dumps.main.allow_poor_teacher=false", "--out", out]
    try:
        assert run("cache-logits", "main", *strict) == 1
    finally:
        save_checkpoint(path, before, card)
    error = capsys.readouterr().err
    assert re.search(r"teacher 'tutor' has mAP (0\.\d+) on .*; a random ranking has \1, so at least", error)
    assert not out.exists()
