"""What is bad is made again, the rest keeps its bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.core.errors import CorruptStoreError, MismatchError, StoreError
from pipeline.dump.repair import repair
from pipeline.dump.run import cache_logits
from pipeline.dump.verify import verify
from pipeline.store.lock import Slice
from pipeline.store.reader import LogitStore
from tests.pipeline.dump.test_growth import content, shards, with_train


@pytest.fixture
def path(context, teacher, make_spec, tmp_path):
    folder = tmp_path / "main.zarr"
    cache_logits(context, teacher, make_spec("affine8"), folder)
    return folder


def flip(file) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(bytes(content))


def test_a_good_store_is_left_alone(path, context, teacher):
    before = content(path)
    assert repair(path, context, teacher) == []
    assert content(path) == before


FILES = [
    *("train/codes/c/1/0/0", "train/codes/zarr.json", "manifest.json", "train/keys/c/0"),
    *("train/scale/c/2/1", "test/codes/c/0/0/0", "train/zarr.json", "zarr.json"),
    *("test/digests/zarr.json", "validation/keys/c/0"),
]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, "flip") for name in FILES),
        *((name, damage) for name in FILES[:4] for damage in ("remove", "empty")),
    ],
)
def test_damage_is_mended_to_the_same_bytes(path, context, teacher, name, damage):
    before = content(path)
    file = path / name
    {"flip": flip, "remove": lambda f: f.unlink(), "empty": lambda f: f.write_bytes(b"")}[damage](file)
    if name != "manifest.json":
        assert not verify(path).ok
    repair(path, context, teacher)
    assert content(path) == before


def test_only_the_bad_shard_is_made_again(path, context, teacher, seen):
    flip(path / "train/codes/c/1/2/0")
    repair(path, context, teacher)
    assert sum(seen) == 16


def test_two_swapped_shards_are_made_again(path, context, teacher):
    before = content(path)
    first, second = path / "train/codes/c/0/0/0", path / "train/codes/c/1/0/0"
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])
    assert len(repair(path, context, teacher)) == 2
    assert content(path) == before


def test_strays_are_removed(path, context, teacher):
    (path / "train/stray").write_text("x")
    repair(path, context, teacher)
    assert verify(path).ok


@pytest.fixture
def seen(teacher, monkeypatch) -> list[int]:
    """How many images the teacher saw, batch by batch."""
    sizes: list[int] = []
    original = type(teacher).output
    monkeypatch.setattr(type(teacher), "output", lambda t, x: sizes.append(len(x)) or original(t, x))
    return sizes


@pytest.mark.parametrize("damage", ["edit", "remove", "garbage"])
def test_a_lost_manifest_costs_no_forward_pass(path, context, teacher, seen, damage):
    before = content(path)
    file = path / "manifest.json"
    if damage == "edit":
        file.write_text(file.read_text().replace('"labelled": ', '"labelled": 1'))
    else:
        file.unlink() if damage == "remove" else file.write_bytes(b"{")
    repair(path, context, teacher)
    assert content(path) == before
    assert seen == []


def test_a_lost_manifest_and_one_bad_shard(path, context, teacher, seen):
    before = content(path)
    (path / "manifest.json").write_text("{}")
    flip(path / "train/codes/c/1/2/0")
    repair(path, context, teacher)
    assert content(path) == before
    assert sum(seen) == 16


def test_a_lost_manifest_and_a_lost_frame(path, context, teacher, seen):
    before = content(path)
    for name in ("manifest.json", "train/codes/zarr.json", "train/keys/c/0", "test/zarr.json"):
        (path / name).write_bytes(b"?")
    repair(path, context, teacher)
    assert content(path) == before
    assert seen == []


def test_going_on_without_a_manifest_makes_nothing_twice(path, context, teacher, make_spec, seen):
    before = content(path)
    (path / "manifest.json").unlink()
    cache_logits(context, teacher, make_spec("affine8"), path)
    assert content(path) == before
    assert seen == []


def test_an_unfinished_store_is_mended_and_finished(path, context, teacher, make_spec, tmp_path):
    before = content(path)
    unfinished = tmp_path / "unfinished.zarr"
    spec = make_spec("affine8")
    cache_logits(context, teacher, spec, unfinished, part=Slice(0, 2), completes=False)
    flip(unfinished / "train/keys/c/0")
    flip(unfinished / "train/codes/zarr.json")
    flip(unfinished / "train/codes/c/0/0/0")
    with pytest.raises(CorruptStoreError, match=r"verify \S+ --repair"):
        cache_logits(context, teacher, spec, unfinished)
    repair(unfinished, context, teacher)
    assert content(unfinished) == before


def test_a_lost_codec_state_is_fitted_again(context, teacher, make_spec, tmp_path):
    folder = tmp_path / "features.zarr"
    cache_logits(context, teacher, make_spec("features"), folder)
    before = content(folder)
    flip(next(file for file in (folder / "codec/table/c").rglob("*") if file.is_file()))
    with pytest.raises(CorruptStoreError):
        LogitStore.open(folder)
    repair(folder, context, teacher)
    assert content(folder) == before


@pytest.mark.parametrize("step", ["gather", "unlink", "write"])
def test_a_repair_that_is_killed_can_be_gone_on_with(path, context, teacher, monkeypatch, step):
    before = content(path)
    flip(path / "zarr.json")
    flip(path / "train/codes/c/1/2/0")
    target = {
        "gather": "pipeline.store.ledger.Records.put",
        "unlink": "pathlib.Path.unlink",
        "write": "pipeline.store.header.Header.publish",
    }[step]

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(target, killed)
        with pytest.raises(KeyboardInterrupt):
            repair(path, context, teacher)
    repair(path, context, teacher)
    assert content(path) == before


def test_a_refused_repair_touches_nothing(path, context, teacher):
    flip(path / "train/codes/c/0/2/0")
    before = content(path)
    with pytest.raises(MismatchError, match="no longer in the data"):
        repair(path, with_train(context, range(20)), teacher)
    assert content(path) == before


def test_another_teacher_mends_nothing(path, context, teacher):
    flip(path / "train/codes/c/1/0/0")
    with pytest.raises(MismatchError, match="a different teacher"):
        repair(path, context, replace(teacher, precision="bf16"))
    assert not verify(path).ok


def test_lost_keys_of_a_grown_store_cannot_be_made_again(context, teacher, make_spec, tmp_path):
    folder = tmp_path / "grown.zarr"
    order = np.random.default_rng(1).permutation(len(context.data.train))
    cache_logits(with_train(context, order[:40]), teacher, make_spec(), folder)
    cache_logits(with_train(context, order), teacher, make_spec(), folder)
    flip(folder / "train/keys/c/0")
    with pytest.raises(StoreError, match=r"the sample index is lost.*dvc checkout"):
        repair(folder, context, teacher)


def test_mending_adds_no_samples(context, teacher, make_spec, tmp_path):
    folder = tmp_path / "small.zarr"
    cache_logits(with_train(context, range(30)), teacher, make_spec(), folder)
    before, files = content(folder), shards(folder)
    flip(folder / "train/logits/c/0/0/0")
    repair(folder, context, teacher)
    assert content(folder) == before
    assert len(shards(folder)) == len(files)
    assert LogitStore.open(folder).n_samples == 30
