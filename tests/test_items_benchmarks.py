"""The benchmark of recommendation runs at a small size."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from stages.params_file import load_params
from tests.benchmarks import built_in_dependencies, recommendation
from tests.pipeline.modalities.items.logs import rows, write_inter
from tests.stages.test_items import SMALL

pytestmark = pytest.mark.usefixtures("preloaded")

INDEX = """Package: app-bin
Source: app (1.2)
Pre-Depends: base (>= 2)
Depends: libx | liby, virtual-thing, app-data, libz:any [amd64]

Package: app-data
Source: app

""" + "\n\n".join(f"Package: {name}" for name in ("base", "libx", "liby", "libz"))


def test_dependencies_are_real_packages_of_other_sources():
    found = {name: (source, names) for name, source, names in built_in_dependencies.packages(INDEX)}
    assert found["app-bin"] == ("app", ["base", "libx", "virtual-thing", "app-data", "libz"])
    five = [f"Package: u{n}\nDepends: base, libx, liby, libz, app-data" for n in range(5)]
    dense = built_in_dependencies.dependencies("\n\n".join([INDEX, *five]))
    assert dense == {f"u{n}": {"base", "libx", "liby", "libz", "app-data"} for n in range(5)}


def test_differences_are_paired_per_user():
    rng = np.random.default_rng(0)
    scratch = [rng.random(1000) for _ in range(3)]
    table = recommendation.paired({"scratch": scratch, "kd": [users + 0.01 for users in scratch]})
    assert table["kd"]["difference"] == pytest.approx(0.01)
    assert table["kd"]["standard_error_over_users"] < 1e-9
    assert table["scratch"]["difference"] == 0


def test_the_benchmark_goes_on_where_it_was(tmp_path, monkeypatch):
    folder = tmp_path / "project"
    folder.mkdir()
    log = write_inter(tmp_path / "x.inter", rows())
    with zipfile.ZipFile(tmp_path / "recbole.whl", "w") as archive:
        archive.write(log, recommendation.MEMBER)
    monkeypatch.setattr(recommendation, "CODECS", ("features", "topk-5"))
    changes = [*SMALL, *recommendation.WITH_TIME, "training.epochs=2", "teachers.teacher.epochs=2"]
    recommendation.set_up(folder, changes, tmp_path / "recbole.whl")
    params = load_params(folder / "params.yaml", tuple(changes))
    rig = recommendation.Rig(folder=folder, params=params, student="small", split="validation")
    out = Path(tmp_path / "found.json")
    first = recommendation.measure(rig, 1, changes, out)
    assert set(first["table"]) == {"scratch", "label_smoothing", "kd V=4", "kd V=1"}
    assert first["online"]["first_loss"] < 1e-4
    assert first["codecs"]["features"]["kl_t1_mean"] < first["codecs"]["topk-5"]["kl_t1_mean"]
    monkeypatch.setattr(recommendation.Rig, "_train", lambda *_: pytest.fail("made again"))
    monkeypatch.setattr(recommendation, "codec_rows", lambda *_: pytest.fail("made again"))
    assert recommendation.measure(rig, 1, changes, out)["table"] == first["table"]
