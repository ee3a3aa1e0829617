"""The benchmarks of texts run at a small size."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.params_file import load_params
from tests.benchmarks import language_identification, text_speed
from tests.stages.test_text import SMALL, write_table

pytestmark = pytest.mark.usefixtures("preloaded")


def test_the_speed_of_views_and_batches_is_told():
    pytest.importorskip("tokenizers")
    found = text_speed.measured(rounds=1, most=160)
    assert set(found["rendering"]) == set(text_speed.VIEWS)
    assert all(row["views_per_second"] > 0 for row in found["rendering"].values())
    tokens = {arm: row["tokens"] for arm, row in found["batches"].items()}
    assert tokens["by length"] <= tokens["to the longest"] <= tokens["to the maximum"]


def test_language_identification_goes_on_where_it_was(tmp_path, monkeypatch):
    (tmp_path / "project").mkdir()
    write_table(tmp_path / "project/table")
    monkeypatch.chdir(tmp_path)
    changes = [*SMALL, "training.epochs=2", "dumps.main.allow_poor_teacher=true"]
    language_identification.set_up(tmp_path / "project", changes)
    rig = language_identification.Rig(
        folder=tmp_path / "project",
        params=load_params(tmp_path / "project/params.yaml", tuple(changes)),
        student="bytes",
        split="validation",
        labels=2,
    )
    out = Path("found.json")
    first = language_identification.measure(rig, 1, out)
    assert set(first["runs"]) == {
        *("scratch", "label_smoothing", "kd V=2", "kd V=1", "mistake", "scratch few", "kd few")
    }
    monkeypatch.setattr(language_identification.Rig, "_train", lambda *_, **__: pytest.fail("made again"))
    assert language_identification.measure(rig, 1, out)["runs"] == first["runs"]
