"""A source of the user's own code, in each modality, through `pipeline prepare`: each fault is one line."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from tests.stages.conftest import run

CODE = """
from functools import partial

import numpy as np
from pipeline.modalities.audio.form import AudioSource
from pipeline.modalities.images.form import ImageSource
from pipeline.modalities.items.form import ItemsSource
from pipeline.modalities.text.form import TextSource
from pipeline.samples.samples import Sample

MADE = {
    "images": (partial(ImageSource, channels=3), lambda n: np.full((8, 8, 3), n, np.uint8)),
    "audio": (partial(AudioSource, sample_rate=16_000), lambda n: np.full(1600, n, np.int16)),
    "text": (TextSource, lambda n: np.frombuffer(b"word %d" % n, np.uint8)),
    "items": (ItemsSource, lambda n: np.array([0, 1, n % 2], np.int32)),
}


def source(options):
    dataset, sound = MADE["MODALITY"]

    def sample(split, n):
        return Sample(f"{split}/{n}", LABEL if n == 7 else n % 2, lambda: LOADED if n == 7 else sound(n))

    train, test = ([sample(split, n) for n in range(20)] for split in ("train", "test"))
    return dataset(classes=("a", "b"), train=train, test=test)
"""
MODALITIES = ("images", "audio", "text", "items")
UNREADABLE = Path("runs/.state/prepare/unreadable.txt")


@pytest.fixture
def prepare_own(tmp_path, monkeypatch):
    """Return a function that writes `mine.py`, and returns the exit status of `pipeline prepare`."""

    def prepare_own(modality: str, *, label: str = "n % 2", loaded: str = "sound(n)") -> int:
        code = CODE.replace("MODALITY", modality).replace("LABEL", label).replace("LOADED", loaded)
        Path("mine.py").write_text(code)
        data = {"source": "mine:source", "modality": modality}
        data |= {"task": "next_item"} if modality == "items" else {}
        Path("params.yaml").write_text(yaml.safe_dump({"data": data}))
        importlib.invalidate_caches()
        return run("prepare")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield prepare_own
    sys.modules.pop("mine", None)


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_source_is_read(prepare_own, modality):
    # `mine` is near `inter`, a source of histories: a module that is there is meant.
    assert prepare_own(modality) == 0
    assert json.loads(Path("data/prepared/dataset.json").read_text())["samples"]["test"] == 20


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_label_without_a_class_is_refused_before_anything_is_read(prepare_own, capsys, modality):
    assert prepare_own(modality, label="5", loaded="1 / 0") == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert "mine:source: the label of sample 'train/7' is 5; expected an integer, -1 for unlabel" in told
    assert not Path("data/prepared/dataset.json").exists()


@pytest.mark.parametrize(
    ("loaded", "told"),
    [
        ("1 / 0", "its code raises ZeroDivisionError: division by zero; correct the source"),
        ("open('missing')", "its code raises FileNotFoundError: .* 'missing'; correct the source"),
        ("None", "loads as a NoneType; expected an array; correct the source"),
        ("'text'", "loads as a str; expected an array; correct the source"),
        ("np.full((8, 8, 3), 0.5)", r"float64 of shape \(8, 8, 3\); expected u?int(8|16|32) .*; correct"),
        ("np.zeros((2, 3), object)", r"object of shape \(2, 3\); expected u?int(8|16|32) .*; correct"),
        ("np.zeros((0, 8, 3), np.uint8)", r"(.*expected|no word|an empty history).*"),
    ],
)
@pytest.mark.parametrize("modality", MODALITIES)
def test_what_is_no_sample_is_listed_with_its_reason(prepare_own, capsys, modality, loaded, told):
    assert prepare_own(modality, loaded=loaded) == 1
    assert "2 of 40" in capsys.readouterr().err.splitlines()[-1]
    found = UNREADABLE.read_text().splitlines()
    assert [line.partition(": ")[0] for line in found] == ["train/7", "test/7"]
    assert all(re.search(told, line) for line in found)
