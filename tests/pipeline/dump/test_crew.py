"""A dump that several workers make, against one process's; threads of this process stand for an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import pytest
import torch

from pipeline.core.errors import LockedError, MismatchError
from pipeline.dump import crew
from pipeline.dump.crew import Begun, DumpWorker, Unit, run_shared_dump, units_of
from pipeline.dump.plan import plan_dump
from pipeline.dump.run import cache_logits
from pipeline.places.folder import Root, at
from pipeline.places.objects import ObjectPlace
from pipeline.store.layout import ShardId
from pipeline.store.lock import WHOLE, writing

EACH = ["folder", "bucket"]


class Hands:
    """Workers of this process, each in a thread of its own; it counts the units that they are given.

    Args:
        workers: as an engine would start them.
        again: give each unit to two workers at the same time, as after a lost answer.
        ends_after: units after which the command dies.
    """

    def __init__(
        self, workers: Sequence[DumpWorker], *, again: bool = False, ends_after: int | None = None
    ) -> None:
        self._workers, self._again, self._ends_after = workers, again, ends_after
        self.given: list[Unit] = []

    @property
    def size(self) -> int:
        return len(self._workers)

    def begin(self) -> Begun:
        return self._workers[0].begin(self.size)

    def make(self, begun: Begun, units: Sequence[Unit]) -> Iterator[Unit]:
        for number, unit in enumerate(units):
            if number == self._ends_after:
                raise KeyboardInterrupt
            self.given.append(unit)
            chosen = [self._workers[(number + shift) % self.size] for shift in range(1 + self._again)]
            with ThreadPoolExecutor(len(chosen)) as pool:
                list(pool.map(lambda worker, unit=unit: worker.make(begun, unit), chosen))
            yield unit


@pytest.fixture
def make_worker(context, teacher, make_spec) -> Callable[..., DumpWorker]:
    """Return a function that makes a worker for a place; `teacher` and `data` may be others."""

    def make(path: Root, *, teacher=teacher, data=context.data, **changes) -> DumpWorker:
        spec = make_spec("affine8", **changes)
        return DumpWorker(path, partial(plan_dump, replace(context, data=data), teacher, spec, path))

    return make


def content(path: Root) -> dict[str, bytes | None]:
    return {name: at(path).get(name) for name in at(path).sizes()}


@pytest.fixture
def alone(context, teacher, make_spec, tmp_path) -> dict[str, bytes | None]:
    """The bytes of one process's store."""
    path = tmp_path / "alone" / "main.zarr"
    cache_logits(context, teacher, make_spec("affine8"), path)
    return content(path)


@pytest.fixture(params=EACH)
def path(request, tmp_path) -> Root:
    return tmp_path / "main.zarr" if request.param == "folder" else ObjectPlace.in_memory()


@pytest.mark.parametrize("by_view", [False, True])
def test_workers_write_the_bytes_of_one_process(context, make_worker, path, alone, by_view):
    hands = Hands([make_worker(path) for _ in range(3)])
    run_shared_dump(context, path, hands, by_view=by_view)
    assert content(path) == alone
    order = [shard for unit in hands.given for shard in unit]
    if by_view:
        assert order == sorted(order)


def test_a_unit_that_two_workers_make_at_once_has_the_same_bytes(context, make_worker, path, alone):
    hands = Hands([make_worker(path) for _ in range(2)], again=True)
    run_shared_dump(context, path, hands)
    assert content(path) == alone


def test_the_next_command_finds_the_units_that_are_written(context, make_worker, path, alone):
    first = Hands([make_worker(path), make_worker(path)], ends_after=3)
    with pytest.raises(KeyboardInterrupt):
        run_shared_dump(context, path, first)
    second = Hands([make_worker(path), make_worker(path)])
    run_shared_dump(context, path, second)
    assert content(path) == alone
    assert set().union(*first.given).isdisjoint(set().union(*second.given))


def test_a_complete_store_has_no_units_and_a_grown_one_the_new_ones(context, make_worker, path):
    run_shared_dump(context, path, Hands([make_worker(path, view_count=2)]))
    again = Hands([make_worker(path, view_count=2)])
    run_shared_dump(context, path, again)
    assert again.given == []
    more = Hands([make_worker(path) for _ in range(2)])
    run_shared_dump(context, path, more)
    assert {shard.view for unit in more.given for shard in unit} == {2}


def test_a_worker_with_other_software_teacher_or_data_is_refused(
    context, teacher, make_worker, tmp_path, monkeypatch
):
    begun = make_worker(tmp_path / "main.zarr").begin()
    train = [shard for shard in begun.header.layout.shards() if shard.section == "train"]
    make = partial(make_worker, tmp_path / "main.zarr")
    different = replace(teacher, network=torch.nn.Sequential(teacher.network))
    fewer = replace(context.data, train=context.data.train.subset(range(40)))
    for worker, message in (
        (make(teacher=replace(different, name="other")), "written with a different teacher"),
        (make(view_count=2), "has different data or parameters than the first one: layout"),
    ):
        with pytest.raises(MismatchError, match=message):
            worker.make(begun, (train[0],))
    with pytest.raises(MismatchError):
        make(data=fewer).make(begun, (train[0],))
    monkeypatch.setattr(crew, "versions", lambda decoder: {"decoder": "another 1.0"})
    with pytest.raises(
        MismatchError, match=r"different software than the first one: decoder was .* another 1"
    ):
        make().make(begun, (train[0],))


def test_no_other_process_writes_a_store_meanwhile(context, teacher, make_spec, make_worker, tmp_path):
    path, seen = tmp_path / "main.zarr", []

    class Looking(Hands):
        def make(self, begun: Begun, units: Sequence[Unit]) -> Iterator[Unit]:
            with pytest.raises(LockedError), writing(path, WHOLE):
                pass
            seen.append(path)
            return super().make(begun, units)

    run_shared_dump(context, path, Looking([make_worker(path)]))
    assert seen == [path]
    with writing(path, WHOLE):
        pass


@pytest.mark.parametrize(("views", "blocks", "workers"), [(4, 10, 2), (8, 1, 4), (1, 7, 3), (3, 2, 100)])
def test_units_are_views_of_one_block_and_enough_for_all_workers(views, blocks, workers):
    shards = [ShardId("train", view, block) for block in range(blocks) for view in range(views)]
    units = units_of(shards, workers)
    assert [shard for unit in units for shard in unit] == shards
    assert all(len({shard.block for shard in unit}) == 1 for unit in units)
    assert len(units) >= min(len(shards), 4 * workers)


def test_resumed_units_skip_the_shards_in_between():
    shards = [ShardId("train", view, block) for block in (0, 1) for view in (0, 2)]
    assert [shard for unit in units_of(shards, 1) for shard in unit] == shards
    assert units_of([], 4) == []
