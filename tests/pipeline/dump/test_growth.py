"""A store that is there: more views, more samples, fewer samples, and nothing made twice."""

from __future__ import annotations

import hashlib
import itertools
import pydoc
from dataclasses import replace

import numpy as np
import pytest
import torch
import zarr

from pipeline.core.errors import CorruptStoreError, IncompleteStoreError, LockedError, MismatchError
from pipeline.dump.open import complete, open_store
from pipeline.dump.plan import plan_dump
from pipeline.dump.run import cache_logits
from pipeline.dump.verify import replay, verify
from pipeline.store.lock import Slice, gate, writing
from pipeline.store.reader import LogitStore


def content(path) -> dict[str, str]:
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def shards(path) -> dict[str, int]:
    return {
        str(f.relative_to(path)): f.stat().st_mtime_ns for f in path.glob("*/logits/c/**/*") if f.is_file()
    }


def with_train(context, rows):
    return replace(context, data=replace(context.data, train=context.data.train.subset(np.asarray(rows))))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "main.zarr"


def test_more_views_leave_finished_shards_alone(context, teacher, make_spec, path):
    cache_logits(context, teacher, make_spec(view_count=2), path)
    before = shards(path)
    cache_logits(context, teacher, make_spec(view_count=3), path)
    assert LogitStore.open(path).n_views == 3
    after = shards(path)
    assert before.items() < after.items()
    grown = content(path)
    fresh = path.with_name("fresh.zarr")
    cache_logits(context, teacher, make_spec(view_count=3), fresh)
    assert content(fresh) == grown


def test_new_samples_are_appended_and_old_ones_keep_their_files(context, teacher, make_spec, path):
    count = len(context.data.train)
    cache_logits(with_train(context, range(count - 20)), teacher, make_spec(), path)
    before = shards(path)
    cache_logits(context, teacher, make_spec(), path)
    assert before.items() < shards(path).items()
    store = LogitStore.open(path)
    assert store.n_samples == count
    assert verify(path).ok
    fresh_path = path.with_name("fresh.zarr")
    cache_logits(context, teacher, make_spec(), fresh_path)
    fresh = LogitStore.open(fresh_path)
    rows, fresh_rows = (torch.from_numpy(s.rows_of(context.data.train)) for s in (store, fresh))
    for view in range(3):
        assert torch.allclose(store.view(view)[rows], fresh.view(view)[fresh_rows], atol=1e-3)
    assert replay(LogitStore.open(path), context, teacher, 40).ok


def test_data_that_grows_twice_in_another_order(context, teacher, make_spec, path):
    count = len(context.data.train)
    order = np.random.default_rng(0).permutation(count)
    for size in (20, 37, count):
        cache_logits(with_train(context, order[:size]), teacher, make_spec(), path)
    store = LogitStore.open(path)
    assert store.keys.tolist() == context.data.train.keys[order].tolist()
    assert len(store.manifest.layout.sections["train"].extents) == 3
    assert store.view(0).shape == (count, 3)
    assert replay(LogitStore.open(path), context, teacher, 60).ok


def test_new_held_out_samples_are_appended_too(context, teacher, make_spec, path):
    test = context.data.test
    small = replace(context, data=replace(context.data, test=test.subset(np.arange(10))))
    cache_logits(small, teacher, make_spec(), path)
    cache_logits(context, teacher, make_spec(), path)
    logits = LogitStore.open(path).held_out("test", test)
    assert logits is not None
    assert logits.shape == (len(test), 3)


def test_a_complete_store_of_more_than_the_data_is_left_alone(
    context, teacher, make_spec, path, monkeypatch
):
    cache_logits(context, teacher, make_spec(), path)
    before = content(path)
    monkeypatch.setattr("pipeline.models.teacher.Teacher.output", None)
    fewer = with_train(context, [3, 1, 40])
    cache_logits(fewer, teacher, make_spec(), path)
    assert content(path) == before
    assert LogitStore.open(path).rows_of(fewer.data.train).tolist() == [3, 1, 40]


def test_views_of_samples_that_are_gone_cannot_be_added(context, teacher, make_spec, path):
    cache_logits(context, teacher, make_spec(view_count=1), path)
    before = content(path)
    with pytest.raises(MismatchError, match=r"no longer in the data.*restore"):
        cache_logits(with_train(context, range(30)), teacher, make_spec(view_count=2), path)
    assert content(path) == before
    cache_logits(context, teacher, make_spec(view_count=2), path)
    assert verify(path).ok


def test_a_dataset_without_a_common_sample_is_refused(context, teacher, make_spec, path):
    cache_logits(with_train(context, range(30)), teacher, make_spec(), path)
    before = content(path)
    with pytest.raises(MismatchError, match=r"none of the 30 training samples, e\.g\. .train/\d+"):
        cache_logits(with_train(context, range(30, 60)), teacher, make_spec(), path)
    assert content(path) == before


@pytest.mark.parametrize("count", [2, 3, 7])
def test_slices_make_the_bytes_of_one_writer(context, teacher, make_spec, path, count):
    cache_logits(context, teacher, make_spec(), path)
    whole = content(path)
    sliced = path.with_name("sliced.zarr")
    for index in reversed(range(count)):
        part = Slice(index, count)
        assert cache_logits(context, teacher, make_spec(), sliced, part=part, completes=False) is None
        with pytest.raises(IncompleteStoreError):
            LogitStore.open(sliced)
    assert cache_logits(context, teacher, make_spec(), sliced) is not None
    assert content(sliced) == whole


def test_slices_are_disjoint_and_cover():
    items = list(range(23))
    for count in (1, 2, 5, 23, 40):
        parts = [Slice(index, count).of(items) for index in range(count)]
        assert list(itertools.chain(*parts)) == items


def test_writers_of_overlapping_slices_exclude_each_other(context, teacher, make_spec, path, monkeypatch):
    monkeypatch.setattr("pipeline.dump.run.WAIT_SECONDS", 0.3)
    with writing(path, Slice(1, 3)):
        with pytest.raises(LockedError, match=r"process \d+ on .* \(slice 1-of-3\)"):
            cache_logits(context, teacher, make_spec(), path)
        with pytest.raises(LockedError, match="slice 1-of-3"):
            cache_logits(context, teacher, make_spec(), path, part=Slice(1, 2), completes=False)
        cache_logits(context, teacher, make_spec(), path, part=Slice(0, 3), completes=False)
    assert cache_logits(context, teacher, make_spec(), path) is not None


def test_a_store_does_not_grow_while_others_write_it(context, teacher, make_spec, path):
    cache_logits(context, teacher, make_spec(view_count=1), path)
    with writing(path, Slice(0, 4)), pytest.raises(LockedError, match="cannot grow"):
        cache_logits(context, teacher, make_spec(view_count=2), path, part=Slice(1, 4), completes=False)


def test_a_newcomer_says_who_is_at_the_gate(path, context, teacher, make_spec, monkeypatch):
    monkeypatch.setattr("pipeline.dump.run.WAIT_SECONDS", 0.3)
    with gate(path, 0), pytest.raises(LockedError, match=r"process \d+ on"):
        cache_logits(context, teacher, make_spec(), path)


def test_the_writer_that_made_the_store_may_find_it_completed_by_another(context, teacher, make_spec, path):
    """It has its header from memory, not from a file."""
    spec = make_spec(view_count=1)
    plan = plan_dump(context, teacher, spec, path)
    open_store(plan)
    cache_logits(context, teacher, spec, path)
    assert complete(path, plan.header, context, completes=True) is not None
    assert not (path / "growth").exists()


def test_a_run_killed_while_it_creates_the_store_leaves_none(
    context, teacher, make_spec, path, monkeypatch
):
    def killed(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.store.header.Header.publish", killed)
        with pytest.raises(KeyboardInterrupt):
            cache_logits(context, teacher, make_spec(), path)
    assert not path.exists()
    cache_logits(context, teacher, make_spec(), path)
    assert verify(path).ok


@pytest.mark.parametrize(
    ("step", "calls"),
    [
        *(("pipeline.store.frame._put_index", n) for n in (0, 3)),
        *(("pipeline.store.frame._resize", n) for n in (0, 3)),
        ("pipeline.store.header.Header.publish", 0),
    ],
)
@pytest.mark.parametrize("goes_on", ["grown", "as before"])
def test_a_run_killed_while_a_store_grows(
    context, teacher, make_spec, path, monkeypatch, step, calls, goes_on
):
    small = with_train(context, range(30))
    cache_logits(small, teacher, make_spec(view_count=2), path)
    module, _, name = step.rpartition(".")
    owner = pydoc.locate(module)
    original, left = getattr(owner, name), [calls]

    def killed(*arguments, **options):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killed)
        with pytest.raises(KeyboardInterrupt):
            cache_logits(context, teacher, make_spec(view_count=3), path)
    if goes_on == "as before":
        cache_logits(small, teacher, make_spec(view_count=2), path)
        assert verify(path).ok
        assert zarr.open_array(path / "train/logits", mode="r").shape == (2, 30, 3)
    cache_logits(context, teacher, make_spec(view_count=3), path)
    assert verify(path).ok
    assert LogitStore.open(path).n_views == 3
    assert replay(LogitStore.open(path), context, teacher, 30).ok


@pytest.mark.parametrize("name", ["train/keys/c/0", "train/digests/c/0"])
def test_lost_keys_are_no_new_samples(context, teacher, make_spec, path, name):
    cache_logits(context, teacher, make_spec(), path)
    (path / name).unlink()
    before = content(path)
    with pytest.raises(CorruptStoreError, match=r"keys, digests or labels.*--repair"):
        cache_logits(context, teacher, make_spec(), path)
    assert content(path) == before


def test_growing_adds_catalogues_and_changes_none(context, teacher, make_spec, path):
    cache_logits(context, teacher, make_spec(view_count=1), path)
    before = {name: values for name, values in content(path).items() if "catalogues" in name}
    for copy in path.glob("catalogues/*.copy"):
        copy.unlink()
    cache_logits(context, teacher, make_spec(view_count=2), path)
    after = {name: values for name, values in content(path).items() if "catalogues" in name}
    kept = {name for name in before if not name.endswith(".copy")}
    assert kept
    assert all(after[name] == before[name] for name in kept)
    # Two of the new view: its catalogue and the copy.
    assert len(after.keys() - kept) == 2
    assert LogitStore.open(path).n_views == 2


def test_leftovers_are_no_part_of_a_finished_store(context, teacher, make_spec, path):
    cache_logits(context, teacher, make_spec(), path)
    whole = content(path)
    (path / "manifest.json").unlink()
    for name in (".manifest.json.k3x_90ab", "train/logits/zarr.0123.partial", "train/keys/c/0.9f.partial"):
        (path / name).write_text("half")
    cache_logits(context, teacher, make_spec(), path)
    assert content(path) == whole


def test_records_that_outlived_completion_are_swept(context, teacher, make_spec, path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.store.ledger.Records.clear", lambda self: None)
        cache_logits(context, teacher, make_spec(), path)
    assert (path / "records").exists()
    assert verify(path).ok
    cache_logits(context, teacher, make_spec(), path)
    assert not (path / "records").exists()
