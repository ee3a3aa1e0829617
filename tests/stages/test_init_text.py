"""`pipeline init` begins a project for texts: tables, class folders, and one clear line for all others."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from stages.fit_text import max_length
from stages.params_file import load_params
from tests.stages.conftest import run
from tests.stages.test_init import asked
from tests.stages.test_text import write_table

pytestmark = pytest.mark.usefixtures("preloaded")


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def write_folder(folder: Path) -> None:
    for split, count in (("train", 6), ("test", 2)):
        for topic in ("sea", "town"):
            (folder / split / topic).mkdir(parents=True)
            for number in range(count):
                (folder / split / topic / f"{number}.txt").write_text(f"the {topic} of {number}\n")


def test_dvc_runs_a_project_for_a_table(here, capsys):
    write_table(Path("../table"), each=12)
    assert run("init", "../table") == 0
    said = capsys.readouterr().out
    assert "3 classes; train 36, test 36 texts; half of them up to" in said
    assert said.endswith("next: dvc repro\n")
    params = load_params(Path("params.yaml"))
    assert (params.data.source, params.data.options.text, params.data.options.label) == (
        "csv:../table",
        "text",
        "label",
    )
    tree = yaml.safe_load(Path("params.yaml").read_text())
    tree["training"] |= {"epochs": 2}
    tree["dumps"]["main"]["views"]["count"] = 2
    for model in (tree["teachers"]["teacher"], tree["students"]["student"]):
        model["options"] = {"dim": 8, "filters": 8}
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    asked(here, "repro")
    assert len(json.loads(Path("reports/results.json").read_text())["students"]) == 2
    assert "Running stage" not in asked(here, "repro")


def test_class_folders_of_text_files_are_texts(here, capsys):
    write_folder(Path("letters"))
    assert run("init", "letters") == 0
    params = load_params(Path("params.yaml"))
    assert (params.data.source, params.data.modality) == ("folder:letters", "text")
    assert "/letters/" in Path(".gitignore").read_text()
    assert run("prepare") == 0
    assert "2 classes, train 12, validation 0, test 4 texts" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_one_table_is_recognised_by_its_suffix_and_its_columns(here, suffix, capsys):
    rows = [
        {"idx": n, "Sentence": f"word {n} here", "category": "ab"[n % 2], "other": 1} for n in range(20)
    ]
    path = Path(f"notes.{suffix}")
    if suffix == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif suffix == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]), delimiter="," if suffix == "csv" else "\t")
            table.writeheader()
            table.writerows(rows)
    assert run("init", path) == 0
    options = load_params(Path("params.yaml")).data.options
    assert (options.text, options.label, options.id, options.text_pair) == (
        "Sentence",
        "category",
        "idx",
        None,
    )
    assert f"/notes.{suffix}" in Path(".gitignore").read_text().splitlines()
    assert run("prepare") == 0
    told = capsys.readouterr()
    assert "2 classes, train 16, validation 0, test 4 texts" in told.out
    assert "no test split; 4 of 20 texts (20%)" in told.err


@pytest.mark.parametrize(
    ("header", "columns", "guess"),
    [
        ("message,topic", ("message", "topic"), "'message' is taken as the text"),
        ("id,text,queue", ("text", "queue"), "'queue' is taken as the label"),
    ],
)
def test_a_lone_column_without_a_usual_name_is_the_missing_one(here, header, columns, guess, capsys):
    rows = [",".join(f"{name}{n}" for name in header.split(",")[:-1]) + f",{'ab'[n % 2]}" for n in range(9)]
    Path("table.csv").write_text("\n".join([header, *rows]))
    assert run("init", "table.csv") == 0
    options = load_params(Path("params.yaml")).data.options
    assert (options.text, options.label) == columns
    assert f"column {guess}" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[" * 5000, "x" * 200_000 + ",label\n1,2\n", "", "\0\n", "[1]\n"])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_what_is_no_table_is_one_line(here, capsys, suffix, content):
    Path(f"table.{suffix}").write_text(content)
    assert run("init", f"table.{suffix}") == 1
    error = capsys.readouterr().err
    assert f"table.{suffix}: " in error
    assert error.count("\n") == 1
    assert "unexpected" not in error


def test_a_table_without_texts_is_one_line(here, capsys):
    Path("table.csv").write_text("number,size,label\n1,2,a\n")
    assert run("init", "table.csv") == 1
    error = capsys.readouterr().err
    assert (
        "table.csv: has the columns 'number', 'size', 'label'; expected one called text or sentence"
        in error
    )
    assert error.count("\n") == 1
    assert [path.name for path in here.iterdir()] == ["table.csv"]


def test_the_length_of_inputs_follows_the_texts():
    assert max_length(np.array([20] * 100)) == 16
    assert max_length(np.array([200] * 100)) == 64
    assert max_length(np.array([50] * 99 + [9000])) == 16
    assert max_length(np.array([9000])) == 512
