"""The teacher's features that come with batches: those of the dump, beside whom, and of which samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.core.errors import ConfigError, MismatchError
from pipeline.dump.run import cache_logits
from pipeline.loading.feed import Feed
from pipeline.loading.loader import Batch, Division, Loader
from pipeline.loading.targets import Targets
from pipeline.losses import FeatureNeeds
from pipeline.modalities.images.augmentations import Cutmix, PadCrop
from pipeline.modalities.images.spec import ViewSpec
from pipeline.modalities.table import mixed_blocks, views_of
from pipeline.places.location import Location
from pipeline.store.follow import follow
from pipeline.store.header import Header
from pipeline.store.layout import ShardId
from pipeline.store.ledger import Records
from pipeline.store.reader import LogitStore

CPU = torch.device("cpu")
PLAIN = ViewSpec(seed=9, pad_crop=PadCrop(padding=2), flip="random")
MIXED = ViewSpec(seed=9, pad_crop=PadCrop(padding=2), cutmix=Cutmix())
EVERYTHING = FeatureNeeds(negatives=20, centres=True)


@pytest.fixture(scope="module")
def stores(context, decided_teacher, make_spec, tmp_path_factory) -> dict[str, LogitStore]:
    folder, made = tmp_path_factory.mktemp("features"), {}
    for name, views, codec in (
        ("plain", PLAIN, "features"),
        ("mixed", MIXED, "features"),
        ("logits", PLAIN, "fp16"),
    ):
        # A coarse one keeps of features what matters to the logits alone.
        spec = make_spec(views=views, codec=codec, max_kl=1e-5)
        cache_logits(context, decided_teacher, spec, folder / f"{name}.zarr")
        made[name] = LogitStore.open(folder / f"{name}.zarr")
    return made


@pytest.fixture
def loader(stores, context, decided_teacher):
    """Return a loader over a store's views; keyword arguments change it."""

    def make(name: str = "plain", needs: FeatureNeeds | None = EVERYTHING, **changed) -> Loader:
        store, images = stores[name], context.data.train
        preprocessing = decided_teacher.card.preprocessing
        feed = Feed(images, views_of(store), preprocessing, device=CPU, blocks=mixed_blocks(store, images))
        settings = {"batch_size": 16, "seed": 4, "n_classes": 3, "features": needs, **changed}
        return Loader(feed, Targets(store, feed), **settings)

    return make


@pytest.mark.parametrize("name", ["plain", "mixed"])
def test_features_are_those_that_the_teacher_has_of_these_very_images(loader, decided_teacher, name):
    for batch in loader(name).epoch(1):
        exact = decided_teacher.output(batch.images).features
        # The codec's error is far below what tells samples apart.
        error = (batch.teacher_features.own - exact).norm(dim=1)
        others = (batch.teacher_features.own.roll(1, 0) - exact).norm(dim=1)
        assert error.mean() < 0.5 * others.mean()


def test_logits_are_made_of_the_features(loader, stores):
    state = stores["plain"].codec.state
    for batch in loader().epoch(0):
        logits = batch.teacher_features.own @ state["weight"].T + state["bias"]
        torch.testing.assert_close(logits - logits.amax(1, keepdim=True), batch.teacher_logits)


def _by_row(loader: Loader, epoch: int) -> dict[int, torch.Tensor]:
    return {
        int(row): own
        for batch in loader.epoch(epoch)
        for row, own in zip(batch.rows, batch.teacher_features.own, strict=True)
    }


def _rows_of(negatives: torch.Tensor, known: dict[int, torch.Tensor]) -> list[int]:
    """Whose features these are."""
    rows, features = list(known), torch.stack(list(known.values()))
    return [rows[int((features - negative).square().sum(1).argmin())] for negative in negatives]


def test_negatives_are_of_the_samples_that_come_next(loader, context):
    epochs = loader()
    known = _by_row(epochs, 1)
    order = list(known)
    for step, batch in enumerate(epochs.epoch(1)):
        following = [order[(16 * (step + 1) + k) % len(order)] for k in range(20)]
        given = batch.teacher_features
        assert torch.equal(given.negatives, torch.stack([known[row] for row in following]))
        assert not set(following) & set(batch.rows.tolist())
        assert given.negative_labels.tolist() == context.data.train.labels[following].tolist()


def test_an_epoch_gives_no_more_negatives_than_it_has_others(loader):
    epochs = loader(needs=FeatureNeeds(negatives=10_000))
    count = epochs.steps_per_epoch * 16
    for batch in epochs.epoch(0):
        assert len(batch.teacher_features.negatives) == count - 16
    alone = loader(needs=FeatureNeeds(negatives=10), batch_size=10_000)
    assert next(alone.epoch(0)).teacher_features.negatives is None


def test_negatives_of_mixed_views_have_no_labels(loader):
    batch = next(loader("mixed").epoch(0))
    assert batch.labels.is_floating_point()
    assert len(batch.teacher_features.negatives) == 20
    assert batch.teacher_features.negative_labels is None


def test_centres_are_the_means_of_the_classes_in_the_first_view(loader, context):
    # Every image: an epoch leaves some out.
    epochs = loader(batch_size=len(context.data.train))
    known, labels = _by_row(epochs, 0), context.data.train.labels
    expected = [torch.stack([known[row] for row in known if labels[row] == c]).mean(0) for c in range(3)]
    for epoch in (0, 2):
        centres = next(epochs.epoch(epoch)).teacher_features.centres
        torch.testing.assert_close(centres, torch.stack(expected))


def test_centres_of_mixed_views_weigh_samples_by_their_shares(loader, context):
    epochs = loader("mixed", batch_size=len(context.data.train) // 4 * 4)
    (batch,) = epochs.epoch(0)
    assert len(batch.rows) == len(context.data.train)  # the means are of all
    shares = batch.labels
    expected = shares.T @ batch.teacher_features.own / shares.sum(0)[:, None]
    torch.testing.assert_close(batch.teacher_features.centres, expected)


def _same(a: Batch, b: Batch) -> bool:
    fields = ("own", "negatives", "negative_labels", "centres")
    pairs = [(getattr(a.teacher_features, name), getattr(b.teacher_features, name)) for name in fields]
    return np.array_equal(a.rows, b.rows) and all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_resumed_epoch_has_what_an_uninterrupted_one_has(loader, parts):
    whole = list(loader(division=Division(parts=parts)).epoch(1))
    rest = list(loader(division=Division(parts=parts)).epoch(1, first_step=2))
    assert len(rest) == len(whole) - 2 * parts
    assert all(_same(a, b) for a, b in zip(whole[2 * parts :], rest, strict=True))


def test_parts_of_a_step_look_beyond_themselves(loader):
    epochs = loader(division=Division(parts=2))
    for batch in epochs.epoch(0):
        assert len(batch.rows) == 8
        assert len(batch.teacher_features.negatives) == 20


def test_nothing_is_read_where_nothing_is_asked_for(loader):
    epochs = loader(needs=None)
    assert epochs.teacher_dim is None
    assert all(batch.teacher_features is None for batch in epochs.epoch(0))
    plain = next(loader(needs=FeatureNeeds()).epoch(0)).teacher_features
    assert (plain.negatives, plain.centres) == (None, None)


def test_a_store_without_features_is_refused(loader):
    message = (
        r"needs teacher features, .* codec 'fp16', which keeps logits only; re-dump with codec: features"
    )
    with pytest.raises(ConfigError, match=message):
        loader("logits")


def test_a_loader_without_a_store_is_refused(context, decided_teacher):
    feed = Feed(context.data.train, PLAIN, decided_teacher.card.preprocessing, device=CPU)
    with pytest.raises(ConfigError, match=r"needs teacher features, but there is no store"):
        Loader(feed, None, batch_size=16, seed=1, features=FeatureNeeds())


def test_centres_need_the_number_of_classes(loader):
    with pytest.raises(ConfigError, match=r"class centres, but n_classes is None"):
        loader(n_classes=None)


def test_each_view_of_an_unfinished_store_is_compared_when_it_is_loaded(
    context, teacher, make_spec, tmp_path
):
    path, images = tmp_path / "main.zarr", context.data.train
    cache_logits(context, teacher, make_spec(views=PLAIN), path, completes=False)
    records, header = Records(path), Header.read(Location(path))
    last, other = ShardId("train", 2, 0), ShardId("train", 1, 0)
    found = {shard: finished.record for shard, finished in records.read(header, [last, other]).items()}
    # View 1 tells pixels of view 2, and view 2 is not whole.
    records.drop([last, other])
    records.write(other, replace(found[other], checksums=found[last].checksums), header.origin)
    store = follow(path)
    targets = Targets(store, Feed(images, PLAIN, teacher.card.preprocessing, device=CPU))
    complete = targets.load(0)
    torch.testing.assert_close(complete.logits(torch.arange(len(images))), store.view(0))
    with pytest.raises(MismatchError, match="checksummed samples render differently than they did"):
        targets.load(1)
    targets.prefetch(2)
    assert [view for view, _ in targets._pending] == []
