"""The plain dataset: aligned in every worker, in every view, and in other people's loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pipeline.dump.run import cache_logits
from pipeline.loading.loader import Loader
from pipeline.loading.replay import ReplayDataset
from pipeline.loading.targets import Targets
from pipeline.modalities.images.augmentations import Cutmix, Mixup
from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.modalities.images.spec import ViewSpec
from pipeline.modalities.table import mixed_blocks, views_of
from pipeline.store.reader import LogitStore
from tests.documents import ROOT, block_with

DOCUMENT = ROOT / "pipeline/loading/README.md"
MIXED = ViewSpec(seed=3, flip="random", mixup=Mixup(probability=0.5), cutmix=Cutmix(probability=0.5))


@pytest.fixture(scope="module")
def store(context, teacher, make_spec, tmp_path_factory) -> LogitStore:
    path = tmp_path_factory.mktemp("replay") / "main.zarr"
    cache_logits(context, teacher, make_spec(), path)
    return LogitStore.open(path)


@pytest.fixture
def dataset(store, tiny_folder) -> ReplayDataset:
    return ReplayDataset(str(store.location), tiny_folder)


def assert_aligned(teacher, images: torch.Tensor, logits: torch.Tensor) -> None:
    """The logits are the teacher's of these very images."""
    fresh = teacher.logits(images)
    assert torch.allclose(logits, fresh - fresh.amax(1, keepdim=True), atol=2e-3)


def seen_in(loader: DataLoader, teacher) -> torch.Tensor:
    """Go through a loader and return the images, in the order of their bytes."""
    batches = []
    for images, labels, logits in loader:
        assert labels.dtype == torch.int64
        assert_aligned(teacher, images, logits)
        batches.append(images)
    images = torch.cat(batches).flatten(1)
    return images[torch.from_numpy(np.lexsort(images.numpy().T))]


@pytest.mark.parametrize(
    "workers",
    [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}],
    ids=["none", "forked", "persistent"],
)
def test_images_and_logits_belong_together_in_every_view(dataset, teacher, workers):
    loader = DataLoader(dataset, 8, shuffle=True, **workers)
    views = []
    for view in (0, 2, 1):
        dataset.set_view(view)
        views.append(seen_in(loader, teacher))
        assert len(views[-1]) == len(dataset)
    assert not torch.equal(views[0], views[1])
    assert not torch.equal(views[1], views[2])


@pytest.mark.parametrize("start", ["spawn", "forkserver"])
def test_workers_that_do_not_fork_see_the_same(dataset, teacher, start):
    forked = seen_in(DataLoader(dataset, 8), teacher)
    assert torch.equal(
        forked, seen_in(DataLoader(dataset, 8, num_workers=1, multiprocessing_context=start), teacher)
    )


def test_the_view_is_shown_as_the_loader_shows_it(dataset, store, context, teacher):
    feed = context.feed(context.data.train, views_of(store), teacher.card.preprocessing)
    loader = Loader(feed, Targets(store, feed), batch_size=10, seed=0)
    dataset.set_view(1)
    for batch in loader.epoch(1):
        for image, logits, row in zip(batch.images, batch.teacher_logits, batch.rows, strict=True):
            mine = dataset[row]
            assert torch.equal(mine[0], image)
            assert torch.equal(mine[2], logits)


def test_labels_of_mixed_images_are_shares(context, teacher, make_spec, tmp_path):
    cache_logits(context, teacher, make_spec(views=MIXED), tmp_path / "mixed.zarr")
    store = LogitStore.open(tmp_path / "mixed.zarr")
    dataset = ReplayDataset(store, context.data)
    images, labels, logits = (
        torch.stack(column) for column in zip(*(dataset[row] for row in range(len(dataset))), strict=True)
    )
    assert_aligned(teacher, images, logits)
    assert labels.shape == (len(dataset), 3)
    assert torch.allclose(labels.sum(1), torch.ones(len(dataset)))
    assert ((labels > 0).sum(1) == 2).any()
    feed = context.feed(
        context.data.train, MIXED, teacher.card.preprocessing, mixed_blocks(store, context.data.train)
    )
    loader = Loader(feed, Targets(store, feed), batch_size=8, seed=0, n_classes=3)
    for batch in loader.epoch(0):
        assert torch.equal(labels[torch.from_numpy(batch.rows)], batch.labels)


def test_a_student_may_have_other_eyes(store, context, teacher):
    preprocessing = Preprocessing(size=20, mean=(0.5,) * 3, std=(0.5,) * 3)
    image, _, logits = ReplayDataset(store, context.data, preprocessing)[3]
    assert image.shape == (3, 20, 20)
    assert torch.equal(logits, ReplayDataset(store, context.data)[3][2])


def test_a_dataset_says_what_it_is(dataset, store):
    dataset.set_view(1)
    told = f"{store.location} ({store.codec.name}): {len(dataset)} samples, view 1 of {store.n_views}"
    assert repr(dataset) == f"<ReplayDataset {told}>"


def test_a_view_that_there_is_not_is_refused(dataset):
    with pytest.raises(IndexError, match="3 views"):
        dataset.set_view(3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["timm", "lightning"])
def test_the_readmes_loop_trains(name, store, tiny_folder, tmp_path, monkeypatch):
    pytest.importorskip(name)
    code = block_with(DOCUMENT, f"import {name}")
    for written, here in (
        ("data/logits/main.zarr", str(store.location)),
        ("data/prepared", str(tiny_folder)),
        ("128,", "16,"),
        ("epochs = 2", "epochs = 4"),
    ):
        assert written in code
        code = code.replace(written, here)
    shown = []
    right = ReplayDataset.set_view
    monkeypatch.setattr(
        ReplayDataset, "set_view", lambda self, view: (shown.append(view), right(self, view))
    )
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert shown[-4:] == [0, 1, 2, 0]
