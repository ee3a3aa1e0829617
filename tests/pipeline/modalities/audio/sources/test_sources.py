"""Sources of clips: class folders, tables, AudioFolder's metadata, arrays, one's own code."""

from __future__ import annotations

import csv
import os
import sys
from types import ModuleType

import numpy as np
import pytest

from pipeline.core.errors import ConfigError, DataError
from pipeline.modalities.audio.form import AudioSource
from pipeline.modalities.audio.options import AudioOptions
from pipeline.modalities.audio.sources import open_source
from pipeline.samples.samples import Sample
from tests.pipeline.modalities.audio.clips import noise, write

OPTIONS = AudioOptions()


def names(samples) -> list[str]:
    return [sample.name for sample in samples]


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "test"):
        for label in ("no", "yes"):
            for number in range(2):
                write(tmp_path / f"words/{split}/{label}/{number}.wav", noise(200, seed=number))
    return tmp_path / "words"


def test_class_folders_are_classes(folder):
    (folder / "train/no/notes.txt").touch()
    write(folder / "train/unlabelled/x.flac", noise(100))
    source = open_source(f"folder:{folder}", OPTIONS)
    assert source.classes == ("no", "yes")
    assert names(source.test) == ["test/no/0.wav", "test/no/1.wav", "test/yes/0.wav", "test/yes/1.wav"]
    assert [sample.label for sample in source.train] == [0, 0, -1, 1, 1]
    assert source.train[1].load().tolist() == noise(200, seed=1).tolist()
    assert str(source.left_out) == "1 file (.txt 1)"
    assert source.decoder.startswith("soundfile ")


def test_a_folder_without_sound_files_is_a_clear_error(tmp_path):
    for label in ("a", "b"):
        (tmp_path / "x" / label).mkdir(parents=True)
        (tmp_path / "x" / label / "pixel.png").touch()
    with pytest.raises(
        DataError, match=r"x: no sound files in class folders, left out: 2 files \(.png 2\)"
    ):
        open_source(f"folder:{tmp_path / 'x'}", OPTIONS)


def table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def row(name, label="a", **more):
    return {"path": name, "label": label, **more}


def test_a_table_names_splits_and_leaves_labels_out(tmp_path):
    rows = [
        row("a.wav", "yes", split="train"),
        row("b.wav", "no", split="train"),
        row("c.wav", "", split="train"),
        row("d.wav", "yes", split="validation"),
        row("e.wav", "no", split="test"),
    ]
    source = open_source(f"csv:{table(tmp_path / 'all.csv', rows)}", OPTIONS)
    assert source.classes == ("no", "yes")
    assert [(s.name, s.label) for s in source.train] == [("a.wav", 1), ("b.wav", 0), ("c.wav", -1)]
    assert (names(source.validation), names(source.test)) == (["d.wav"], ["e.wav"])
    assert source.train[0].file == str(tmp_path / "a.wav")


def test_a_table_without_splits_tests_on_a_fifth_of_each_class(tmp_path, capsys):
    rows = [row(f"{number}.wav", "ab"[number % 2]) for number in range(40)]
    source = open_source(f"csv:{table(tmp_path / 'all.csv', rows)}", OPTIONS)
    assert len(source.train) + len(source.test) == 40
    assert {sample.label for sample in source.test} == {0, 1}
    assert source.validation is None
    assert "no column 'split'" in capsys.readouterr().err


def test_whole_groups_are_held_out(tmp_path, capsys):
    rows = [row(f"{n}.wav", "ab"[n % 2], speaker=f"s{n % 6}") for n in range(36)]
    path = table(tmp_path / "all.csv", rows)
    options = AudioOptions(group="speaker")
    source = open_source(f"csv:{path}", options)
    speakers = [
        {f"s{int(name[:-4]) % 6}" for name in names(part)}
        for part in (source.train, source.validation, source.test)
    ]
    assert [len(found) for found in speakers] == [4, 1, 1]
    assert len(set.union(*speakers)) == 6
    assert "held-out groups of column 'speaker'" in capsys.readouterr().err
    table(path, rows[::-1])
    assert set(names(open_source(f"csv:{path}", options).test)) == set(names(source.test))


def test_audio_folders_metadata_is_a_table(tmp_path):
    root = tmp_path / "data"
    table(root / "metadata.csv", [{"file_name": f"{n}.wav", "label": "ab"[n % 2]} for n in range(20)])
    assert open_source(f"folder:{root}", OPTIONS).classes == ("a", "b")
    parts = tmp_path / "parts"
    for split in ("train", "valid"):
        rows = [{"file_name": f"{n}.wav", "label": "ab"[n % 2]} for n in range(4)]
        table(parts / split / "metadata.csv", rows)
    source = open_source(f"folder:{parts}", OPTIONS)
    assert names(source.test) == [f"valid/{n}.wav" for n in range(4)]
    assert source.train[0].file == str(parts / "train/0.wav")


def test_sounds_that_no_table_names_are_counted(tmp_path):
    rows = [{"file_name": f"{n}.wav", "label": "ab"[n % 2]} for n in range(20)]
    table(tmp_path / "one/metadata.csv", rows)
    for name in ("one/1.wav", "one/more/x.wav", "one/more/y.wav", "parts/train/1.wav", "parts/val/1.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = open_source(f"folder:{tmp_path / 'one'}", OPTIONS)
    assert found.left_out.unlisted == {f"{tmp_path}/one/more/": 2}
    assert str(found.left_out) == f"2 in {tmp_path}/one/more/ that the table lacks"
    for split in ("train", "test"):
        table(tmp_path / "parts" / split / "metadata.csv", rows)
    assert open_source(f"folder:{tmp_path / 'parts'}", OPTIONS).left_out.to_dict() == {
        "unlisted": {f"{tmp_path}/parts/val/": 1}
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label,label\na.wav,a,b\n", "has two columns 'label'"),
        ("path,label\na.wav,a\nb.wav\n", "line 3: 1 field; expected 2"),
        ("path,label\na.wav,a\nb,c.wav,b\n", "line 3: 3 fields; expected 2"),
        ("path,label\na.wav,a\n\nb.wav\n", "line 4: 1 field; expected 2"),
    ],
)
def test_a_row_of_a_table_has_all_fields(tmp_path, text, message):
    (tmp_path / "all.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        open_source(f"csv:{tmp_path / 'all.csv'}", OPTIONS)


def test_a_table_that_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "all.csv")
    with pytest.raises(DataError, match=r"all\.csv: no regular file"):
        open_source(f"csv:{tmp_path / 'all.csv'}", OPTIONS)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (
            [{"sound": "a.wav", "label": "a"}],
            {},
            r"has the columns \['sound', 'label'\]; expected one of file_name",
        ),
        (
            [row("a.wav")],
            {"label": "word"},
            "no column 'word', which data.label names; expected one of path",
        ),
        ([row("a.wav")], {"group": "speaker"}, "no column 'speaker', which data.group names"),
        ([row("")], {}, "line 2 has no path; expected a path"),
        ([row("a.wav", split="dev")], {}, "'a.wav' is in the split 'dev'; expected train, test or val"),
        ([row(f"{n}.wav", "ab"[n]) for n in range(2)], {}, "no test clips; expected at least one"),
        (
            [row("a.wav", s="1"), row("b.wav", s="2")],
            {"group": "s"},
            "2 groups in column 's'; expected at least three",
        ),
        ([row("a.wav", split="train"), row("b.wav", split="test")], {}, "1 class; expected at least two"),
    ],
)
def test_an_unusable_table_is_a_clear_error(tmp_path, rows, options, message):
    path = table(tmp_path / "all.csv", rows)
    with pytest.raises(DataError, match=message):
        open_source(f"csv:{path}", AudioOptions(**options))


def test_a_missing_table_and_other_bytes_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"none.csv: no such file; expected a table"):
        open_source(f"csv:{tmp_path / 'none.csv'}", OPTIONS)
    (tmp_path / "x.csv").write_bytes(b"path,label\n\xff\xfe,a\n")
    with pytest.raises(DataError, match=r"x.csv: not a readable table"):
        open_source(f"csv:{tmp_path / 'x.csv'}", OPTIONS)


def arrays(**changed):
    clips = np.stack([noise(50, seed=seed) for seed in range(9)])
    found = {"train_clips": clips[:6], "train_labels": np.array([0, 1] * 3), "sample_rate": np.array(8000)}
    found |= {"test_clips": clips[6:], "test_labels": np.array([0, 1, 1]), **changed}
    return {name: array for name, array in found.items() if array is not None}


def test_arrays_are_padded_clips(tmp_path):
    np.savez(tmp_path / "x.npz", **arrays(train_lengths=np.array([50, 20, 50, 50, 50, 1])))
    source = open_source(f"npz:{tmp_path / 'x.npz'}", OPTIONS)
    assert [len(sample.load()) for sample in source.train] == [50, 20, 50, 50, 50, 1]
    assert (source.sample_rate, source.classes) == (8000, ("0", "1"))
    assert names(source.test) == ["test/0", "test/1", "test/2"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_clips": np.zeros((6, 50))}, r"train_clips is float64 \(6, 50\); expected int16 \(N, T\)"),
        ({"train_lengths": np.array([51] * 6)}, "train_lengths has 51 to 51; expected 1 to 50"),
        ({"train_lengths": np.zeros(6)}, r"train_lengths is float64 \(6,\); expected integers"),
        ({"sample_rate": np.array([1, 2])}, "sample_rate is int64"),
        ({"sample_rate": None}, "add sample_rate"),
        (
            {"test_labels": np.array([0, 1])},
            r"test_labels is int64 \(2,\); expected integers \(3,\), one per clip",
        ),
    ],
)
def test_arrays_of_another_form_are_refused(tmp_path, changed, message):
    np.savez(tmp_path / "x.npz", **arrays(**changed))
    with pytest.raises(DataError, match=message):
        open_source(f"npz:{tmp_path / 'x.npz'}", OPTIONS)


def test_ones_own_code_is_a_source(monkeypatch):
    module = ModuleType("hums")
    samples = [Sample(f"{n}", n % 2, lambda n=n: noise(20, seed=n)) for n in range(6)]
    module.hums = lambda: AudioSource(
        classes=("a", "b"), train=samples[:4], test=samples[4:], sample_rate=8000
    )
    module.odd = lambda: 3
    monkeypatch.setitem(sys.modules, "hums", module)
    assert len(open_source("hums:hums", OPTIONS).train) == 4
    with pytest.raises(
        ConfigError, match=r"source hums:odd returns a int; expected a pipeline.modalities.audio"
    ):
        open_source("hums:odd", OPTIONS)


@pytest.mark.parametrize("name", ["folders:x", "radio", "cvs:x"])
def test_an_unknown_source_is_a_clear_error(name):
    with pytest.raises(ConfigError, match=r"data.source is .*expected .*folder:PATH"):
        open_source(name, OPTIONS)
