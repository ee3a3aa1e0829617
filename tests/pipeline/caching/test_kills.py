"""A growth and a repair that are killed before any change of the file system end with equal bytes.

A child process counts what it is about to change in the store's folder, and ends before the change whose
number it was given, as SIGKILL would end it.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.audit import verify
from pipeline.caching.dump import cache_logits
from pipeline.caching.repair import repair
from pipeline.store.reader import LogitStore
from pipeline.store.slices import Slice
from tests.pipeline.caching.test_growth import content, with_train

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate", "shutil.rmtree")
# Steps between kills: the default tests try some of the changes, the slow ones all.
SPARSE, EVERY = 29, 1


def changes(work: Callable[[], object], folder: Path, last: int | None) -> int:
    """Do some work in a child that is killed before its change number `last`; return how many it made.

    Locks are no part of the store. A run may make a change or two fewer than another, and end.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _count_and_die(folder, last, writer)
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        made = len(pipe.read())
    _, status = os.waitpid(child, 0)
    assert status in ((0,) if last is None else (0, signal.SIGKILL))
    return made


def _count_and_die(folder: Path, last: int | None, pipe: int) -> None:
    made = 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal made
        opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING
        if not (opened or event in _CHANGES):
            return
        if ".locks" in str(arguments[0]) or str(folder) not in str(arguments[0]):
            return
        if made == last:
            os.kill(os.getpid(), signal.SIGKILL)
        made += 1
        os.write(pipe, b".")

    sys.addaudithook(watch)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "main.zarr"


def copy_of(path: Path) -> Path:
    copy = path.with_name("copy.zarr")
    for folder in (copy, copy.with_name(f"{copy.name}.locks")):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(path, copy)
    return copy


def small(bench):
    return with_train(bench, range(40))


@pytest.mark.parametrize(
    "step", [SPARSE, pytest.param(EVERY, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])]
)
@pytest.mark.parametrize("added", ["views", "samples"])
def test_a_growth_that_is_killed_at_any_change(bench, teacher, make_spec, path, step, added):
    """The complete store stays readable, growing back changes none of its bytes, going on ends alike."""
    before, after = (bench, bench) if added == "views" else (small(bench), bench)
    old, new = (
        make_spec("affine8", view_count=1),
        make_spec("affine8", view_count=2 if added == "views" else 1),
    )
    cache_logits(before, teacher, old, path)
    whole = content(path)
    grown = copy_of(path)
    total = changes(lambda: cache_logits(after, teacher, new, grown), grown, None)
    assert total > 40
    expected = content(grown)
    kept = 0
    for last in range(total % step, total, step):
        store = copy_of(path)
        changes(lambda store=store: cache_logits(after, teacher, new, store), store, last)
        opened = LogitStore.open(store)
        opened.view(0)
        opened.held_out("test", bench.data.test)
        assert verify(store).ok, last
        if (store / "manifest.json").read_bytes() == (path / "manifest.json").read_bytes():
            kept += 1
            cache_logits(before, teacher, old, store)
            there = {name: d for name, d in content(store).items() if not name.startswith("growth/")}
            assert there == whole, last
        cache_logits(after, teacher, new, store)
        assert content(store) == expected, last
    assert kept


@pytest.mark.parametrize(
    "step", [SPARSE, pytest.param(EVERY, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])]
)
def test_a_repair_that_is_killed_at_any_change(bench, teacher, make_spec, path, step):
    cache_logits(bench, teacher, make_spec("affine8", view_count=1), path)
    expected = content(path)
    for name in ("train/codes/c/0/1/0", "zarr.json", "train/codes/zarr.json"):
        (path / name).write_bytes(b"?")
    mended = copy_of(path)
    total = changes(lambda: repair(mended, bench, teacher), mended, None)
    assert total > 10
    assert content(mended) == expected
    for last in range(total % step, total, step):
        store = copy_of(path)
        changes(lambda store=store: repair(store, bench, teacher), store, last)
        repair(store, bench, teacher)
        assert content(store) == expected, last
        assert verify(store).ok, last


def test_a_repair_mends_the_complete_store_and_leaves_its_growth(bench, teacher, make_spec, path):
    cache_logits(bench, teacher, make_spec("affine8", view_count=1), path)
    whole = content(path)
    cache_logits(
        bench, teacher, make_spec("affine8", view_count=3), path, part=Slice(0, 2), completes=False
    )
    growth = {name: digest for name, digest in content(path).items() if name.startswith("growth/")}
    assert growth
    (path / "train/codes/c/0/1/0").write_bytes(b"?")
    repair(path, bench, teacher)
    assert content(path) == {**whole, **growth}
