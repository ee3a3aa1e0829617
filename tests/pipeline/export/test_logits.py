"""Exported outputs have the store's values by the samples' keys, appear whole, and overwrite nothing."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.codecs.blend import Blend
from pipeline.core.errors import ConfigError, DataError
from pipeline.dump.average import write_ensemble
from pipeline.dump.run import cache_logits
from pipeline.export.logits import CARD, Request, _as_written, export_logits
from pipeline.store.opening import open_logits
from pipeline.store.soft_labels import SoftLabels

TARS, TABLES = Request(form="wds", shard_rows=30), Request(form="parquet")


@pytest.fixture(scope="module")
def made(context, teacher, make_spec, tmp_path_factory) -> Path:
    """A folder with two dumps of the same views, of unlike codecs and shards, and their average."""
    folder = tmp_path_factory.mktemp("exported")
    cache_logits(context, teacher, make_spec(), folder / "one.zarr")
    cache_logits(context, teacher, make_spec(codec="affine8", shard_rows=24), folder / "two.zarr")
    write_ensemble(folder / "both.zarr", ["one.zarr", "two.zarr"], Blend(weights=(1.0, 3.0)), context)
    return folder


@pytest.fixture(params=["one", "two", "both"])
def store(made, request) -> SoftLabels:
    return open_logits(made / f"{request.param}.zarr")


@pytest.fixture
def one(made) -> SoftLabels:
    return open_logits(made / "one.zarr")


def read_tars(folder: Path, split: str = "") -> dict[str, np.ndarray]:
    """Return the arrays of all tars of a split in a folder by member name; none occurs twice."""
    found: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob(f"{split}*.tar")):
        with tarfile.open(path) as tar:
            for info in tar:
                assert info.name not in found
                assert (info.mtime, info.uid, info.mode) == (0, 0, 0o644)
                found[info.name] = np.load(io.BytesIO(tar.extractfile(info).read()))
    return found


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_tars_have_the_outputs_of_each_view_by_key(store, tiny_data, tmp_path):
    card = export_logits(store, tiny_data, tmp_path / "out", TARS)
    train, rows = tiny_data.train, torch.from_numpy(store.rows_of(tiny_data.train))
    for view in range(store.n_views):
        found = read_tars(tmp_path / f"out/view-{view:03d}")
        assert list(found) == [f"{name}.{view:03d}.npy" for name in train.names]
        np.testing.assert_array_equal(np.stack(list(found.values())), store.view(view)[rows].numpy())
    assert len(list((tmp_path / "out/view-000").iterdir())) == -(-len(train) // 30)
    for split in ("validation", "test"):
        held = getattr(tiny_data, split)
        found = read_tars(tmp_path / "out/plain", split)
        assert list(found) == [f"{name}.plain.npy" for name in held.names]
        np.testing.assert_array_equal(np.stack(list(found.values())), store.held_out(split, held).numpy())
    assert card == json.loads((tmp_path / "out" / CARD).read_text())
    assert set(card["files"]) == set(files_of(tmp_path / "out")) - {CARD}
    assert card["samples"] == {
        name: len(getattr(tiny_data, name)) for name in ("train", "validation", "test")
    }
    assert (card["n_views"], card["link"], card["dtype"]) == (3, "softmax", "float32")
    assert (card["classes"], card["codec"]) == (list(tiny_data.classes), store.summary()["codec"])


def test_parquet_has_key_view_and_outputs(store, tiny_data, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    export_logits(store, tiny_data, tmp_path / "out", Request(form="parquet", half=True))
    rows = torch.from_numpy(store.rows_of(tiny_data.train))
    for view in range(store.n_views):
        table = parquet.read_table(tmp_path / f"out/train-view-{view:03d}.parquet")
        assert table.column("key").to_pylist() == list(tiny_data.train.names)
        assert set(table.column("view").to_pylist()) == {view}
        expected = store.view(view)[rows].numpy().astype("f2")
        np.testing.assert_array_equal(np.array(table.column("logits").to_pylist(), "f2"), expected)
    plain = parquet.read_table(tmp_path / "out/test.parquet")
    assert set(plain.column("view").to_pylist()) == {None}
    assert plain.num_rows == len(tiny_data.test)


@pytest.mark.parametrize("asked", [TARS, TABLES])
def test_the_same_store_gives_the_same_bytes(one, tiny_data, tmp_path, asked):
    if asked is TABLES:
        pytest.importorskip("pyarrow")
    for name in ("a", "b"):
        export_logits(one, tiny_data, tmp_path / name, asked)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def write_empty(path: Path, names: list[str]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name))
    return path


def test_tars_may_follow_the_tars_of_the_samples(one, tiny_data, tmp_path, capsys):
    names = list(tiny_data.train.names)
    parts = {"b": names[:7][::-1], "a": [*names[20:25], "train/nobody"]}
    like = [
        write_empty(tmp_path / f"{part}.tar", [f"{n}.jpg" for n in some]) for part, some in parts.items()
    ]
    export_logits(one, tiny_data, tmp_path / "out", Request(form="wds", like=like))
    assert f"12 of {len(names)} training samples are in these tars; 1 keys" in capsys.readouterr().err
    for part, some in parts.items():
        with tarfile.open(tmp_path / f"out/view-001/{part}.tar") as tar:
            assert tar.getnames() == [f"{name}.001.npy" for name in some if name != "train/nobody"]
    strange = write_empty(tmp_path / "c.tar", ["nobody.jpg"])
    with pytest.raises(ConfigError, match="--like has no key of the dump"):
        export_logits(one, tiny_data, tmp_path / "other", Request(form="wds", like=[strange]))
    assert not (tmp_path / "other").exists()


def test_nothing_is_overwritten(one, tiny_data, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="out: exists already; nothing is overwritten"):
        export_logits(one, tiny_data, out, TARS)
    assert files_of(out) == {"mine.txt": b"mine"}


def test_the_rest_of_a_killed_export_is_no_part_of_the_next(one, tiny_data, tmp_path):
    left = tmp_path / ".out.partial/view-000"
    left.mkdir(parents=True)
    (left / "train-000099.tar").write_bytes(b"half")
    export_logits(one, tiny_data, tmp_path / "out", TARS)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (tmp_path / "out/view-000/train-000099.tar").exists()


def test_a_failed_export_is_not_there(one, tiny_data, tmp_path, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "disk")

    monkeypatch.setattr("pipeline.export.logits._write_tar", broken)
    with pytest.raises(OSError, match="No space left"):
        export_logits(one, tiny_data, tmp_path / "out", TARS)
    assert list(tmp_path.iterdir()) == []


def test_outputs_beyond_float16_are_refused():
    with pytest.raises(DataError, match=r"an output is 70000; expected at most 65504"):
        _as_written(np.array([[7e4, 0]], np.float32), half=True)
