"""The order of a lap: global, or block by block; each process reads its own blocks alone."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.core.distributed import Ranks
from pipeline.core.errors import ConfigError
from pipeline.dump.run import cache_logits
from pipeline.loading.loader import Division, Loader
from pipeline.loading.order import GLOBAL, STREAMS, Order, OrderSpec
from pipeline.loading.targets import Targets
from pipeline.modalities.images.augmentations import Cutmix
from pipeline.modalities.images.spec import ViewSpec
from pipeline.modalities.table import mixed_blocks
from pipeline.store.reader import LogitStore, SectionReader
from pipeline.training.settings import TrainingSettings
from pipeline.views.pairing import pair_up
from tests.pipeline.conftest import VIEWS

BLOCK_ROWS, BATCH = 64, 128
BLOCKS = OrderSpec(kind="blocks", window=2)
MIXED = ViewSpec(seed=3, cutmix=Cutmix())


def keys_of(count: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 1 << 63, count).astype(np.uint64)


def make_order(
    count: int = 8192,
    *,
    spec: OrderSpec = BLOCKS,
    mixes: bool = False,
    lengths: Callable[[np.ndarray], np.ndarray] | None = None,
    chosen: np.ndarray | None = None,
    batch_size: int = BATCH,
) -> Order:
    """Return an order over `count` samples in blocks of `BLOCK_ROWS`, or over some of them."""
    rows = np.arange(count) if chosen is None else chosen
    keys, blocks = keys_of(count)[rows], rows // BLOCK_ROWS
    feed: Any = SimpleNamespace(
        images=SimpleNamespace(keys=keys),
        pairing=pair_up(keys, 1, mixes=mixes, blocks=blocks),
        mixes=mixes,
        lengths=lambda view, some: None if lengths is None else lengths(some),
    )
    return Order(feed, batch_size=batch_size, seed=4, spec=spec, blocks=blocks)


@pytest.mark.parametrize("spec", [GLOBAL, BLOCKS, OrderSpec(kind="blocks", window=1)])
@pytest.mark.parametrize("mixes", [False, True])
@pytest.mark.parametrize("count", [8192, 8191, 8200, 150])
def test_every_row_comes_at_most_once_and_only_a_last_batch_is_dropped(spec, mixes, count):
    order = make_order(count, spec=spec, mixes=mixes)
    lap = order.lap(2, 0)
    assert lap.shape == (count // BATCH, BATCH)
    assert len(np.unique(lap)) == lap.size


def test_over_laps_every_row_is_seen():
    order = make_order(300, batch_size=64)
    seen = np.unique(np.concatenate([order.lap(lap, 0).ravel() for lap in range(20)]))
    assert len(seen) == 300


def test_laps_differ_and_an_order_is_repeated():
    order, again = make_order(), make_order()
    assert np.array_equal(order.lap(1, 0), again.lap(1, 0))
    assert not np.array_equal(order.lap(1, 0), order.lap(2, 0))


@pytest.mark.parametrize("count", [2, 4, 8, 16])
def test_a_process_touches_its_own_blocks_alone(count):
    """128 blocks: each process has 128 / count of them, and shares one with a neighbour at most."""
    lap = make_order().lap(0, 0)
    for index in range(count):
        mine = lap[:, Ranks(index, count).share(BATCH)]
        assert len(np.unique(mine // BLOCK_ROWS)) <= 128 // count + 1
    shuffled = make_order(spec=GLOBAL).lap(0, 0)
    assert len(np.unique(shuffled[:, : BATCH // count] // BLOCK_ROWS)) > 100


def test_steps_read_few_blocks_at_a_time():
    """64 rows of a window of two blocks: a stream of eight columns uses it up in 16 steps."""
    lap = make_order().lap(0, 0)
    blocks = [len(np.unique(lap[start : start + 16] // BLOCK_ROWS)) for start in range(0, 64, 16)]
    assert max(blocks) <= 2 * STREAMS + STREAMS
    assert min(blocks) >= STREAMS


def test_rows_of_a_window_are_mixed_and_blocks_come_in_random_order():
    column = make_order().lap(0, 0)[:, :8].ravel() // BLOCK_ROWS
    first, second = column[: 2 * BLOCK_ROWS], column[2 * BLOCK_ROWS : 4 * BLOCK_ROWS]
    assert not set(first.tolist()) & set(second.tolist())
    # Of two blocks in random order about half of the neighbours differ; in sequence, one pair would.
    assert (first[1:] != first[:-1]).sum() > 40
    assert np.any(np.diff(column[:: 2 * BLOCK_ROWS]) < 0)


def test_mixed_groups_stay_in_one_batch():
    order = make_order(mixes=True)
    lap = order.lap(0, 0)
    groups, odd = order._feed.pairing.groups(0)
    assert not odd
    batch = np.empty(8192, np.int64)
    batch[lap] = np.arange(len(lap))[:, None]
    assert (batch[groups] == batch[groups[:, :1]]).all()


def test_batches_have_similar_lengths_and_streams_keep_their_blocks():
    lengths = np.random.default_rng(2).integers(1, 500, 8192)
    plain, by_length = make_order().lap(0, 0), make_order(lengths=lambda rows: lengths[rows]).lap(0, 0)
    assert np.array_equal(np.sort(plain, None), np.sort(by_length, None))
    longest = [lengths[lap].max(1).mean() - lengths[lap].min(1).mean() for lap in (plain, by_length)]
    assert longest[1] < longest[0] / 5
    for columns in (slice(0, 64), slice(64, 128)):
        blocks = [np.unique(lap[:, columns] // BLOCK_ROWS) for lap in (plain, by_length)]
        assert np.array_equal(*blocks)


def test_the_order_follows_the_samples_whatever_their_places():
    rows = np.random.default_rng(1).permutation(8192)
    straight, moved = make_order().lap(0, 0), make_order(chosen=rows).lap(0, 0)
    assert np.array_equal(straight, rows[moved])


def test_a_wrong_order_is_refused():
    with pytest.raises(ConfigError, match="order is 'random'; expected global or blocks"):
        OrderSpec(kind="random")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="order_window is 0; expected at least 1 block"):
        TrainingSettings(order_window=0)


def test_records_of_before_are_equal():
    assert "order" not in TrainingSettings().to_dict()
    assert TrainingSettings(order="blocks").to_dict()["order"] == "blocks"


# Loaders over a store in shards of 16 rows.


@pytest.fixture(scope="module")
def stores(context, teacher, make_spec, tmp_path_factory) -> dict[bool, LogitStore]:
    folder = tmp_path_factory.mktemp("logits")
    for name, views in (("plain", VIEWS), ("mixed", MIXED)):
        cache_logits(context, teacher, make_spec(views=views), folder / f"{name}.zarr")
    return {name == "mixed": LogitStore.open(folder / f"{name}.zarr") for name in ("plain", "mixed")}


@pytest.fixture
def make_loader(stores, context, teacher):
    def make(mixes: bool = False, workers: int = 1, **changes: Any) -> Loader:
        store, images = stores[mixes], context.data.train
        views = MIXED if mixes else VIEWS
        feed = context.feed(images, views, teacher.card.preprocessing, mixed_blocks(store, images))
        feed._workers = workers
        settings = {
            "batch_size": 16,
            "seed": 2,
            "n_classes": 3,
            "order": OrderSpec(kind="blocks", window=1),
        }
        return Loader(feed, Targets(store, feed), **{**settings, **changes})

    return make


def rows_in(loader: Loader, epoch: int, first: int = 0) -> list[list[int]]:
    return [batch.rows.tolist() for batch in loader.epoch(epoch, first)]


@pytest.mark.parametrize("mixes", [False, True])
def test_a_resumed_epoch_goes_on_with_the_same_batches(make_loader, mixes):
    whole, resumed = make_loader(mixes), make_loader(mixes, workers=3)
    for epoch in (0, 1):
        everything = list(whole.epoch(epoch))
        for mine, theirs in zip(everything[2:], resumed.epoch(epoch, 2), strict=True):
            assert mine.rows.tolist() == theirs.rows.tolist()
            assert torch.equal(mine.images, theirs.images)
            assert torch.equal(mine.teacher_logits, theirs.teacher_logits)


@pytest.mark.parametrize("mixes", [False, True])
@pytest.mark.parametrize("parts", [1, 2])
def test_processes_share_the_batches_of_one(make_loader, mixes, parts):
    whole = make_loader(mixes, division=Division(parts=parts))
    shares = [
        make_loader(mixes, division=Division(parts=parts, ranks=Ranks(index, 2)), own_rows=True)
        for index in range(2)
    ]
    for epoch in range(3):
        for all_of_it, *each in zip(whole.epoch(epoch), *(s.epoch(epoch) for s in shares), strict=True):
            assert torch.equal(torch.cat([batch.images for batch in each]), all_of_it.images)
            logits = torch.cat([batch.teacher_logits for batch in each])
            assert torch.equal(logits, all_of_it.teacher_logits)
            assert torch.equal(torch.cat([batch.labels for batch in each]), all_of_it.labels)


def test_a_process_reads_the_shards_of_its_rows_alone(make_loader, stores, monkeypatch):
    """Rows and shards of the teacher's outputs, counted: a part of each, not all of them."""
    read: list[tuple[int, int]] = []
    original = SectionReader.read_shard

    def counted(self: SectionReader, shard: Any, array: str) -> Any:
        if self._name == "train":
            read.append((shard.view, shard.block))
        return original(self, shard, array)

    monkeypatch.setattr(SectionReader, "read_shard", counted)
    loader = make_loader(division=Division(ranks=Ranks(1, 4)), own_rows=True)
    batches = list(loader.epoch(0))
    loader._targets._pool.shutdown()
    mine = np.concatenate([batch.rows[batch.own] for batch in batches])
    shards = set((stores[False].rows_of(loader._feed.images)[mine] // 16).tolist())
    assert {block for view, block in read if view == 0} == shards
    n_blocks = len(stores[False].manifest.layout.blocks("train"))
    assert len(shards) <= -(-n_blocks // 4) + 2
    assert len(shards) < n_blocks
    held = loader._targets._current[1].arrays
    assert {len(array) for array in held.values()} == {len(mine)}


def test_some_rows_of_a_view_are_read_in_their_order(stores):
    store = stores[False]
    rows = np.array([40, 3, 17, 3, 60])
    some, whole = store.encoded_view(1, rows), store.encoded_view(1)
    for name, values in whole.items():
        assert np.array_equal(some[name], values[rows])
    assert all(len(values) == 0 for values in store.encoded_view(1, rows[:0]).values())
