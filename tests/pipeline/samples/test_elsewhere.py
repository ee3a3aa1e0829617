"""Samples that other processes read: the drafts' bytes are those of one thread, whatever goes wrong."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import DataError
from pipeline.core.team import Elsewhere
from pipeline.modalities.table import find_modality
from pipeline.samples import elsewhere
from pipeline.samples.prepare import Preparation, divide, prepare
from tests.pipeline.samples.test_processes import COUNT, WRITERS, write_images
from tests.pipeline.teams import Copies

# A worker's intake stays open to its end; here, it listens to the stderr of all that follows.
OPENED: list[Any] = []


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(elsewhere, "_PART", 3)
    yield
    while OPENED:
        OPENED.pop().__exit__(None, None, None)


def reopen(source: str, name: str, folder: Path, options: dict[str, Any]) -> elsewhere.Reopened:
    """Open a source in a worker."""
    modality = find_modality(name)
    chosen = modality.options_type(**options)
    opened = modality.open_source(source, chosen)
    intake = modality.intake(opened, folder, chosen).__enter__()
    OPENED.append(intake)
    return divide(opened, Preparation(origin=source, validation=0.2), intake.form.noun), intake


def import_into(
    folder: Path,
    source: str,
    name: str,
    *,
    team: Copies | None = None,
    there: str | None = None,
    **options: Any,
) -> dict[str, bytes]:
    """Prepare a source, by a team if there is one, whose source may be another; return the files' bytes."""
    modality = find_modality(name)
    chosen = modality.options_type(**options)
    opened = modality.open_source(source, chosen)
    reopening = partial(reopen, there or source, name, folder, options)
    prepare(
        opened,
        folder,
        Preparation(origin=source, validation=0.2),
        modality.intake(opened, folder, chosen),
        state=folder.with_name(f"{folder.name}.state"),
        workers=1,
        progress=lambda samples, _: iter(samples),
        elsewhere=None if team is None else Elsewhere(team=team, reopen=reopening),
    )
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("name", WRITERS)
def test_the_bytes_are_those_of_one_thread(name, tmp_path):
    source = WRITERS[name](tmp_path)
    team = Copies(3)
    assert import_into(tmp_path / "one", source, name) == import_into(
        tmp_path / "three", source, name, team=team
    )
    assert len(team.works) == 3


def test_files_that_stay_encoded_are_scanned_elsewhere(tmp_path):
    source = write_images(tmp_path)
    one, two = (
        import_into(tmp_path / folder / "data", source, "images", team=team, keep="encoded")
        for folder, team in (("one", None), ("two", Copies()))
    )
    assert one == two


def test_all_unreadable_samples_are_named_and_the_rest_is_kept(tmp_path):
    source = write_images(tmp_path)
    broken = sorted((tmp_path / "photos" / "train").rglob("*.jpg"))[3::9]
    whole = [path.read_bytes() for path in broken]
    expected = import_into(tmp_path / "whole", source, "images")
    for path in broken:
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match=f"{len(broken)} of {COUNT} images cannot be read"):
        import_into(tmp_path / "data", source, "images", team=Copies())
    told = (tmp_path / "data.state" / "unreadable.txt").read_text()
    assert all(str(path) in told for path in broken)
    for path, content in zip(broken, whole, strict=True):
        path.write_bytes(content)
    assert import_into(tmp_path / "data", source, "images", team=Copies()) == expected


@pytest.mark.parametrize("change", ["fewer", "renamed"])
def test_a_worker_that_finds_other_files_is_refused(tmp_path, change):
    source = write_images(tmp_path)
    there = write_images(tmp_path / "elsewhere")
    path = sorted((tmp_path / "elsewhere/photos/train/class-1").rglob("*.jpg"))[2]
    if change == "fewer":
        path.unlink()
    else:
        path.rename(path.with_name(f"{path.stem}a.jpg"))  # it sorts at the same place
    with pytest.raises(DataError, match="another process finds other samples than the command"):
        import_into(tmp_path / "data", source, "images", team=Copies(), there=there)
