"""The resident path: the very batches of the path that renders in threads, and no more work than needed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.dump.run import cache_logits
from pipeline.loading.feed import Feed
from pipeline.loading.loader import Loader
from pipeline.loading.targets import Targets
from pipeline.modalities.images.augmentations import Cutmix, Mixup, PadCrop, RandAugment, RandomErasing
from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.modalities.images.rendering.device import DeviceRenderer
from pipeline.modalities.images.rendering.render import CpuRenderer, make_renderer
from pipeline.modalities.images.rendering.views import ImageViews
from pipeline.modalities.images.spec import ViewSpec
from pipeline.modalities.table import mixed_blocks, views_of
from pipeline.store.reader import LogitStore

CPU = torch.device("cpu")
SPECS = {
    "plain": ViewSpec(seed=2, pad_crop=PadCrop(padding=2), flip="random"),
    "everything": ViewSpec(
        seed=2,
        pad_crop=PadCrop(padding=2),
        flip="alternating",
        rand_augment=RandAugment(),
        random_erasing=RandomErasing(),
        mixup=Mixup(probability=0.5),
        cutmix=Cutmix(probability=0.5),
    ),
}


@pytest.fixture(scope="module", params=SPECS)
def store(request, context, teacher, make_spec, tmp_path_factory) -> LogitStore:
    path = tmp_path_factory.mktemp("resident") / "main.zarr"
    cache_logits(context, teacher, make_spec(views=SPECS[request.param]), path)
    return LogitStore.open(path)


def _loader(store, context, *, on_device: bool, size: int = 12, batch_size: int = 12) -> Loader:
    images = context.data.train
    preprocessing = Preprocessing(size=size, mean=(0.3,), std=(0.2,))
    feed = Feed(
        images,
        views_of(store),
        preprocessing,
        device=CPU,
        blocks=mixed_blocks(store, images),
        on_device=on_device,
    )
    return Loader(feed, Targets(store, feed), batch_size=batch_size, seed=4, n_classes=3)


@pytest.mark.parametrize("size", [8, 12], ids=["cut", "resized"])
def test_both_paths_give_the_same_batches_in_every_epoch(store, context, size):
    here, there = (_loader(store, context, on_device=on_device, size=size) for on_device in (False, True))
    for epoch in (0, 1, 3, 2):
        for one, other in zip(here.epoch(epoch), there.epoch(epoch), strict=True):
            assert np.array_equal(one.rows, other.rows)
            for name in ("images", "labels", "teacher_logits"):
                assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_an_epoch_that_begins_at_a_step_has_the_rest_of_the_batches(store, context):
    loader = _loader(store, context, on_device=True)
    whole, rest = (list(loader.epoch(1, first_step=step)) for step in (0, 3))
    assert len(rest) == len(whole) - 3 > 0
    for one, other in zip(whole[3:], rest, strict=True):
        assert torch.equal(one.images, other.images)


def wait_for_what_is_ahead(loader) -> None:
    """Wait until the views that a thread draws ahead are drawn."""
    loader._feed._resident._pool.submit(lambda: None).result()


def test_a_view_is_drawn_once_and_ahead_of_its_epoch(store, context, monkeypatch):
    loader = _loader(store, context, on_device=True)
    drawn = []
    right = ImageViews.parameters

    def recorded(self, view, rows):
        drawn.append((view, len(rows)))
        return right(self, view, rows)

    monkeypatch.setattr(ImageViews, "parameters", recorded)
    count = len(context.data.train)
    batches = loader.epoch(0)
    next(batches)
    wait_for_what_is_ahead(loader)
    assert drawn == [(0, count), (1, count)]
    list(batches)
    list(loader.epoch(1))
    wait_for_what_is_ahead(loader)
    assert drawn == [(0, count), (1, count), (2, count)]


def test_batches_of_whole_groups_render_no_image_twice(store, context, monkeypatch):
    rendered = []
    right = DeviceRenderer.render_resident

    def recorded(self, rows, parameters):
        rendered.append(len(rows))
        return right(self, rows, parameters)

    loader = _loader(store, context, on_device=True, batch_size=8)
    monkeypatch.setattr(DeviceRenderer, "render_resident", recorded)
    list(loader.epoch(0))
    # Blocks of 16 rows: groups of four throughout, but for the last block's.
    assert rendered[:-1] == [8] * (loader.steps_per_epoch - 1)


@pytest.mark.parametrize(("free", "fits"), [(20_000, True), (8_000, False)])
def test_images_that_take_most_of_the_device_are_rendered_on_the_cpu_and_it_is_said(
    context, monkeypatch, capsys, free, fits
):
    """68 images of 8 x 8 pixels are 4,352 bytes."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 0))
    monkeypatch.setattr(DeviceRenderer, "__init__", lambda *_: None)
    renderer = make_renderer(context.data.train, 12, torch.device("cuda"), on_device=None)
    assert isinstance(renderer, DeviceRenderer if fits else CpuRenderer)
    assert ("rendering on the CPU" in capsys.readouterr().err) is not fits


def test_a_feed_says_which_way_its_batches_come(store, context):
    here, there = (_loader(store, context, on_device=on_device)._feed.path for on_device in (False, True))
    assert "rendered by 1 thread ahead of cpu" in here
    assert "resident on cpu" in there


def test_odd_groups_are_shown_in_every_epoch_and_in_an_order_of_its_own(store, context):
    """68 samples in blocks of 16 leave 4 in the last; batches of 12 leave 8 of them out."""
    loader = _loader(store, context, on_device=False)
    orders = [np.concatenate([batch.rows for batch in loader.epoch(epoch)]) for epoch in (0, 3, 6)]
    assert not np.array_equal(orders[0], orders[1])
    for order in orders:
        assert len(set(order.tolist())) == 60
    if loader._feed.mixes:
        _, odd = loader._feed.pairing.groups(0)
        assert all(set(group.tolist()) <= set(order.tolist()) for group in odd for order in orders)
