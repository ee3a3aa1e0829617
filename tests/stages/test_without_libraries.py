"""A project of texts runs without the libraries of images, and the other way round; errors name the "
"extra."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import call
from tests.stages.conftest import begin
from tests.stages.test_text import SMALL, write_table

ROOT = Path(__file__).parents[2]
# Imports of the named libraries fail as if they were not installed.
RUN = """
import sys
from stages.cli import main

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
for command in {commands!r}:
    try:
        main(command)
    except SystemExit as done:
        if done.code:
            raise
"""
IMAGES, TEXTS = ("torchvision", "timm"), ("tokenizers", "pyarrow", "transformers")


def without(missing: tuple[str, ...], *commands: list[str]) -> subprocess.CompletedProcess[str]:
    code = RUN.format(missing=missing, commands=commands)
    return call([sys.executable, "-c", code])


@pytest.fixture
def text_project(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    write_table(tmp_path / "table")
    return tmp_path


def test_texts_need_no_library_of_images_and_no_tokenizers(text_project):
    changes = [part for change in (*SMALL, "training.epochs=1") for part in ("--set", change)]
    changes += ["--set", "dumps.main.allow_poor_teacher=true"]
    commands = ["prepare"], ["train-teacher", "teacher"], ["cache-logits", "main"]
    students = [
        ["train-student", name, *run]
        for name in ("bytes", "words")
        for run in (["kd", "0", "--dump", "main"], ["scratch", "0"])
    ]
    done = without(
        (*IMAGES, *TEXTS),
        ["preset", "text", "--out", "params.yaml"],
        *([*command, *changes] for command in (*commands, *students, ["report"])),
        ["verify", "data/logits/main.zarr"],
    )
    assert done.returncode == 0, done.stderr
    assert Path("reports/index.html").exists()


def test_images_need_no_library_of_texts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    begin(tmp_path)
    done = without(TEXTS, ["prepare"], ["train-teacher", "tutor", "--set", "training.epochs=1"])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("missing", "changes", "message"),
    [
        (
            "pyarrow",
            ["data.source=parquet:table"],
            "needs pyarrow, which is not installed; run: pip install",
        ),
        ("torchvision", ["data.modality=images"], "images needs torchvision, which is not installed"),
    ],
)
def test_a_missing_library_is_one_line_that_says_how_to_install_it(text_project, missing, changes, message):
    without((), ["preset", "text", "--out", "params.yaml"])
    (text_project / "table/train.parquet").touch()
    (text_project / "table/test.parquet").touch()
    told = [part for change in changes for part in ("--set", change)]
    done = without((missing,), ["prepare", *told])
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("missing", "change", "message"),
    [
        (
            "tokenizers",
            "preprocessing={tokenizer: tok.json}",
            "needs the library tokenizers, which is not installed",
        ),
        (
            "transformers",
            "model='hf:bert'",
            "needs transformers, and transformers is not installed; run: pip",
        ),
    ],
)
def test_a_model_says_which_extra_it_needs(text_project, missing, change, message):
    changes = [part for change in SMALL for part in ("--set", change)]
    (text_project / "tok.json").write_text("{}")
    (text_project / "bert").mkdir()
    (text_project / "bert/config.json").write_text('{"model_type": "bert"}')
    (text_project / "bert/tokenizer.json").write_text("{}")
    key, _, value = change.partition("=")
    done = without(
        ("tokenizers", "transformers") if missing == "tokenizers" else (missing,),
        ["preset", "text", "--out", "params.yaml"],
        ["prepare", *changes],
        ["train-student", "words", "scratch", "0", *changes, "--set", f"students.words.{key}={value}"],
    )
    assert done.returncode == 1
    assert message in done.stderr, done.stderr
