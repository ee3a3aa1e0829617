"""Verifying on several threads: every file is read once, and the findings are those of one thread."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.dump.run import cache_logits
from pipeline.dump.verify import verify
from pipeline.places.location import Location
from pipeline.store.manifest import Manifest
from pipeline.store.reader import LogitStore, SectionReader
from tests.pipeline.teams import Copies


@pytest.fixture
def path(context, teacher, make_spec, tmp_path) -> Path:
    cache_logits(context, teacher, make_spec(), tmp_path / "main.zarr")
    return tmp_path / "main.zarr"


def test_every_shard_is_read_once(path, monkeypatch):
    read: Counter[str] = Counter()
    original = Location.find

    def spy(self: Location, name: str, *rest: Any) -> bytes | None:
        read[name] += 1
        return original(self, name, *rest)

    monkeypatch.setattr(Location, "find", spy)
    assert verify(path, workers=3).ok
    files = Manifest.read(Location(path)).shard_files()
    assert {read[name] for name in files} == {1}


def test_findings_do_not_depend_on_the_number_of_threads(path):
    shards = sorted(path.glob("train/*/c/*/*/*"))
    for file in shards[2::5]:
        content = bytearray(file.read_bytes())
        content[0] ^= 1
        file.write_bytes(content)
    shards[1].unlink()
    one, four = verify(path), verify(path, workers=4)
    assert one == four
    assert len(one.bad) == len(shards[2::5]) + 1


@pytest.mark.parametrize("size", [2, 50])
def test_findings_of_a_team_are_those_of_one_process(path, size):
    assert verify(path, team=Copies(size)) == verify(path)
    shards = sorted(path.glob("train/*/c/*/*/*"))
    for file in shards[::4]:
        file.write_bytes(file.read_bytes()[:-1])
    (path / "test/keys/c/0").unlink()
    (path / "notes.txt").touch()
    alone, team = verify(path), verify(path, workers=2, team=Copies(size))
    assert alone == team
    assert len(team.bad) == len(shards[::4]) + 2


def test_values_that_were_written_wrongly_are_found_once_a_view(path, monkeypatch):
    """Two of the shards of view 1 decode to NaN, though their bytes are as written."""
    original = SectionReader.decode_shard

    def wrong(self: SectionReader, shard: Any, contents: Any) -> torch.Tensor:
        logits = original(self, shard, contents)
        return logits * float("nan") if (shard.section, shard.view) == ("train", 1) else logits

    assert len(LogitStore.open(path).manifest.layout.blocks("train")) > 1
    monkeypatch.setattr(SectionReader, "decode_shard", wrong)
    assert verify(path, workers=2).bad == ["train view 1 has non-finite logits"]
    assert verify(path, team=Copies()).bad == ["train view 1 has non-finite logits"]
