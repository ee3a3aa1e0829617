"""Random damage to any file of a store: each refused by readers, each found by verify, none served."""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.core.errors import StoreError
from pipeline.dump.run import cache_logits
from pipeline.dump.verify import verify
from pipeline.store.reader import LogitStore

SHORT, LONG = 20, 500


@pytest.fixture(scope="module", params=["affine8", "features"])
def path(context, teacher, make_spec, tmp_path_factory, request) -> Path:
    folder = tmp_path_factory.mktemp("logits") / "main.zarr"
    cache_logits(context, teacher, make_spec(request.param, view_count=2), folder)
    return folder


def damage(path: Path, generator: np.random.Generator) -> tuple[str, dict[Path, bytes]]:
    """Damage a store in one way; return which way, and what the files were."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    kind = generator.choice(["flip", "truncate", "delete", "swap"])
    if kind == "swap":
        # Two shards of other bytes, of any arrays.
        shards = {f.read_bytes(): f for f in files if re.search(r"/(codes|scale)/c/", str(f))}
        chosen = [list(shards.values())[k] for k in generator.choice(len(shards), 2, replace=False)]
    else:
        chosen = [files[generator.integers(len(files))]]
    before = {file: file.read_bytes() for file in chosen}
    content = before[chosen[0]]
    if kind == "flip":
        changed = bytearray(content)
        changed[generator.integers(len(content))] ^= 1 << int(generator.integers(8))
        chosen[0].write_bytes(bytes(changed))
    elif kind == "truncate":
        chosen[0].write_bytes(content[: generator.integers(len(content))])
    elif kind == "delete":
        chosen[0].unlink()
    else:
        chosen[0].write_bytes(before[chosen[1]])
        chosen[1].write_bytes(content)
    return str(kind), before


def everything(path: Path, context) -> dict[str, torch.Tensor]:
    """Read all that a store serves; what it refuses is missing."""
    served = {}
    try:
        store = LogitStore.open(path)
    except StoreError:
        return served
    for view in range(store.n_views):
        for name, read in (
            (f"view {view}", lambda view=view: store.view(view)),
            ("rows", lambda: torch.from_numpy(store.rows_of(context.data.train))),
            ("test", lambda: store.held_out("test", context.data.test)),
            ("validation", lambda: store.held_out("validation", context.data.validation)),
        ):
            try:
                served[name] = read()
            except StoreError:
                continue
    return served


@pytest.mark.parametrize(
    ("count", "seed"),
    [(SHORT, 0), pytest.param(LONG, 1, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])],
)
def test_random_damage_is_refused_and_found(path, context, tmp_path, count, seed):
    generator = np.random.default_rng(seed)
    expected = everything(path, context)
    assert len(expected) == 5
    copy = tmp_path / "main.zarr"
    shutil.copytree(path, copy)
    kinds: dict[str, int] = {}
    for trial in range(count):
        kind, before = damage(copy, generator)
        kinds[kind] = kinds.get(kind, 0) + 1
        served = everything(copy, context)
        where = f"trial {trial}: {kind} of {[str(file.relative_to(copy)) for file in before]}"
        # No reader needs the copy of a catalogue.
        copied = all(file.name.endswith(".copy") for file in before)
        assert (len(served) == len(expected)) if copied else (len(served) < len(expected)), where
        for name, values in served.items():
            assert torch.equal(values, expected[name]), where
        with suppress(StoreError):
            assert not verify(copy).ok, where
        for file, content in before.items():
            file.write_bytes(content)
    assert verify(copy).ok
    assert len(everything(copy, context)) == len(expected)
    print(f"{count} faults (seed {seed}), each refused and found: {dict(sorted(kinds.items()))}")
