"""Preparing clips: resampled once, packed, faults named; interrupted and resumed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.core.errors import DataError
from pipeline.modalities.audio.modality import AUDIO
from pipeline.modalities.audio.options import AudioOptions
from pipeline.modalities.audio.resampling import resample
from pipeline.modalities.prepared import PreparedData, audit_data
from pipeline.samples.prepare import Preparation, prepare
from tests.pipeline.modalities.audio.clips import noise, write


def prepared(tmp_path, **options) -> PreparedData:
    """Prepare tmp_path/words as the command does."""
    asked = AudioOptions(**{"sample_rate": 8_000, **options})
    folder = tmp_path / "prepared"
    source = AUDIO.open_source(f"folder:{tmp_path / 'words'}", asked)
    prepare(
        source,
        folder,
        Preparation(origin="folder:words", kinds={"modality": "audio"}),
        AUDIO.intake(source, folder, asked),
        state=tmp_path / "state",
        workers=2,
        progress=lambda samples, _: iter(samples),
    )
    return PreparedData.open(folder)


@pytest.fixture
def words(tmp_path):
    for number, label in enumerate(["no", "yes"] * 3):
        split = "train" if number < 4 else "test"
        write(tmp_path / f"words/{split}/{label}/{number}.wav", noise(900 + number, seed=number), 16_000)
    return tmp_path


def test_clips_are_resampled_once_and_packed(words):
    data = prepared(words)
    assert (data.train.form.sample_rate, data.train.form.dtype) == (8_000, "int16")
    row = list(data.train.names).index("train/yes/1.wav")
    assert (data.train.array(row) == resample(noise(901, seed=1), 16_000, 8_000)).all()
    described = json.loads((words / "prepared/dataset.json").read_text())
    assert (described["sample_rate"], described["resampler"]) == (8_000, "polyphase 1")
    assert described["decoder"].startswith("soundfile")
    audit = audit_data(words / "prepared", workers=1, progress=lambda rows, _: iter(rows))
    assert (audit.bad, audit.images) == ([], 6)


@pytest.fixture
def faulty(words):
    square = np.where(np.arange(4000) % 40 < 20, 32767, -32768).astype(np.int16)
    write(words / "words/train/no/quiet.wav", np.full(4000, 3, np.int16))
    write(words / "words/train/no/square.wav", square)
    write(words / "words/train/no/blip.wav", noise(100), 16_000)
    cut = write(words / "words/test/no/cut.wav", noise(4000))
    cut.write_bytes(cut.read_bytes()[:4000])
    broken = np.where(np.arange(4000) == 7, np.nan, 0.1)
    write(words / "words/train/yes/broken.wav", broken, subtype="FLOAT")
    return words


def test_faults_are_counted_named_and_listed(faulty, capsys):
    prepared(faulty)
    told = capsys.readouterr().err
    for line in (
        "silent: 1 clip (never louder than 16 of 32,767): ",
        "clipped: 1 clip (12 or more samples stay at full scale): ",
        "short: 1 clip (shorter than 0.05 seconds): ",
        "cut: 1 clip (the file ends before the length that its header gives, or without its last page): ",
        "not finite: 1 clip (NaN is read as silence, infinity as full scale): ",
    ):
        assert line in told
    listed = (faulty / "prepared/faulty.txt").read_text().splitlines()
    assert [line.partition("\t")[0] for line in listed] == [
        "silent",
        "clipped",
        "short",
        "cut",
        "not finite",
    ]
    described = json.loads((faulty / "prepared/dataset.json").read_text())
    assert described["remarks"] == {"silent": 1, "clipped": 1, "short": 1, "cut": 1, "not finite": 1}


def test_faults_are_refused_if_that_is_asked_for(faulty):
    with pytest.raises(DataError, match=r"5 of 11 clips are faulty: .*the full list is in"):
        prepared(faulty, faulty="refuse")


def test_unreadable_files_are_named_all_at_once(words):
    for name in ("train/no/0.wav", "train/yes/3.wav"):
        (words / "words" / name).write_bytes(b"not a sound")
    with pytest.raises(
        DataError, match=r"2 of 6 clips cannot be read: .*0.wav, .*3.wav; the full list is in"
    ):
        prepared(words)
    write(words / "words/train/no/0.wav", noise(900, seed=0), 16_000)
    write(words / "words/train/yes/3.wav", noise(903, seed=3), 16_000)
    assert len(prepared(words).train) == 4


def test_data_prepared_with_other_options_is_told(words):
    data = prepared(words)
    assert data.modality is AUDIO
    was = {"source": "folder:words", "sample_rate": 8_000, "label": "a", "group": None, "faulty": "warn"}
    options = AudioOptions()
    assert options.differs("sample_rate", was, {"sample_rate": 16_000})
    assert not options.differs("label", was, {"label": "b"})
    assert options.differs("label", {**was, "source": "csv:x"}, {"label": "b"})
    assert options.differs("faulty", was, {"faulty": "refuse"})
    assert not options.differs("faulty", {**was, "faulty": "none"}, {"faulty": "refuse"})
    assert options.for_models() == {"clip_seconds": None}
    assert "clip_seconds" not in options.asked()
