"""`pipeline export-logits`: outputs for other loaders have the store's values, by the samples' keys."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import LogitStore, PreparedData
from pipeline.core.errors import DataError
from pipeline.export.logits import _as_written
from pipeline.store.ensemble import open_logits
from tests.stages.conftest import PARAMS, VIEWS, run
from tests.stages.projects import DUMPED

STORE = "data/logits/main.zarr"


@pytest.fixture
def dumped(projects, tmp_path, monkeypatch) -> Path:
    """A copy of a project with a dump, as the working folder."""
    folder = tmp_path / "project"
    shutil.copytree(projects.after(*DUMPED), folder)
    monkeypatch.chdir(folder)
    return folder


def read_tars(folder: Path) -> dict[str, np.ndarray]:
    """Return the arrays of all tars in a folder by member name; none occurs twice."""
    found: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for info in tar:
                assert info.name not in found
                assert (info.mtime, info.uid, info.mode) == (0, 0, 0o644)
                found[info.name] = np.load(io.BytesIO(tar.extractfile(info).read()))
    return found


def expected_views(place: str = STORE) -> list[torch.Tensor]:
    """Return the outputs of every view in the order of the training samples."""
    store, train = open_logits(place), PreparedData.open(Path("data/prepared")).train
    rows = torch.from_numpy(store.rows_of(train))
    return [store.view(view)[rows] for view in range(store.n_views)]


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_tars_have_the_outputs_of_each_view_by_key(dumped, capsys):
    assert run("export-logits", "main", "--format", "wds", "--out", "out", "--shard-rows", 30) == 0
    train = PreparedData.open(Path("data/prepared")).train
    for view, expected in enumerate(expected_views()):
        found = read_tars(Path(f"out/view-{view:03d}"))
        assert list(found) == [f"{name}.{view:03d}.npy" for name in train.names]
        np.testing.assert_array_equal(np.stack(list(found.values())), expected.numpy())
    assert len(list(Path("out/view-000").iterdir())) == -(-len(train) // 30)
    card = json.loads(Path("out/card.json").read_text())
    assert card["samples"] == {"train": len(train), "validation": 100 - len(train), "test": 40}
    assert (card["n_views"], card["codec"], card["link"]) == (VIEWS, "affine8", "softmax")
    assert card["classes"] == ["0", "1", "2", "3"]
    assert set(card["files"]) == set(files_of(Path("out"))) - {"card.json"}
    said = capsys.readouterr().out
    assert f"out: 3 views of {len(train)} training samples, un-augmented validation" in said


def test_held_out_outputs_are_those_of_the_store(dumped):
    assert run("export-logits", "main", "--format", "wds", "--out", "out") == 0
    data = PreparedData.open(Path("data/prepared"))
    expected = LogitStore.open(STORE).held_out("test", data.test)
    found = {name: row for name, row in read_tars(Path("out/plain")).items() if name.startswith("test/")}
    assert list(found) == [f"{name}.plain.npy" for name in data.test.names]
    np.testing.assert_array_equal(np.stack(list(found.values())), expected.numpy())


def test_parquet_has_key_view_and_outputs(dumped):
    parquet = pytest.importorskip("pyarrow.parquet")
    assert run("export-logits", "main", "--format", "parquet", "--out", "out", "--fp16") == 0
    train = PreparedData.open(Path("data/prepared")).train
    for view, expected in enumerate(expected_views()):
        table = parquet.read_table(f"out/train-view-{view:03d}.parquet").to_pydict()
        assert table["key"] == list(train.names)
        assert set(table["view"]) == {view}
        np.testing.assert_array_equal(np.array(table["logits"], "f2"), expected.numpy().astype("f2"))
    assert set(parquet.read_table("out/test.parquet").column("view").to_pylist()) == {None}


@pytest.mark.parametrize("form", ["wds", "parquet"])
def test_the_same_dump_gives_the_same_bytes(dumped, form):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    for out in ("one", "two"):
        assert run("export-logits", "main", "--format", form, "--out", out) == 0
    assert files_of(Path("one")) == files_of(Path("two"))


def test_an_ensemble_is_averaged(dumped, edit):
    edit({"dumps": {"other": {**PARAMS["dumps"]["main"], "precision": "bf16"}}})
    edit({"ensembles": {"both": {"of": ["main", "other"]}}})
    assert run("cache-logits", "other") == run("cache-logits", "both") == 0
    assert run("export-logits", "both", "--format", "wds", "--out", "out") == 0
    for view, expected in enumerate(expected_views("data/logits/both.zarr")):
        found = read_tars(Path(f"out/view-{view:03d}"))
        np.testing.assert_array_equal(np.stack(list(found.values())), expected.numpy())
    assert json.loads(Path("out/card.json").read_text())["teachers"] == ["tutor", "tutor"]


def test_tars_may_follow_the_tars_of_the_samples(dumped, capsys):
    names = list(PreparedData.open(Path("data/prepared")).train.names)
    Path("mine").mkdir()
    for part, some in {"b": names[:7][::-1], "a": [*names[20:25], "train/nobody"]}.items():
        with tarfile.open(f"mine/{part}.tar", "w") as tar:
            for name in some:
                tar.addfile(tarfile.TarInfo(f"{name}.jpg"))
    out = ["--out", "out", "--like", "mine/{b,a}.tar"]
    assert run("export-logits", "main", "--format", "wds", *out) == 0
    assert "12 of" in capsys.readouterr().err
    with tarfile.open("out/view-001/b.tar") as tar:
        assert tar.getnames() == [f"{name}.001.npy" for name in names[:7][::-1]]
    with tarfile.open("out/view-001/a.tar") as tar:
        assert tar.getnames() == [f"{name}.001.npy" for name in names[20:25]]


def refused(capsys, *arguments: object) -> str:
    capsys.readouterr()
    assert run("export-logits", *arguments) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pipeline:")]
    return line


def test_nothing_is_overwritten_and_a_killed_export_leaves_nothing_behind(dumped, capsys):
    Path("out").mkdir()
    Path("out/mine.txt").write_text("mine")
    arguments = ["main", "--format", "wds", "--out", "out"]
    assert "out: exists already; nothing is overwritten" in refused(capsys, *arguments)
    assert files_of(Path("out")) == {"mine.txt": b"mine"}
    Path("out/mine.txt").unlink()
    left = Path(".out.partial/view-000")
    left.mkdir(parents=True)
    (left / "train-000099.tar").write_bytes(b"half")
    assert run("export-logits", *arguments) == 0
    assert not Path(".out.partial").exists()
    assert not Path("out/view-000/train-000099.tar").exists()


def test_a_failed_export_is_not_there(dumped, capsys, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "disk")

    monkeypatch.setattr("pipeline.export.logits._write_tar", broken)
    assert "No space left" in refused(capsys, "main", "--format", "wds", "--out", "out")
    assert not Path("out").exists()
    assert not Path(".out.partial").exists()


def test_outputs_beyond_float16_are_refused():
    with pytest.raises(DataError, match=r"an output is 70000; expected at most 65504"):
        _as_written(np.array([[7e4, 0]], np.float32), half=True)


def test_missing_stores_and_like_with_parquet_are_one_line(dumped, capsys):
    assert "nothing.zarr" in refused(capsys, "nothing", "--format", "wds", "--out", "out")
    message = refused(capsys, "main", "--format", "parquet", "--out", "out", "--like", "a.tar")
    assert "--like is for --format wds" in message
    assert not Path("out").exists()
