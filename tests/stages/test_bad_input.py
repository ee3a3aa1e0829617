"""Everything a user can get wrong: status 1, one clear line, and nothing lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.io import write_jpeg, write_png

from pipeline.models.card import CardFile
from pipeline.models.checkpoint import save_checkpoint
from tests.stages.conftest import run

BAD_TEACHER = """
from torch import nn


class Bad(nn.Module):
    def __init__(self, classes, value):
        super().__init__()
        self.head, self.value = nn.Linear(3, classes), float(value)

    def forward(self, images):
        return self.head(images.mean((2, 3))) * self.value


def bad(num_classes=4, value=1):
    return Bad(num_classes, value)
"""
STORE = Path("data/logits/main.zarr")
OTHER = ["--set", "data.source=npz:bad.npz"]


@pytest.fixture
def fails(capsys):
    """Run a command that must fail in one line holding all the given words."""

    def check(arguments: list[str], *words: str) -> None:
        capsys.readouterr()
        assert run(*arguments) == 1
        errors = capsys.readouterr().err.splitlines()
        lines = [line for line in errors if line.startswith("pipeline: ")]
        assert len(lines) == 1, errors
        assert lines[0] == errors[-1]
        for word in words:
            assert word in lines[0], lines[0]

    return check


def npz(**changes: object) -> list[str]:
    arrays = dict(np.load("data.npz"))
    for key, value in changes.items():
        if value is None:
            del arrays[key]
        else:
            arrays[key] = value
    np.savez("bad.npz", **arrays)
    return ["prepare", *OTHER]


def image_folder(classes: int = 2, *, held_out: str = "test") -> Path:
    generator = torch.Generator().manual_seed(0)
    root = Path("photos")
    for split, count in (("train", 6), (held_out, 2)):
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(count):
                shape = (3, 20 + 5 * index, 30 - 2 * index)
                image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
                write = write_png if index % 2 else write_jpeg
                write(image, str(folder / f"{index}.{'png' if index % 2 else 'jpg'}"))
    return root


FOLDER = ["prepare", "--set", "data.source=folder:photos"]


def test_unknown_key(project, fails):
    fails(["prepare", "--set", "data.sorce=x"], "params.yaml", "data.sorce", "did you mean 'source'")


@pytest.mark.parametrize(
    "command", [["prepare"], ["sweep"], ["train-student", "pupil", "scratch", "0"]], ids=lambda c: c[0]
)
def test_unknown_model(project, fails, command):
    arguments = [*command, "--set", "students.pupil.model=shuflenet_v2_x0_5"]
    fails(arguments, "students.pupil.model: model 'shuflenet_v2_x0_5' is", "you mean 'shufflenet_v2_x0_5'")


def test_a_mistyped_name_of_a_dump(project, fails):
    assert run("cache-logits", "main") == 0
    for command in ("inspect", "verify"):
        fails(
            [command, "mian"], "data/logits: has no dump 'mian'; expected one of main; did you mean 'main'?"
        )
    fails(
        ["export-logits", "mian", "--format", "wds", "--out", "o"],
        "params.yaml has no dump 'mian'; expected one of main; did you mean 'main'?",
    )
    learn = ["train-student", "pupil", "kd", "0", "--dump", "data/logits/main.zarr"]
    fails(learn, "--dump is 'data/logits/main.zarr'; expected the name of a dump", "places.logits")


def test_an_unknown_key_of_a_model_lists_its_options(project, fails):
    fails(["prepare", "--set", "students.pupil.optons={}"], "options", "did you mean 'options'?")


def test_unknown_model_of_a_teacher(project, fails):
    for command in (["prepare"], ["train-teacher", "tutor"]):
        arguments = [*command, "--set", "teachers.tutor.model=vgg111"]
        fails(arguments, "teachers.tutor.model: model 'vgg111' is unknown", "did you mean 'vgg11'?")


def test_an_unknown_model_lists_those_of_the_datas_modality(project, fails):
    fails(
        ["prepare", "--set", "students.pupil.model=unheard"],
        "students.pupil.model: model 'unheard' is unknown; expected resnet8, ",
        "wrn_40_2, a torchvision classifier, timm:NAME, your own module:callable; correct it in ",
    )


def test_an_unknown_model_of_timm(project, fails, monkeypatch):
    arguments = ["prepare", "--set", "students.pupil.model=timm:resnte18"]
    fails(arguments, "students.pupil.model: model 'timm:resnte18' is", "did you mean 'timm:resnet18'?")
    # A machine that only prepares or dumps may not have the students' libraries.
    monkeypatch.setattr("pipeline.modalities.images.models.timm.find_spec", lambda _: None)
    assert run(*arguments) == 0


def test_unknown_codec(project, fails):
    fails(
        ["prepare", "--set", "dumps.main.codec=affine7"], "dumps.main", "'affine7'", "topk-K", "'affine8'"
    )


def test_unknown_dataset(project, fails):
    fails(["prepare", "--set", "data.source=imagnet"], "imagnet", "folder:PATH")


def test_unknown_recipe(project, fails):
    fails(["train-student", "pupil", "kdd", "0", "--dump", "main"], "kdd", "did you mean 'kd'")


def test_recipe_that_needs_a_dump(project, fails):
    fails(["train-student", "pupil", "kd", "0"], "recipe 'kd'", "--dump")


def test_baseline_with_a_dump(project, fails):
    fails(["train-student", "pupil", "scratch", "0", "--dump", "main"], "scratch", "remove --dump")


def test_params_file_missing(project, fails):
    fails(["prepare", "--params", "other.yaml"], "other.yaml", "no such file")


def test_folder_missing(project, fails):
    fails(FOLDER, "photos", "no such folder")


def test_folder_without_images(project, fails):
    for split in ("train", "test"):
        Path("photos", split, "class0").mkdir(parents=True)
    fails(FOLDER, "photos/train", "no image files")


def test_folder_with_one_class(project, fails):
    image_folder(1)
    fails(FOLDER, "1 class", "at least two")


def test_folder_with_an_empty_class(project, fails):
    (image_folder() / "train" / "zz").mkdir()
    fails(FOLDER, "photos/train/zz", "without images")


def test_hidden_files_are_no_images(project):
    (image_folder() / "train" / "class0" / "._0.jpg").write_bytes(b"not an image")
    assert run(*FOLDER) == 0


def test_corrupt_image(project, fails):
    file = image_folder() / "train/class1/0.jpg"
    file.write_bytes(file.read_bytes()[:40])
    fails(FOLDER, str(file), "not a readable image", "replace or remove")


def test_empty_image(project, fails):
    file = image_folder() / "test/class0/1.png"
    file.write_bytes(b"")
    fails(FOLDER, str(file), "0 bytes")


def test_failed_prepare_leaves_no_dataset_that_looks_complete(project, fails):
    (image_folder() / "train/class1/0.jpg").write_bytes(b"")
    fails(FOLDER, "0.jpg")
    fails(["cache-logits", "main"], "no prepared dataset", "pipeline prepare")


def test_npz_without_a_key(project, fails):
    fails(npz(test_labels=None), "bad.npz", "add test_labels")


def test_npz_of_wrong_dtype(project, fails):
    fails(npz(train_images=np.zeros((100, 16, 16, 3), np.float32)), "train_images is float32")


def test_npz_of_wrong_shape(project, fails):
    fails(npz(train_labels=np.zeros(7, int)), "train_labels is int64 (7,)", "(100,)")


def test_npz_with_a_label_out_of_range(project, fails):
    labels = np.load("data.npz")["train_labels"].copy()
    labels[5] = -3
    fails(npz(train_labels=labels), "train_labels[5] is -3")


def test_npz_with_one_stray_label(project, fails):
    labels = np.load("data.npz")["train_labels"].astype(np.int64)
    labels[3] = 255
    fails(npz(train_labels=labels), "bad.npz", "label 255 is out of range")


def test_not_an_npz(project, fails):
    Path("bad.npz").write_bytes(b"nothing of the kind")
    fails(["prepare", "--set", "data.source=npz:bad.npz"], "bad.npz", "not a readable .npz")


def test_classes_that_do_not_match(project, fails):
    arrays = dict(np.load("data.npz"))
    labels = {key: arrays[key] % 3 for key in ("train_labels", "test_labels")}
    assert run(*npz(**labels)) == 0
    fails(["cache-logits", "main", *OTHER], "teacher 'tutor' has 4 classes, but the data has 3")


def test_classes_in_another_order(project, fails):
    path = Path("models/teachers/tutor.json")
    card = json.loads(path.read_text())
    card["classes"] = card["classes"][::-1]
    path.write_text(json.dumps(card))
    fails(["cache-logits", "main"], "a different order", "class 0 is '3'")
    # Two that both have, among others.
    card["classes"] = ["1", "0", "cat", "dog"]
    path.write_text(json.dumps(card))
    fails(["cache-logits", "main"], "a different order", "class 0 is '1'")


def test_classes_of_other_names_are_told(project, capsys):
    path = Path("models/teachers/tutor.json")
    card = json.loads(path.read_text())
    card["classes"] = ["0", "1", "cat", "dog"]
    path.write_text(json.dumps(card))
    assert run("cache-logits", "main") == 0
    assert "2 of 4 class names differ from the data's, e.g. 'cat' for '2'" in capsys.readouterr().err


def save_as(path: Path, state: dict[str, torch.Tensor]) -> None:
    """Write other weights of the teacher, with a card that says so."""
    save_checkpoint(path, state, CardFile.read(Path("models/teachers/tutor.json")).card)


def test_teacher_that_knows_nothing(project, fails):
    path = Path("models/teachers/tutor.pt")
    state = torch.load(path, weights_only=True)
    state["head.weight"].neg_()
    save_as(path, state)
    fails(["cache-logits", "main"], "teacher 'tutor' has top-1", "allow_poor_teacher")
    assert not STORE.exists()
    assert run("cache-logits", "main", "--set", "dumps.main.allow_poor_teacher=true") == 0


def test_a_missing_teacher_is_told_with_the_command_that_makes_it(project, fails):
    Path("models/teachers/tutor.pt").unlink()
    for command in ("plan", "cache-logits"):
        fails([command, "main"], "tutor.pt: no such file", "run: pipeline train-teacher tutor")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_teacher_whose_weights_are_not_finite(project, fails, value, capsys):
    assert run("cache-logits", "main") == 0
    for arguments in (
        ["train-student", "pupil", "kd", 0, "--dump", "main"],
        ["train-student", "pupil", "scratch", 0],
    ):
        assert run(*arguments, "--set", "training.epochs=1") == 0
    path = Path("models/teachers/tutor.pt")
    state = torch.load(path, weights_only=True)
    state["head.bias"][1] = float(value)
    save_as(path, state)
    problem = "tutor.pt: weights are not finite: head.bias; expected finite numbers"
    for arguments in (["cache-logits", "main"], ["verify", STORE, "--replay", "1"], ["plan", "main"]):
        fails(arguments, problem)
    # The dump is of the weights as they were.
    assert run("report") == 0
    assert problem in capsys.readouterr().err


def test_teacher_of_pretrained_weights_that_are_not_finite(project, fails, edit):
    path = Path("models/teachers/tutor.pt")
    state = torch.load(path, weights_only=True)
    state["head.bias"][1] = float("nan")
    save_as(Path("poisoned.pt"), state)
    for model in ({"fine_tune": False}, {"fine_tune": True}):
        edit({"teachers": {"tutor": {"weights": "poisoned.pt", **model}}})
        fails(["train-teacher", "tutor"], "poisoned.pt: weights are not finite: head.bias")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_teacher_whose_logits_are_not_finite(project, fails, edit, value, monkeypatch):
    Path("own_bad.py").write_text(BAD_TEACHER)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    seen = {"size": 16, "mean": [0.5] * 3, "std": [0.5] * 3}
    bad = {
        "model": "own_bad:bad",
        "weights": "pretrained",
        "preprocessing": seen,
        "options": {"value": value},
    }
    edit({"teachers": {"bad": bad}, "dumps": {"main": {"teacher": "bad"}}})
    fails(["train-teacher", "bad"], "logits of 40 of 40 test samples (100.0%) are not finite")
    assert not Path("models/teachers/bad.pt").exists()
    # Weights that were written before, or elsewhere.
    assert run("train-teacher", "bad", "--set", "teachers.bad.options.value=1") == 0
    card = json.loads(Path("models/teachers/bad.json").read_text())
    card["architecture"]["options"]["value"] = value
    Path("models/teachers/bad.json").write_text(json.dumps(card))
    fails(["cache-logits", "main"], "not finite", "test/0")
    assert not STORE.exists()
    fails(["cache-logits", "main", "--set", "dumps.main.codec=auto"], "non-finite", "training samples")
    fails(["plan", "main"], "non-finite", "training samples")
    assert not STORE.exists()


def test_store_of_other_content(project, fails):
    assert run("cache-logits", "main") == 0
    images = np.load("data.npz")["train_images"].copy()
    images[11, 3, 3, 2] ^= 255
    assert run(*npz(train_images=images)) == 0
    student = ["train-student", "pupil", "kd", "0", "--dump", "main"]
    fails([*student, *OTHER], "'train/11' has different content")
    fails(["cache-logits", "main", *OTHER], "a different dataset", "rm -r")
    assert STORE.exists()


def test_store_of_another_teacher(project, fails):
    assert run("cache-logits", "main") == 0
    path = Path("models/teachers/tutor.pt")
    state = torch.load(path, weights_only=True)
    state["head.bias"][1] += 0.01
    save_as(path, state)
    fails(["cache-logits", "main"], "a different teacher", "new dump name", "rm -r")
    fails(["verify", str(STORE), "--replay", "4"], "a different teacher")


def test_store_of_other_views(project, fails, edit):
    assert run("cache-logits", "main") == 0
    edit({"dumps": {"main": {"views": {"seed": 4}}}})
    fails(["cache-logits", "main"], "written with different views: seed was 3, is 4", "new dump name")
    fails(
        ["train-student", "pupil", "kd", "0", "--dump", "main"],
        "the stored views differ",
        "seed was 3, is 4",
    )


def test_store_with_fewer_views_wanted(project, fails, edit):
    assert run("cache-logits", "main") == 0
    edit({"dumps": {"main": {"views": {"count": 2}}}})
    fails(["cache-logits", "main"], "has 3 views", "never loses views")


def test_student_of_a_store_of_another_teacher(project, fails):
    assert run("cache-logits", "main") == 0
    student = ["train-student", "pupil", "kd", "0", "--dump", "main"]
    fails([*student, "--set", "dumps.main.precision=bf16"], "precision was fp32, is bf16", "new dump")


def test_weights_with_a_stem(project, fails):
    edits = ["teachers.tutor.weights=FASHION_MNIST_V1", "teachers.tutor.stem_stride=1"]
    fails(["train-teacher", "tutor", "--set", edits[0], "--set", edits[1]], "stem_stride and weights")


def test_a_dump_named_as_the_runs_without_one(project, fails):
    fails(["report", "--set", "dumps.baseline={teacher: tutor, views: {count: 1}}"], "rename it")


def test_an_incomplete_store_does_not_verify(project, capsys):
    assert run("cache-logits", "main") == 0
    capsys.readouterr()
    (STORE / "manifest.json").unlink()
    assert run("verify", str(STORE), "--json") == 1
    audit = json.loads(capsys.readouterr().out)
    assert not audit["ok"]
    assert "not complete" in audit["bad"][0]


def test_a_file_is_no_store(project, fails):
    fails(["inspect", "params.yaml"], "params.yaml", "no such store")


@pytest.mark.parametrize("out", ["data.npz", "data.npz/x.zarr", "ftp://host/main.zarr"])
@pytest.mark.parametrize("command", ["cache-logits", "plan"])
def test_places_for_no_store(project, capsys, command, out):
    assert run(command, "main", "--out", out) == 2
    assert "--out" in capsys.readouterr().err


def test_a_folder_of_other_things(project, fails):
    for command in ("cache-logits", "plan"):
        fails(
            [command, "main", "--out", "models"],
            "contains files but no zarr.json",
            "choose a different --out",
        )


def test_a_link_to_a_folder_is_a_place(project):
    Path("elsewhere").mkdir()
    Path("link").symlink_to("elsewhere")
    assert run("cache-logits", "main", "--out", "link") == 0
    assert run("verify", "elsewhere") == 0


def test_shards_that_are_no_whole_chunks(project, fails):
    fails(["cache-logits", "main", "--set", "dumps.main.shard_rows=5000"], "shard_rows is 5000", "multiple")


def test_ranks_that_are_none(project, fails, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    assert run("cache-logits", "main") == 0
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    fails(["cache-logits", "main"], "RANK and WORLD_SIZE")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, None) for name in ("zarr.json", "manifest.json")),
        *((name, None) for name in ("train/keys/c/0", "train/codes/zarr.json")),
        *(("zarr.json", damage) for damage in (b"", b"{}", b'{"attributes": []}', b"\xff")),
        *(("manifest.json", damage) for damage in (b"", b"{}")),
    ],
)
def test_a_damaged_store_is_refused_then_mended(project, fails, name, damage):
    assert run("cache-logits", "main") == 0
    file = STORE / name
    file.unlink() if damage is None else file.write_bytes(damage)
    assert run("verify", STORE) == 1
    fails(["train-student", "pupil", "kd", "0", "--dump", "main"], str(STORE))
    assert run("verify", STORE, "--repair") == 0
    assert run("verify", STORE) == 0


def test_nothing_to_mend(project, fails):
    fails(["verify", "nowhere.zarr", "--repair"], "no such store")
    Path("empty").mkdir()
    fails(["verify", "empty", "--repair"], "no such store")


def test_incomplete_store(project, fails):
    assert run("cache-logits", "main") == 0
    (STORE / "manifest.json").unlink()
    fails(["train-student", "pupil", "kd", "0", "--dump", "main"], "not complete", "cache-logits main")
    fails(["verify", str(STORE)], "not complete")


def test_an_unfinished_store_can_be_inspected(project, capsys):
    assert run("cache-logits", "main", "--set", "dumps.main.shard_rows=16", "--shards", "1/2") == 0
    capsys.readouterr()
    assert run("inspect", STORE, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["complete"] is False
    assert summary["shards"]["done"] < summary["shards"]["total"]
    assert run("inspect", STORE) == 0
    assert "NOT complete" in capsys.readouterr().out


def test_a_teacher_of_two_channels(project, fails):
    card = Path("models/teachers/tutor.json")
    card.write_text(card.read_text().replace('"channels": 3', '"channels": 2'))
    state = torch.load("models/teachers/tutor.pt", weights_only=True)
    state["stem.weight"] = state["stem.weight"][:, :2]
    torch.save(state, "models/teachers/tutor.pt")
    preprocessing = json.loads(card.read_text())
    for moment in ("mean", "std"):
        preprocessing["preprocessing"][moment] = [0.5, 0.5]
    card.write_text(json.dumps(preprocessing))
    fails(["cache-logits", "main"], "not a model card (architecture.channels is 2: input should be 1 or 3)")


def test_missing_store(project, fails):
    fails(["train-student", "pupil", "kd", "0", "--dump", "main"], "no such store", "dvc pull")


def test_folder_that_is_no_store(project, fails):
    STORE.mkdir(parents=True)
    (STORE / "thesis.txt").write_text("keep me")
    fails(["cache-logits", "main"], "contains files but no zarr.json")
    assert (STORE / "thesis.txt").read_text() == "keep me"


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "swap", "manifest", "metadata"])
def test_damaged_store(project, fails, damage):
    assert run("cache-logits", "main") == 0
    shards = sorted(STORE.glob("train/codes/c/*/*/*"))
    if damage == "flip":
        content = bytearray(shards[2].read_bytes())
        content[len(content) // 2] ^= 1
        shards[2].write_bytes(content)
    elif damage == "truncate":
        shards[2].write_bytes(shards[2].read_bytes()[:-9])
    elif damage == "delete":
        shards[2].unlink()
    elif damage == "swap":
        first, second = shards[0].read_bytes(), shards[2].read_bytes()
        shards[0].write_bytes(second)
        shards[2].write_bytes(first)
    elif damage == "manifest":
        path = STORE / "manifest.json"
        path.write_text(path.read_text().replace('"codec": "affine8"', '"codec": "fp16"'))
    else:
        path = STORE / "train/codes/zarr.json"
        path.write_text(path.read_text() + " ")
    fails(["train-student", "pupil", "kd", "0", "--dump", "main"], str(STORE))
    assert run("verify", STORE) == 1


def test_a_teacher_can_be_trained_without_validation(project):
    assert run("prepare", "--set", "data.validation=0") == 0
    assert run("train-teacher", "tutor", "--set", "data.validation=0") == 0
    metrics = json.loads(Path("runs/teacher-tutor/metrics.json").read_text())
    assert metrics["validation_top1"] is None
    assert 0 < metrics["top1"] <= 1


def test_interrupted_stage_keeps_the_store_of_another(project):
    assert run("cache-logits", "main") == 0
    shutil.copytree(STORE, "copy.zarr")
    assert run("cache-logits", "main", "--set", "dumps.main.codec=fp16") == 1
    assert (STORE / "manifest.json").read_bytes() == Path("copy.zarr/manifest.json").read_bytes()


MIXING = ["--set", "dumps.main.views.cutmix={probability: 0.5}"]


def test_a_dump_whose_batches_cut_groups_of_mixed_images(project, fails):
    fails(
        ["cache-logits", "main", *MIXING, "--set", "dumps.main.batch_size=18"],
        "is 18",
        "set it to 16 or 20",
    )


def test_a_student_whose_batches_cut_groups_of_mixed_images(project, fails):
    assert run("cache-logits", "main", *MIXING) == 0
    student = ["train-student", "pupil", "kd", "0", "--dump", "main", *MIXING]
    fails([*student, "--set", "students.pupil.batch_size=18"], "is 18", "set it to 16 or 20")


def test_a_loss_of_one_class_for_mixed_images(project, fails):
    recipe = ["--set", "recipes.kd.loss=wsld"]
    words = (
        "loss 'wsld' needs one class per sample",
        "dump main mix samples",
        "choose a different dump",
        "kd",
    )
    fails(["train-student", "pupil", "kd", "0", "--dump", "main", *MIXING, *recipe], *words)
    fails(["report", *MIXING, *recipe], *words)


def test_a_crop_that_could_miss_the_image(project, fails):
    views = ["--set", "dumps.main.views={count: 1, seed: 0, pad_crop: {padding: 16}}"]
    fails(["cache-logits", "main", *views], "pad_crop.padding is 16", "16x16 pixels", "at most 15")


def test_contradictory_operations(project, fails):
    views = ["--set", "dumps.main.views={count: 1, trivial_augment: {}, rand_augment: {}}"]
    fails(["cache-logits", "main", *views], "both rand_augment and trivial_augment", "remove the other")


def test_a_mistyped_operation(project, fails):
    views = ["--set", "dumps.main.views.colour_jitter={}"]
    fails(["cache-logits", "main", *views], "unknown key dumps.main.views.colour_jitter", "'color_jitter'")
