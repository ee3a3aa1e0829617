"""Where a store can be made, looked at while another process makes one."""

from __future__ import annotations

import pytest

from pipeline.core.errors import StoreError
from pipeline.store import place
from pipeline.store.leftovers import half_written
from pipeline.store.place import require_store_or_nothing


@pytest.fixture
def path(tmp_path):
    """A folder with a file that is no store's."""
    folder = tmp_path / "main.zarr"
    folder.mkdir()
    (folder / "NOTES.md").write_text("mine")
    return folder


def test_other_files_are_named(path):
    with pytest.raises(StoreError, match=r"contains files but no zarr.json \(NOTES.md is in it\)"):
        require_store_or_nothing(path)


def test_a_store_that_appears_meanwhile_is_one(path, monkeypatch):
    original = place.frame_files

    def appears(folder):
        (folder / "zarr.json").write_text("{}")
        return original(folder)

    monkeypatch.setattr(place, "frame_files", appears)
    require_store_or_nothing(path)


@pytest.mark.parametrize("name", ["head.safetensors", "manifest.json", "train/codes/c/0/0"])
def test_what_a_killed_writer_left_beside_a_file_is_no_file_of_somebody_else(path, name):
    (path / "NOTES.md").unlink()
    folder, _, last = name.rpartition("/")
    (path / folder).mkdir(parents=True, exist_ok=True)
    (path / folder / f".{last}.0a1b2c3d").write_text("half")
    assert [left.rpartition("/")[2] for left in half_written(path)] == [f".{last}.0a1b2c3d"]
    require_store_or_nothing(path)
