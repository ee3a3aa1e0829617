"""Where a store can be made, looked at while another process makes one."""

from __future__ import annotations

import pytest

from pipeline.core.errors import StoreError
from pipeline.store import place
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
