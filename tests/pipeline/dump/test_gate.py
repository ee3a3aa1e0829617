"""What a dump does while it holds the store's gate does not grow with the finished shards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pipeline.dump import open as opening
from pipeline.dump import run
from pipeline.dump.run import cache_logits
from pipeline.dump.verify import verify
from pipeline.places.folder import LocalPlace
from pipeline.store.lock import Slice


@pytest.fixture
def seen_at_gate(monkeypatch) -> list[str]:
    """The names of records and catalogues read, and of folders listed, while the gate is held."""
    seen: list[str] = []
    held: list[bool] = []
    gate, read, listed = run.gate, LocalPlace.get, LocalPlace.names

    @contextmanager
    def watched(*arguments: Any, **options: Any) -> Iterator[None]:
        with gate(*arguments, **options):
            held.append(True)
            yield
            held.clear()

    def reading(place, name, *part):
        seen.extend([name] if held else [])
        return read(place, name, *part)

    def listing(place, folder):
        seen.extend([folder] if held else [])
        return listed(place, folder)

    for module in (run, opening):
        monkeypatch.setattr(module, "gate", watched)
    monkeypatch.setattr(LocalPlace, "get", reading)
    monkeypatch.setattr(LocalPlace, "names", listing)
    return seen


def test_records_of_training_shards_are_not_read_at_the_gate(
    context, teacher, make_spec, tmp_path, seen_at_gate
):
    path, spec = tmp_path / "main.zarr", make_spec()
    cache_logits(context, teacher, spec, path, part=Slice(0, 2), completes=False)
    assert len(list(path.glob("records/train*"))) > 4
    seen_at_gate.clear()
    cache_logits(context, teacher, spec, path)
    assert verify(path).ok
    # The records of held-out shards are: the first process makes those at the gate.
    assert any(name.startswith("records/test") for name in seen_at_gate)
    assert not [name for name in seen_at_gate if name.startswith("records/train") or name == "records"]
    seen_at_gate.clear()
    cache_logits(context, teacher, make_spec(view_count=4), path)
    assert not [name for name in seen_at_gate if name.startswith("records/train")]
