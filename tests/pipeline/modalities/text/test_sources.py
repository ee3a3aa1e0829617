"""Texts from tables, folders and the built-in data: names, labels, splits, and one line for what is "
"wrong."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline.core.errors import ConfigError, DataError
from pipeline.modalities.table import find_modality
from pipeline.modalities.text.form import TextSource
from pipeline.modalities.text.options import TextOptions
from pipeline.modalities.text.sources import open_source
from pipeline.modalities.text.sources.builtin import LONGEST, SHORTEST, snippets
from pipeline.modalities.text.words import BORDER, text_of
from pipeline.samples.prepare import Preparation, prepare

ROWS = [
    ("a sea", "x"),
    ('the, "sea"\nagain', "y"),
    ("東京", "x"),
    ("a sea", "x"),
    ("no label", ""),
    ("b", "y"),
]
TEXT = find_modality("text")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: str, rows=ROWS, header=("text", "label")) -> None:
    Path(path).parent.mkdir(exist_ok=True)
    with Path(path).open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def found(source: str, **options) -> TextSource:
    return open_source(source, TextOptions(**options))


def texts(samples) -> list[str]:
    return [text_of(sample.load()) for sample in samples]


def ready(source: str, **options) -> None:
    """Prepare a source; errors of single texts come then."""
    options = TextOptions(**options)
    made = TEXT.open_source(source, options)
    asked = Preparation(origin=source, kinds={"modality": "text"})
    intake = TEXT.intake(made, Path("p"), options)
    prepare(made, Path("p"), asked, intake, state=Path("s"), workers=1, progress=lambda samples, _: samples)


def test_a_folder_of_tables_has_a_file_for_each_split():
    write("t/train-00000-of-00002.csv")
    write("t/train-00001-of-00002.csv", [("more", "y")])
    write("t/test.csv", [("one", "x")])
    write("t/dev.csv", [("two", "y")])
    write("t/unlabeled.csv", [("three",)], ("text",))
    Path("t/README.md").touch()
    source = found("csv:t")
    assert source.classes == ("x", "y")
    assert texts(source.train) == [*(text for text, _ in ROWS), "more", "three"]
    assert [sample.label for sample in source.train] == [0, 1, 0, 0, -1, 1, 1, -1]
    assert (texts(source.test), texts(source.validation)) == (["one"], ["two"])
    assert source.left_out.unused == ("README.md",)


def test_rows_are_named_by_their_content_or_by_a_column():
    write("t/train.csv", [(*row, f"id{place}") for place, row in enumerate(ROWS)], ("text", "label", "id"))
    write("t/test.csv", [("one", "x", "id9")], ("text", "label", "id"))
    assert [sample.name for sample in found("csv:t", id="id").train] == [f"id{n}" for n in range(6)]
    names = [sample.name for sample in found("csv:t").train]
    assert len(set(names)) == 6
    assert names[0].removesuffix("#0") == names[3].removesuffix("#1")
    # Adding, removing and reordering rows changes no other row's name.
    write("t/train.csv", [("new", "x"), *reversed(ROWS[1:])])
    again = {
        text: sample.name
        for text, sample in zip(texts(found("csv:t").train), found("csv:t").train, strict=True)
    }
    assert again["東京"] == names[2]


def test_pairs_of_texts_are_one_sample():
    write("t/train.csv", [("a", "b", 0), ("c", "d", 1)], ("premise", "hypothesis", "label"))
    write("t/test.csv", [("e", "f", 0)], ("premise", "hypothesis", "label"))
    source = found("csv:t", text="premise", text_pair="hypothesis")
    assert texts(source.train) == [f"a{BORDER}b", f"c{BORDER}d"]


def test_numbers_are_classes_in_their_order():
    write("t.csv", [(f"text {n}", [10, 9, 2][n % 3]) for n in range(30)])
    source = found("csv:t.csv")
    assert source.classes == ("2", "9", "10")
    assert Counter(sample.label for sample in source.test).keys() == {0, 1, 2}


def test_tsv_has_no_quotes_and_json_lines_have_any_order():
    Path("t.tsv").write_text("label\ttext\n" + "\n".join(f'{"xy"[n % 2]}\tsay "{n}' for n in range(8)))
    assert texts(found("tsv:t.tsv").train)[0].startswith('say "')
    lines = [{"text": f"t{n}", "n": n, **({} if n == 5 else {"label": "xy"[n % 2]})} for n in range(8)]
    Path("t.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    labels = {
        text: sample.label
        for text, sample in zip(
            texts(found("jsonl:t.jsonl").train), found("jsonl:t.jsonl").train, strict=True
        )
    }
    assert labels["t5"] == -1


def test_parquet_and_saved_datasets_name_their_classes():
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    features = {"info": {"features": {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}}}
    rows = {"text": [f"t{n}" for n in range(10)], "label": [n % 2 for n in range(9)] + [-1]}
    table = pyarrow.table(rows).replace_schema_metadata({"huggingface": json.dumps(features)})
    for split in ("train", "test"):
        Path("p").mkdir(exist_ok=True)
        parquet.write_table(table, f"p/{split}.parquet")
        Path("d", split).mkdir(parents=True)
        with (
            pyarrow.OSFile(f"d/{split}/data-00000-of-00001.arrow", "wb") as sink,
            pyarrow.ipc.new_stream(sink, table.schema) as stream,
        ):
            stream.write_table(table)
        Path("d", split, "state.json").write_text(
            '{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}'
        )
    for source in (found("parquet:p"), found("hf:d")):
        assert source.classes == ("no", "yes")
        assert texts(source.test) == rows["text"]
        assert [sample.label for sample in source.train] == rows["label"]
    Path("p/train.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"p/train\.parquet: not a Parquet file \("):
        found("parquet:p")


def test_text_files_are_named_by_their_paths():
    for name, content in (
        ("train/b/2/x", "one"),
        ("train/a/1", "two"),
        ("test/a/1", "three"),
        ("val/b/1", "four"),
    ):
        Path(f"f/{name}.txt").parent.mkdir(parents=True, exist_ok=True)
        Path(f"f/{name}.txt").write_bytes(b"\xef\xbb\xbf" + content.encode())
    Path("f/train/a/picture.png").touch()
    source = found("folder:f")
    assert [sample.name for sample in source.train] == ["train/a/1.txt", "train/b/2/x.txt"]
    assert (texts(source.train), texts(source.test), texts(source.validation)) == (
        ["two", "one"],
        ["three"],
        ["four"],
    )
    assert source.left_out.suffixes == {".png": 1}


def test_built_in_snippets_are_short_and_of_different_articles():
    source = found("udhr-languages")
    assert len(source.classes) == len(set(source.classes)) == 431
    assert (len(source.train), len(source.validation), len(source.test)) == (25_835, 4_305, 8_610)
    articles = [
        {sample.name.rpartition("/")[0] for sample in some}
        for some in (source.train, source.validation, source.test)
    ]
    assert articles[0].isdisjoint(articles[1] | articles[2])
    assert articles[1].isdisjoint(articles[2])
    shown = texts(source.test)
    assert not {*texts(source.train)} & {*shown}
    assert SHORTEST - 4 <= min(map(len, shown)) <= max(map(len, shown)) <= LONGEST
    assert list(snippets("word " * 40, "x")) == list(snippets("word " * 40, "x"))


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"text,label\na,x\n\xff,y\n", {}, r"t\.csv:3: not UTF-8 \(byte 0xFF\)"),
        (b"text,label\na,x,z\n", {}, r"t\.csv:2: 3 fields; expected 2, as the header has \(text, label\)"),
        (b'text,label\n"a,x\n', {}, r"t\.csv:2: .*; expected quoted values"),
        (b"body,label\na,x\n", {}, r"t\.csv: no column 'text'; found 'body', 'label'; set data\.text"),
        (b"text,label\n ,x\nb,y\n\t,y\n", {}, r"t\.csv:2: no word in the text \(2 such rows: .*t\.csv:4\)"),
        (b"text,label,id\na,x,1\nb,y,1\n", {"id": "id"}, r"id '1' at .*:2 and .*:3: occurs twice"),
        (b"text,label,id\na,x,1\nb,y, \n", {"id": "id"}, r"t\.csv:3: an empty id"),
        (b"text,label\na,x\nb,x\n", {}, r"1 class; expected at least two"),
        (b"", {}, r"t\.csv: no column 'text'; found none"),
        (b"text,label,text\na,x,b\n", {}, r"t\.csv: has two columns 'text'; expected unique names"),
        (b"text,label\na,x\nb,x \n", {}, r"'x ' and 'x' differ only in Unicode normalisation or outer"),
    ],
)
def test_what_is_wrong_in_a_table_is_named_by_its_line(content, options, message):
    Path("t.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        found("csv:t.csv", **options)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a", "label": "x", "label": "y"}', r"not JSON \(key 'label' occurs twice\)"),
        ('{"text": "a", "label": ' + "[" * 100_000, r"not JSON \(nested too deeply\)"),
        ('{"text": ["a"], "label": "x"}', r"text is \['a'\] \(list\); expected text"),
        ('{"text": "a", "label": {"x": 1}}', r"label is \{'x': 1\} \(dict\); expected the name or number"),
        ('{"text": "a\\ud800", "label": "x"}', r"text has half of a character \('\\ud800'\)"),
        ('{"text": "a", "label": "x", "id": "\\udfff"}', r"id has half of a character"),
        ('{"text": NaN, "label": "x"}', "no word in the text"),
        ('["a", "x"]', r"\['a', 'x'\]; expected an object"),
    ],
)
def test_what_is_wrong_in_a_line_of_json_is_named(line, message):
    first = '{"text": "b", "label": "y", "id": "1"}'
    Path("t.jsonl").write_text(f"{first}\n{line}\n")
    with pytest.raises(DataError, match=r"t\.jsonl:2: " + message):
        found("jsonl:t.jsonl", **({"id": "id"} if '"id"' in line else {}))


def test_a_file_without_labels_is_told(capsys):
    write("t/train.csv")
    write("t/test.csv", [("one", "x")], ("text", "labl"))
    write("t/unlabeled.csv", [("three",)], ("text",))
    assert [sample.label for sample in found("csv:t").test] == [-1]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "t/test.csv: no column 'label', so its rows are unlabelled; found 'text', 'labl'"
    )
    assert line.endswith("did you mean 'label'?".replace("label", "labl"))


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        ({"label": {"names": ["no", "yes"]}}, [0, 1, 2], r"row 2: label 2; expected 0 to 1"),
        ({"label": {"names": ["no", "yes"]}}, [0.0, 1.0, 0.5], r"row 2: label 0\.5; expected 0 to 1"),
        ({"label": {"names": ["no", "yes"]}}, [0.0, 1.0, None], None),
        ([1], [0, 1, 1], None),
        ({"label": 1}, [0, 1, 1], None),
        ({"label": {"names": 7}}, [0, 1, 1], None),
    ],
)
def test_class_names_in_a_file_are_checked(features, labels, message):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"text": [f"t{n}" for n in range(12)], "label": labels * 4})
    for text in (
        json.dumps({"info": {"features": features}}),
        *(["{no json", "[]"] if not message else []),
    ):
        parquet.write_table(table.replace_schema_metadata({"huggingface": text}), "t.parquet")
        if message:
            with pytest.raises(DataError, match=message):
                found("parquet:t.parquet")
        else:
            assert len(found("parquet:t.parquet").classes) == 2


def test_bytes_are_no_text():
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": [b"a", b"b"], "label": [0, 1]}), "t.parquet")
    with pytest.raises(DataError, match=r"t\.parquet: row 0: text is b'a' \(bytes\); expected text"):
        found("parquet:t.parquet")


def test_a_table_that_is_no_file_is_refused_at_once():
    write("t/test.csv")
    os.mkfifo("t/train.csv")
    with pytest.raises(DataError, match=r"t/train\.csv: no regular file"):
        found("csv:t")


def test_text_files_are_found_as_pictures_are(capsys):
    for name in (
        "train/a/1.txt",
        "train/b/2.TXT",
        "train/a/.hidden.txt",
        "train/loose.txt",
        "test/a/3.txt",
    ):
        Path("f", name).parent.mkdir(parents=True, exist_ok=True)
        Path("f", name).write_text(name)
    Path("elsewhere").mkdir()
    Path("elsewhere/4.txt").write_text("four")
    os.symlink("../../../elsewhere", "f/train/a/linked")
    os.symlink("../..", "f/train/a/loop")
    Path("f/more").mkdir()
    source = found("folder:f")
    assert [sample.name for sample in source.train] == [
        *("train/a/1.txt", "train/a/linked/4.txt", "train/b/2.TXT")
    ]
    assert (
        str(source.left_out)
        == "1 loose in train/, 1 hidden, 1 linked folder that leads back to itself, not read: more/"
    )
    os.mkfifo("f/train/a/pipe.txt")
    with pytest.raises(DataError, match=r"pipe\.txt: no regular file"):
        ready("folder:f")


def test_labels_of_the_test_rows_are_those_of_training():
    write("t/train.csv")
    write("t/test.csv", [("one", "X")])
    with pytest.raises(DataError, match=r"test\.csv:2: label 'X' is no class of the training rows"):
        found("csv:t")


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("csv:none", DataError, "no such file or folder"),
        ("csv:.", DataError, r"has nothing; expected train\.csv and test\.csv"),
        ("hf:none", DataError, "no such folder"),
        ("folder:none", DataError, "no such folder"),
        ("udhr-languages:x", ConfigError, "expected udhr-languages alone"),
        ("csw:t", ConfigError, r"expected udhr-languages, csv:PATH.*did you mean 'csv'"),
    ],
)
def test_sources_that_are_none_are_one_line(source, error, message):
    with pytest.raises(error, match=message):
        found(source)


def test_broken_files_are_found_all_at_once(capsys):
    for name, content in (
        ("a/1", b"fine"),
        ("a/2", b"\xc3("),
        ("b/1", b" \n"),
        ("b/2", b"fine"),
        ("b/3", b"ok"),
    ):
        Path(f"f/{name}.txt").parent.mkdir(parents=True, exist_ok=True)
        Path(f"f/{name}.txt").write_bytes(content)
    with pytest.raises(DataError, match="2 of 5 texts cannot be read"):
        ready("folder:f")
    told = capsys.readouterr().err + "".join(path.read_text() for path in Path("s").glob("*.txt"))
    assert "a/2.txt: not UTF-8 (byte 0xC3 at 0)" in told
    assert "b/1.txt: no word in it" in told


def test_columns_of_a_row_must_differ():
    with pytest.raises(ConfigError, match="expected a different one for each key"):
        TextOptions(text="label")
    assert np.isfinite(TextOptions().max_length)
