"""A project of clips goes through every command: from files to the report and the exported network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline import LogitStore, ReplayDataset
from pipeline.modalities.prepared import PreparedData
from tests.pipeline.modalities.audio.clips import noise, tone, write
from tests.stages.conftest import run

RATE = 8_000
VIEWS = {"seed": 3, "crop": "random", "shift": {"seconds": 0.02}, "gain": {}, "polarity": {}}
STRONG = {"speed": {}, "time_mask": {}, "frequency_mask": {}, "mixup": {"probability": 0.25}}
NOISE = {"background_noise": {"folder": "noise", "min_snr_db": 10}}
PARAMS = {
    "data": {"modality": "audio", "source": "folder:words", "watch": "words", "validation": 0.2}
    | {"sample_rate": RATE, "clip_seconds": 0.2},
    "training": {"epochs": 16, "batch_size": 8, "learning_rate": 0.05, "views": VIEWS},
    "teachers": {
        "tutor": {
            "model": "wavenet",
            "options": {"channels": 8, "skips": 16, "layers": 4, "stacks": 1, "frame": 10},
        }
    },
    "dumps": {
        "main": {"teacher": "tutor", "codec": "fp16", "batch_size": 16, "shard_rows": 32}
        | {"allow_poor_teacher": True, "views": {"count": 2, **VIEWS, **STRONG, **NOISE}}
    },
    "students": {
        "pupil": {"model": "ds_cnn", "options": {"width": 16}, "preprocessing": {"sample_rate": 6_000}}
    },
    "recipes": {
        "scratch": {"loss": "scratch"},
        "kd": {"loss": "kd", "temperature": 1, "ce_weight": 0.5, "kd_weight": 0.5},
    },
    "sweep": {"dumps": ["main"], "students": ["pupil"], "recipes": ["kd"], "baselines": ["scratch"]},
}


@pytest.fixture
def words(tmp_path, monkeypatch) -> Iterator[Path]:
    """A project of short tones at three pitches, as FLAC and WAV files."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 30), ("test", 10)):
        for label, hertz in (("low", 300), ("middle", 800), ("high", 2000)):
            for number in range(count):
                length = int(generator.integers(1200, 2000))
                clip = tone(hertz * generator.uniform(0.9, 1.1), length) + noise(length, number) // 10
                suffix = ("wav", "flac")[number % 2]
                write(tmp_path / f"words/{split}/{label}/{number}.{suffix}", clip.astype(np.int16))
    write(tmp_path / "noise/fan.wav", noise(5000, seed=1))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_takes_clips(words, capsys):
    assert run("prepare") == 0
    assert "test 30 clips" in capsys.readouterr().out
    data = PreparedData.open(Path("data/prepared"))
    assert (data.train.form.sample_rate, data.train.array(0).dtype) == (RATE, np.int16)
    for command in ("train-teacher tutor", "plan main", "cache-logits main"):
        assert run(*command.split()) == 0
    store = LogitStore.open(Path("data/logits/main.zarr"))
    assert (store.n_views, store.n_classes, store.teacher["modality"]) == (2, 3, "audio")
    assert len(store.views["background_noise"]["digest"]) == 64

    capsys.readouterr()
    assert run("verify", "data/logits/main.zarr", "--replay", "40", "--json") == 0
    audit = json.loads(capsys.readouterr().out)
    assert (audit["ok"], audit["replayed"], audit["replay_max_abs_diff"] < 0.1) == (True, 40, True)

    assert run("train-student", "pupil", "kd", "0", "--dump", "main") == 0
    assert run("train-student", "pupil", "scratch", "0") == 0
    assert run("report") == 0
    results = json.loads(Path("reports/results.json").read_text())
    assert all(row["top1"] > 0.5 for row in results["students"])
    page = Path("reports/index.html").read_text()
    assert "data:audio/wav;base64," in page
    assert "data:image/png;base64," in page
    assert run("verify", "--data") == 0

    clip, shares, logits = ReplayDataset("data/logits/main.zarr", "data/prepared")[0]
    assert (clip.shape, shares.shape, logits.shape) == ((1, 1600), (3,), (3,))


def test_new_clips_grow_a_dump(words, capsys):
    quick = "--set", "teachers.tutor.epochs=1"
    for command in ("prepare", "train-teacher tutor", "cache-logits main"):
        assert run(*command.split(), *quick) == 0
    before = LogitStore.open(Path("data/logits/main.zarr"))
    for number in range(5):
        write(words / f"words/train/low/new{number}.wav", tone(310 + number, 1500))
    capsys.readouterr()
    assert run("prepare", *quick) == 0
    assert run("cache-logits", "main", *quick) == 0
    after = LogitStore.open(Path("data/logits/main.zarr"))
    assert 0 < after.n_samples - before.n_samples <= 5
    assert run("verify", "data/logits/main.zarr", "--replay", "16") == 0


@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_exported_networks_take_waveforms(words, form, capsys):
    for command in ("prepare", "train-student pupil scratch 0 --set training.epochs=1"):
        assert run(*command.split()) == 0
    capsys.readouterr()
    export = f"export models/students/baseline-pupil-scratch-0.pt --format {form} --out pupil.{form}"
    assert run(*export.split(), "--with-normalise") == 0
    assert "agreement 1.0000" in capsys.readouterr().out
    assert run(*export.split(), "--images", "words/test/high", "--samples", "4") == 0
    assert "4 samples in batches of 1, 3" in capsys.readouterr().out
    if form == "onnx":
        assert run(*export.split(), "--with-normalise") == 0
        import onnxruntime

        session = onnxruntime.InferenceSession(Path("pupil.onnx").read_bytes())
        (asked,) = session.get_inputs()
        assert (asked.type, asked.shape[1:]) == ("tensor(int16)", [1600])
        preprocessing = json.loads(session.get_modelmeta().custom_metadata_map["preprocessing"])
        assert (preprocessing["rendered_rate"], preprocessing["sample_rate"]) == (RATE, 6_000)


@pytest.mark.parametrize(
    ("command", "value", "message"),
    [
        ("prepare", "data.sample_rate=10", "sample_rate is 10; expected 1,000 to 192,000"),
        ("prepare", "data.clip_seconds=0", "clip_seconds is 0.0; expected 0.01"),
        ("prepare", "data.image_size=3", "unknown key data.image_size; expected one of"),
        ("prepare", "data.source=folder:none", "none: no such folder"),
        ("prepare", "training.views.shift.seconds=0", "shift.seconds is 0"),
        ("prepare", "dumps.main.views.echo=1", "dumps.main.views.echo; expected one of"),
        (
            "train-teacher tutor",
            "teachers.tutor.preprocessing.features=log_mel",
            "takes features: waveform",
        ),
        ("train-teacher tutor", "teachers.tutor.preprocessing.n_fft=0", "n_fft is 0; expected 1"),
        ("train-teacher tutor", "data.sample_rate=16000", "params.yaml asks for"),
        (
            "train-teacher tutor",
            "teachers.tutor.channels=3",
            "channels is 3; expected 1, as clips have one",
        ),
    ],
)
def test_bad_input_is_one_clear_line(words, capsys, command, value, message):
    if command != "prepare":
        assert run("prepare") == 0
        capsys.readouterr()
    assert run(*command.split(), "--set", value) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.rstrip().count("\n") <= 1


def test_other_noise_than_the_dumps_is_refused(words, capsys):
    quick = "--set", "teachers.tutor.epochs=1"
    assert run("prepare") == 0
    assert run("train-teacher", "tutor", *quick) == 0
    assert run("cache-logits", "main", *quick) == 0
    write(words / "noise/fan.wav", noise(5000, seed=2))
    from pipeline.modalities.audio.noise import noise_digest

    noise_digest.cache_clear()
    capsys.readouterr()
    assert run("train-student", "pupil", "kd", "0", "--dump", "main") == 1
    assert (
        "the stored views differ from the dump's parameters: background_noise.digest was"
        in capsys.readouterr().err
    )


def test_the_preset_runs(tmp_path, monkeypatch, capsys):
    """From the preset to the report and the ONNX file, with smaller networks and one epoch."""
    monkeypatch.chdir(tmp_path)
    assert run("preset", "audio", "--out", "params.yaml") == 0
    tree = yaml.safe_load(Path("params.yaml").read_text())
    tree["training"]["epochs"], tree["dumps"]["main"]["views"]["count"] = 1, 1
    tree["dumps"]["main"]["allow_poor_teacher"] = True
    smaller = {"channels": 4, "skips": 8, "layers": 3, "stacks": 1, "stride": 32}
    tree["teachers"]["wavenet"]["options"] = smaller
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    for command in ("prepare", "train-teacher wavenet", "cache-logits main"):
        assert run(*command.split()) == 0
    for command in ("ds_cnn kd 0 --dump main", "ds_cnn scratch 0"):
        assert run("train-student", *command.split()) == 0
    assert run("report") == 0
    assert "spoken-words-synthetic" in Path("data/prepared/dataset.json").read_text()
    export = "export", "models/students/main-ds_cnn-kd-0.pt", "--format", "onnx", "--out", "student.onnx"
    assert run(*export, "--with-normalise") == 0
    assert "agreement 1.0000" in capsys.readouterr().out
