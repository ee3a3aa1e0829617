"""Drift: readers render a store's samples again, and refuse pixels that the teacher did not see."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.core.errors import MismatchError
from pipeline.dump.run import cache_logits
from pipeline.dump.verify import replay
from pipeline.loading import drift as drift_module
from pipeline.loading.drift import Sighting, measure_drift, require_no_drift, spread_out, store_sightings
from pipeline.loading.feed import Feed
from pipeline.loading.loader import Loader
from pipeline.loading.replay import ReplayDataset
from pipeline.loading.targets import Targets
from pipeline.modalities.images.augmentations import Cutmix, RandomResizedCrop
from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.modalities.images.rendering import cpu
from pipeline.modalities.images.spec import ViewSpec
from pipeline.modalities.table import mixed_blocks, views_of
from pipeline.store.lock import Slice
from pipeline.store.reader import LogitStore
from pipeline.store.records import RenderChecksums

MIXED = ViewSpec(seed=3, random_resized_crop=RandomResizedCrop(), flip="random", cutmix=Cutmix())


@pytest.fixture(scope="module", params=["plain", "mixed"])
def store(request, context, teacher, make_spec, tmp_path_factory) -> LogitStore:
    path = tmp_path_factory.mktemp("drift") / "main.zarr"
    spec = make_spec() if request.param == "plain" else make_spec(views=MIXED)
    cache_logits(context, teacher, spec, path)
    return LogitStore.open(path)


@pytest.fixture
def _brighter(monkeypatch):
    """Rendering that comes out one level brighter in one corner, as another kernel might."""
    right = cpu.crop_and_resize

    def wrong(*arguments):
        pixels = right(*arguments)
        pixels[:, 0, 0] = torch.where(pixels[:, 0, 0] < 255, pixels[:, 0, 0] + 1, 254)
        return pixels

    monkeypatch.setattr(cpu, "crop_and_resize", wrong)


def _feed(store: LogitStore, context, teacher, images=None) -> Feed:
    images = context.data.train if images is None else images
    blocks = mixed_blocks(store, images)
    return context.feed(images, views_of(store), teacher.card.preprocessing, blocks)


def test_the_checksums_are_of_what_the_teacher_saw(store, context, teacher):
    feed = _feed(store, context, teacher)
    seen = store_sightings(store, "train", context.data.train)
    drift = measure_drift(feed, seen)
    # 68 training images in shards of 16 rows, three views.
    assert drift.checked == 3 * 68 == sum(len(sighting.rows) for sighting in seen)
    assert (drift.differing, drift.first) == (0, None)


def test_held_out_images_have_checksums_too(store, context, teacher):
    feed = context.feed(context.data.test, None, teacher.card.preprocessing)
    drift = measure_drift(feed, store_sightings(store, "test", context.data.test))
    assert (drift.checked, drift.differing) == (len(context.data.test), 0)


@pytest.mark.usefixtures("_brighter")
def test_other_pixels_are_refused_with_the_sample_the_versions_and_the_difference(store, context, teacher):
    feed = _feed(store, context, teacher)
    with pytest.raises(MismatchError) as refusal:
        require_no_drift(store, feed)
    text = str(refusal.value)
    assert re.search(
        r"204 of 204 checksummed samples render differently .* first 'train/\d+' in view 0", text
    )
    assert "their 4 stored values per sample differ by" in text
    assert re.search(r"dumped with decoder none, torch \S+, torchvision \S+, as here", text)
    assert "--allow-drift" in text


def test_the_measured_difference_is_that_of_the_kept_pixels(store, context, teacher, monkeypatch):
    feed = _feed(store, context, teacher)
    right = Feed.rendered

    def brighter(self, requests):
        for pixels in right(self, requests):
            yield torch.where(pixels < 253, pixels + 3, pixels - 3)

    monkeypatch.setattr(Feed, "rendered", brighter)
    drift = measure_drift(feed, store_sightings(store, "train", context.data.train))
    assert drift.differing == drift.checked
    assert (drift.mean_difference, drift.largest_difference) == (3.0, 3)


@pytest.mark.usefixtures("_brighter")
def test_every_reader_refuses(store, context, teacher):
    with pytest.raises(MismatchError, match="checksummed samples render differently"):
        Targets(store, _feed(store, context, teacher))
    with pytest.raises(MismatchError, match="checksummed samples render differently"):
        ReplayDataset(store, context.data)
    audit = replay(store, context, teacher, 4)
    assert not audit.ok
    assert "checksummed samples render differently" in audit.bad[0]


@pytest.mark.usefixtures("_brighter")
def test_a_reader_that_is_told_to_goes_on_and_says_how_far_off_it_is(store, context, teacher, capsys):
    allowed = LogitStore(store.location, store.manifest, allow_drift=True)
    feed = _feed(allowed, context, teacher)
    loader = Loader(feed, Targets(allowed, feed), batch_size=8, seed=0, n_classes=3)
    assert len(list(loader.epoch(0))) == loader.steps_per_epoch
    assert "204 of 204 checksummed samples render differently" in capsys.readouterr().err
    audit = replay(allowed, context, teacher, 8)
    assert audit.ok
    assert audit.replay_kl_mean is not None
    assert audit.drift is not None
    assert audit.drift.differing == 204
    assert "drift" not in audit.to_dict()


def test_other_eyes_of_the_student_make_no_difference(store, context, teacher):
    preprocessing = Preprocessing(size=20, mean=(0.5,), std=(0.5,))
    feed = context.feed(
        context.data.train, views_of(store), preprocessing, mixed_blocks(store, context.data.train)
    )
    require_no_drift(store, feed)


def test_a_subset_is_checked_by_its_own_checksums(context, teacher, make_spec, tmp_path):
    path = tmp_path / "main.zarr"
    cache_logits(context, teacher, make_spec(), path)
    images = context.data.train.subset(np.arange(len(context.data.train))[5::3])
    store = LogitStore.open(path)
    drift = measure_drift(_feed(store, context, teacher, images), store_sightings(store, "train", images))
    assert drift.checked == 3 * len(images)
    assert drift.differing == 0


def test_a_dump_does_not_go_on_with_other_pixels(context, teacher, make_spec, tmp_path, request):
    path = tmp_path / "main.zarr"
    cache_logits(context, teacher, make_spec(), path, part=Slice(0, 3), completes=False)
    request.getfixturevalue("_brighter")
    with pytest.raises(MismatchError, match="checksummed samples render differently"):
        cache_logits(context, teacher, make_spec(), path)
    assert not (path / "manifest.json").exists()


def test_images_of_another_decoder_are_refused_by_its_name(store, context):
    changed = context.data.train.content_digests.copy()
    changed[7] ^= np.uint64(1)
    form = replace(context.data.train.form, decoder="torchvision 9.9")
    images = replace(context.data.train, contents=changed, form=form)
    with pytest.raises(
        MismatchError, match=r"different content in the store, decoded by none, here by torchvision 9\.9"
    ):
        store.rows_of(images)
    allowed = LogitStore(store.location, store.manifest, allow_drift=True)
    assert np.array_equal(allowed.rows_of(images), store.rows_of(context.data.train))


# Many shards


@pytest.mark.parametrize(("most", "shards", "each"), [(30, 15, 2), (5, 5, 1), (1000, 15, None)])
def test_checksums_beyond_a_number_are_spread_over_the_shards(
    store, context, monkeypatch, most, shards, each
):
    monkeypatch.setattr(drift_module, "MOST_CHECKED", most)
    seen = store_sightings(store, "train", context.data.train, seed=3)
    assert len(seen) == shards
    assert each is None or {len(sighting.rows) for sighting in seen} == {each}
    again, other = (store_sightings(store, "train", context.data.train, seed=seed) for seed in (3, 4))
    chosen, same, different = (
        [(sighting.view, *sighting.rows.tolist()) for sighting in some] for some in (seen, again, other)
    )
    assert chosen == same
    assert each is None or chosen != different


@pytest.mark.parametrize("trials", [15, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("at_once", [1, 64])
def test_a_drift_of_one_sample_in_a_hundred_is_always_seen(at_once, trials):
    rows, shards = 64, 2000
    checksums = RenderChecksums(tuple(range(rows)), np.zeros((rows, 1), np.uint8))
    seen = [Sighting(0, np.arange(rows) + rows * shard, checksums) for shard in range(shards)]
    generator = np.random.default_rng(0)
    # Single samples, or whole shards as of a machine with another library.
    drifted = (generator.random(rows * shards // at_once) < 0.01).repeat(at_once)
    for seed in range(trials):
        checked = np.concatenate([sighting.rows for sighting in spread_out(seen, seed)])
        assert len(checked) <= drift_module.MOST_CHECKED
        assert drifted[checked].any()
