"""Feed, dump, targets, loader and the plain dataset, on one small teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.core.errors import MismatchError
from pipeline.dump.run import cache_logits
from pipeline.dump.verify import replay, verify
from pipeline.loading.feed import Feed, consecutive
from pipeline.loading.loader import Loader
from pipeline.loading.targets import Targets
from pipeline.loading.training_set import TrainingSet
from pipeline.models.architecture import build
from pipeline.models.teacher import Teacher
from pipeline.store.reader import LogitStore
from tests.pipeline.conftest import VIEWS

CPU = torch.device("cpu")
COUNT = 3


@pytest.fixture(scope="module")
def store(context, teacher, make_spec, tmp_path_factory) -> LogitStore:
    path = tmp_path_factory.mktemp("logits") / "main.zarr"
    cache_logits(context, teacher, make_spec(), path)
    return LogitStore.open(path)


@pytest.fixture(scope="module")
def feed(context, teacher) -> Feed:
    return context.feed(context.data.train, VIEWS, teacher.card.preprocessing)


def relative(logits: torch.Tensor) -> torch.Tensor:
    return logits - logits.amax(1, keepdim=True)


def test_stored_logits_are_the_teachers_of_that_view(store, feed, teacher):
    rows = np.arange(len(feed.images))
    for view in range(COUNT):
        (images,) = feed.batches(view, [rows])
        stored = store.view(view)[torch.from_numpy(store.rows_of(feed.images))]
        assert torch.allclose(stored, relative(teacher.logits(images)), atol=2e-3)


@pytest.mark.parametrize("codec", ["fp16", "affine8", "affine6", "affine4", "topk-2"])
def test_every_codec_declares_what_it_cost(context, teacher, make_spec, feed, tmp_path, codec):
    path = tmp_path / "main.zarr"
    manifest = cache_logits(context, teacher, make_spec(codec=codec), path)
    store = LogitStore.open(path)
    rows = torch.from_numpy(store.rows_of(feed.images))
    divergences = []
    for view in range(COUNT):
        (images,) = feed.batches(view, [np.arange(len(feed.images))])
        p = teacher.logits(images).double().log_softmax(1)
        q = store.view(view)[rows].double().log_softmax(1)
        divergences.append((p.exp() * (p - q)).sum(1))
    expected = float(torch.cat(divergences).mean())
    assert manifest.fidelity().summary()["kl_t1_mean"] == pytest.approx(expected, rel=0.05, abs=1e-9)
    assert manifest.fidelity().samples == COUNT * len(feed.images)


def test_the_loader_pairs_images_with_their_own_logits(store, feed, teacher):
    loader = Loader(feed, Targets(store, feed), batch_size=5, seed=1)
    for epoch in range(COUNT + 1):
        seen = []
        for batch in loader.epoch(epoch):
            assert torch.allclose(batch.teacher_logits, relative(teacher.logits(batch.images)), atol=2e-3)
            assert batch.labels.tolist() == feed.images.labels[batch.rows].tolist()
            seen.extend(batch.rows.tolist())
        assert len(set(seen)) == len(seen) == loader.steps_per_epoch * 5


def test_epochs_cycle_through_the_views_in_a_fresh_order(store, feed):
    loader = Loader(feed, Targets(store, feed), batch_size=5, seed=1)
    assert [loader.view(epoch) for epoch in range(5)] == [0, 1, 2, 0, 1]
    first, again = (next(iter(loader.epoch(epoch))).rows.tolist() for epoch in (0, COUNT))
    assert first != again
    assert first == next(iter(loader.epoch(0))).rows.tolist()


def rows_of(loader: Loader, epoch: int) -> list[list[int]]:
    return [batch.rows.tolist() for batch in loader.epoch(epoch)]


@pytest.mark.parametrize("length", [None, 48, 160])
@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_no_view_is_read_that_the_run_does_not_need(store, feed, monkeypatch, length, epochs):
    """Of a store in a bucket, each view is as many bytes as an epoch needs."""
    read, rendered = [], []
    # Both are asked on this thread; what they are asked for is read on another one.
    for owner, asked in ((Targets, read), (Feed, rendered)):

        def asking(self, view, *rest, asked=asked, prefetch=owner.prefetch):
            asked.append(view)
            return prefetch(self, view, *rest)

        monkeypatch.setattr(owner, "prefetch", asking)
    images = feed.images
    training_set = TrainingSet(images=images, labels=images.labels, length=length or len(images))
    options = {"batch_size": 16, "seed": 5, "training_set": training_set}
    loader = Loader(feed, Targets(store, feed), **options, epochs=epochs)
    seen = [rows_of(loader, epoch) for epoch in range(epochs)]
    steps, lap = epochs * loader.steps_per_epoch, len(images) // 16
    needed = {n % store.n_views for n in range(-(-steps // lap))}
    assert set(read) == set(rendered) == needed
    # The same batches as without the number of epochs, beyond which a loader goes on.
    endless = Loader(feed, Targets(store, feed), **options)
    assert [rows_of(endless, epoch) for epoch in range(epochs)] == seen
    assert rows_of(loader, epochs) == rows_of(endless, epochs)


def test_a_subset_of_the_dumped_samples_may_train(store, feed, teacher):
    chosen = np.arange(len(feed.images))[::-2]
    images = feed.images.subset(chosen)
    part = Feed(images, VIEWS, teacher.card.preprocessing, device=CPU)
    loader = Loader(part, Targets(store, part), batch_size=4, seed=0)
    for batch in loader.epoch(1):
        assert torch.allclose(batch.teacher_logits, relative(teacher.logits(batch.images)), atol=2e-3)


def test_a_feed_gives_the_same_batches_whatever_its_workers(feed, context, teacher):
    rows = consecutive(len(feed.images), 7)
    one = Feed(feed.images, VIEWS, teacher.card.preprocessing, device=CPU, workers=1)
    four = Feed(feed.images, VIEWS, teacher.card.preprocessing, device=CPU, workers=4)
    for mine, theirs in zip(one.batches(2, rows), four.batches(2, rows), strict=True):
        assert torch.equal(mine, theirs)


def test_a_feed_raises_what_a_worker_raised(feed, monkeypatch):
    def broken(*_: object) -> None:
        raise ValueError("this sample")

    monkeypatch.setattr(Feed, "pixels", broken)
    with pytest.raises(ValueError, match="this sample"):
        list(feed.batches(0, consecutive(10, 5)))


def test_agreement_needs_no_teacher(store, context, teacher):
    logits = store.held_out("test", context.data.test)
    metrics = context.evaluate(teacher.network, teacher.card.preprocessing, context.data.test, logits)
    assert metrics.agreement == 1.0
    assert metrics.kl_to_teacher == pytest.approx(0, abs=1e-5)


def test_a_good_store_verifies_and_replays(store, context, teacher):
    audit = verify(Path(str(store.location)))
    assert audit.ok
    assert audit.bad == []
    assert audit.checked == sum(1 for f in Path(str(store.location)).rglob("*") if f.is_file())
    replayed = replay(store, context, teacher, 20)
    assert replayed.ok
    assert replayed.replayed == 20
    assert replayed.replay_max_abs_diff < 5e-3
    assert replayed.replay_kl_mean < 1e-5
    assert list(audit.to_dict()) == [
        *("ok", "checked", "bad", "replayed", "replay_max_abs_diff", "replay_kl_mean")
    ]


def test_replay_finds_logits_of_other_views(context, teacher, make_spec, tmp_path, monkeypatch):
    """A store whose bytes are as written, but were written from the wrong pixels."""
    path = tmp_path / "main.zarr"
    with monkeypatch.context() as patched:
        right = Feed.pixels
        patched.setattr(Feed, "pixels", lambda self, view, rows: right(self, view + 1, rows))
        # A fresh network barely looks at its input: make small differences count.
        cache_logits(context, sharpened(teacher), make_spec(), path)
    assert verify(path).ok
    audit = replay(LogitStore.open(path), context, sharpened(teacher), 30)
    assert not audit.ok
    assert audit.bad


def sharpened(teacher: Teacher) -> Teacher:
    network = build(teacher.card.architecture).eval()
    state = teacher.network.state_dict()
    network.load_state_dict({**state, "head.weight": state["head.weight"] * 50})
    return replace(teacher, network=network)


def test_replay_refuses_another_teacher(store, context, teacher):
    with pytest.raises(MismatchError, match="written by a different teacher"):
        replay(store, context, sharpened(teacher), 4)


def test_verify_names_a_file_that_does_not_belong(context, teacher, make_spec, tmp_path):
    path = tmp_path / "main.zarr"
    cache_logits(context, teacher, make_spec(), path)
    (path / "train" / "stray").write_text("x")
    assert verify(path).bad == ["train/stray is not part of the store"]
