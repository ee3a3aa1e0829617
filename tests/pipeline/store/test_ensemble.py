"""Several stores read as one: the average of their soft labels, and never of other views."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.codecs.blend import Blend
from pipeline.core.errors import (
    ConfigError,
    CorruptStoreError,
    IncompleteStoreError,
    MismatchError,
    StoreError,
)
from pipeline.core.hashing import spec_digest
from pipeline.dump.average import write_ensemble
from pipeline.dump.run import cache_logits
from pipeline.dump.spec import splits_of
from pipeline.loading.feed import Feed
from pipeline.loading.loader import Loader
from pipeline.loading.replay import ReplayDataset
from pipeline.loading.targets import Targets
from pipeline.modalities.images.augmentations import Cutmix, PadCrop
from pipeline.modalities.images.spec import ViewSpec
from pipeline.modalities.table import preprocessing_of, views_of
from pipeline.models.architecture import build
from pipeline.models.teacher import Teacher
from pipeline.store.ensemble import Ensemble
from pipeline.store.opening import open_logits
from pipeline.store.reader import LogitStore
from pipeline.store.upgrade import upgrade
from tests.pipeline.store.older import to_schema_3

WEIGHTS = (1.0, 3.0)


@pytest.fixture(scope="module")
def other_teacher(teacher) -> Teacher:
    torch.manual_seed(5)
    return Teacher(
        name="u", network=build(teacher.card.architecture).eval(), card=teacher.card, precision="fp32"
    )


@pytest.fixture(scope="module")
def made(context, teacher, other_teacher, make_spec, tmp_path_factory) -> Path:
    """A folder with two dumps of the same views, of unlike codecs and shards."""
    folder = tmp_path_factory.mktemp("ensemble")
    cache_logits(context, teacher, make_spec(), folder / "one.zarr")
    cache_logits(context, other_teacher, make_spec(codec="affine8", shard_rows=24), folder / "two.zarr")
    return folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "logits"))


def _write(
    folder: Path, context, average: str = "probabilities", names=("one.zarr", "two.zarr")
) -> Ensemble:
    blend = Blend(average=average, weights=WEIGHTS)
    return write_ensemble(folder / "both.zarr", names, blend, context)


def _softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_soft_labels_are_the_weighted_mean(folder, context, average):
    _write(folder, context, average)
    stores = [LogitStore.open(folder / name) for name in ("one.zarr", "two.zarr")]
    a, b = (store.view(1).double().numpy() for store in stores)
    ensemble = open_logits(folder / "both.zarr")
    assert isinstance(ensemble, Ensemble)
    seen = _softmax(ensemble.view(1).double().numpy())
    if average == "probabilities":
        expected = 0.25 * _softmax(a) + 0.75 * _softmax(b)
    else:
        expected = _softmax(0.25 * a + 0.75 * b)
    np.testing.assert_allclose(seen, expected, atol=1e-6)


def test_weights_stay_with_their_members_whatever_the_order_of_the_names(folder, context):
    told = _write(folder, context, names=("two.zarr", "one.zarr"))
    read = open_logits(folder / "both.zarr")
    assert torch.equal(read.view(0), told.view(0))
    one, two = (
        LogitStore.open(folder / name).view(0).double().numpy() for name in ("one.zarr", "two.zarr")
    )
    expected = 0.75 * _softmax(one) + 0.25 * _softmax(two)
    np.testing.assert_allclose(_softmax(read.view(0).double().numpy()), expected, atol=1e-6)


def test_a_loader_gives_the_mean_of_both(folder, context):
    ensemble = _write(folder, context)
    images = context.data.train
    feed = Feed(images, views_of(ensemble), preprocessing_of(ensemble), device=torch.device("cpu"))
    loader = Loader(feed, Targets(ensemble, feed), batch_size=16, seed=3)
    rows = ensemble.rows_of(images)
    expected = ensemble.view(loader.view(1))
    for batch in loader.epoch(1):
        torch.testing.assert_close(batch.teacher_logits, expected[rows[batch.rows]])


def test_extreme_logits_stay_numbers():
    far = torch.tensor([[0.0, -60000.0, -3.0], [0.0, 0.0, -60000.0]])
    for average in ("probabilities", "logits"):
        blended = Blend(average=average, weights=(1, 1)).blend([far, far.flip(1)])
        assert blended.isfinite().all()
        assert (blended.amax(1) == 0).all()


def test_held_out_logits_and_their_accuracy_are_of_the_mean(folder, context):
    ensemble = _write(folder, context)
    logits = ensemble.held_out("test", context.data.test)
    assert logits is not None
    hits = logits.argmax(1).numpy() == context.data.test.labels
    assert Ensemble.open(folder / "both.zarr").teacher_top1 == pytest.approx(hits.mean())


def test_other_views_are_refused(folder, context, teacher, make_spec):
    views = ViewSpec(seed=10, pad_crop=PadCrop(padding=1))
    cache_logits(context, teacher, make_spec(views=views), folder / "three.zarr")
    with pytest.raises(MismatchError, match=r"one\.zarr and .*three\.zarr have different views"):
        _write(folder, context, names=("one.zarr", "three.zarr"))
    assert not (folder / "both.zarr").exists()


def test_images_mixed_in_other_blocks_are_refused(folder, context, teacher, other_teacher, make_spec):
    views = ViewSpec(seed=10, cutmix=Cutmix())
    cache_logits(context, teacher, make_spec(views=views), folder / "three.zarr")
    cache_logits(context, other_teacher, make_spec(views=views, shard_rows=24), folder / "four.zarr")
    with pytest.raises(MismatchError, match="different groups of mixed samples"):
        _write(folder, context, names=("three.zarr", "four.zarr"))


def test_a_member_that_was_made_anew_is_noticed(folder, context, other_teacher, make_spec):
    _write(folder, context)
    shutil.rmtree(folder / "one.zarr")
    with pytest.raises(IncompleteStoreError):
        Ensemble.open(folder / "both.zarr")
    cache_logits(context, other_teacher, make_spec(), folder / "one.zarr")
    with pytest.raises(
        MismatchError,
        match=r"refers to an older one\.zarr.* pipeline cache-logits both \(or, ",
    ):
        Ensemble.open(folder / "both.zarr")
    _write(folder, context)
    assert Ensemble.open(folder / "both.zarr").n_views == 3


def test_an_edited_manifest_is_noticed(folder, context):
    _write(folder, context)
    manifest = folder / "both.zarr" / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "weights": [1.0, 1.0]}))
    with pytest.raises(CorruptStoreError, match="changed since it was written"):
        open_logits(folder / "both.zarr")


def _of_schema(folder: Path, schema: object) -> None:
    """Give an ensemble's manifest another schema, and the digest that fits."""
    manifest = folder / "both.zarr" / "manifest.json"
    content = {**json.loads(manifest.read_text()), "schema": schema}
    del content["digest"]
    manifest.write_text(json.dumps({**content, "digest": spec_digest(content)}))


@pytest.mark.parametrize("schema", [3, 4])
def test_manifests_of_older_versions_are_read(folder, context, schema):
    written = _write(folder, context)
    _of_schema(folder, schema)
    assert torch.equal(open_logits(folder / "both.zarr").view(0), written.view(0))


@pytest.mark.parametrize("schema", [2, 5, True, "3"])
def test_manifests_of_another_schema_are_refused(folder, context, schema):
    _write(folder, context)
    _of_schema(folder, schema)
    with pytest.raises(CorruptStoreError, match=r"not an ensemble's manifest .*this program reads 3 and 4"):
        open_logits(folder / "both.zarr")


def test_an_ensemble_of_older_stores_is_made_again_after_their_upgrade(folder, context):
    for name in ("one.zarr", "two.zarr"):
        to_schema_3(folder / name, splits_of(context.data))
    _write(folder, context)
    before = open_logits(folder / "both.zarr").view(0)
    upgrade(folder / "one.zarr", splits_of(context.data))
    with pytest.raises(
        MismatchError,
        match=r"refers to an older one\.zarr.* pipeline cache-logits both \(or, ",
    ):
        open_logits(folder / "both.zarr")
    _write(folder, context)
    assert torch.equal(open_logits(folder / "both.zarr").view(0), before)


def test_a_store_of_logits_is_not_overwritten(folder, context):
    with pytest.raises(StoreError, match="is a logit store"):
        write_ensemble(folder / "two.zarr", ["one.zarr", "two.zarr"], Blend(weights=WEIGHTS), context)


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.0), (1.0, -2.0), (1.0, float("inf"))])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(ConfigError, match="expected two or more, each more than 0"):
        Blend(weights=weights)


def test_weights_without_a_finite_sum_are_refused():
    """They would become shares of 0, and the labels NaN."""
    with pytest.raises(ConfigError, match="their sum is too large"):
        Blend(weights=(1e308, 1e308))


def test_other_loops_read_it_too(folder, context):
    ensemble = _write(folder, context)
    dataset = pickle.loads(pickle.dumps(ReplayDataset(folder / "both.zarr", context.data)))
    dataset.set_view(2)
    _, label, logits = dataset[7]
    assert label == context.data.train.labels[7]
    torch.testing.assert_close(logits, ensemble.view(2)[ensemble.rows_of(context.data.train)[7]])
