"""Teams: parts of work, and what each process opens once."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from pipeline.core.team import ALONE, Elsewhere, parts_for
from tests.pipeline.teams import Copies


@pytest.mark.parametrize(("count", "size", "parts"), [(0, 3, 1), (1, 3, 1), (7, 1, 4), (100, 3, 12)])
def test_parts_are_consecutive_and_nearly_equal(count, size, parts):
    found = parts_for(Copies(size), range(count))
    assert [item for part in found for item in part] == list(range(count))
    lengths = [len(part) for part in found]
    assert len(lengths) == parts
    assert max(lengths) - min(lengths) <= 1


def _open(folder: Path) -> Path:
    """Leave a trace of each opening."""
    (folder / str(len(list(folder.iterdir())))).touch()
    return folder


def _work(opened: Path, item: int) -> tuple[str, int]:
    return opened.name, item**2


@pytest.mark.parametrize(("team", "openings"), [(ALONE, 1), (Copies(3), 3)])
def test_each_process_opens_once_and_results_keep_their_order(team, openings, tmp_path):
    elsewhere = Elsewhere(team=team, reopen=partial(_open, tmp_path))
    assert list(elsewhere.map(_work, range(7))) == [(tmp_path.name, n**2) for n in range(7)]
    assert len(list(tmp_path.iterdir())) == openings
