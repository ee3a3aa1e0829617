"""What is shown: all images, or the labelled ones in as many steps."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.core.distributed import SINGLE
from pipeline.core.errors import DataError
from pipeline.loading.feed import Feed
from pipeline.loading.loader import Loader
from pipeline.loading.training_set import TrainingSet
from pipeline.modalities.images.augmentations import Cutmix
from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.modalities.images.spec import ViewSpec
from pipeline.modalities.prepared import PreparedData
from tests.pipeline.training import rank_run

CPU = torch.device("cpu")
EYES = Preprocessing(size=8, mean=(0.5,), std=(0.5,))
FLIPS = ViewSpec(seed=1, flip="random")


@pytest.fixture
def few(tiny_data) -> np.ndarray:
    """Labels of the training split, of which 20 are known."""
    labels = tiny_data.train.labels.copy()
    labels[20:] = -1
    return labels


def _loader(training_set: TrainingSet, batch_size: int = 16, spec: ViewSpec = FLIPS) -> Loader:
    feed = Feed(training_set.images, spec, EYES, device=CPU)
    return Loader(feed, None, batch_size=batch_size, seed=2, n_classes=3, training_set=training_set)


def test_a_lesson_of_all_tells_hidden_labels_as_none(tiny_data, few):
    training_set = TrainingSet.of_all(tiny_data.train, few)
    assert training_set.labelled == 20
    for batch in _loader(training_set).epoch(0):
        assert batch.labels.tolist() == few[batch.rows].tolist()


def test_a_mixed_image_has_no_share_of_a_hidden_label(tiny_data, few):
    loader = _loader(TrainingSet.of_all(tiny_data.train, few), spec=ViewSpec(seed=1, cutmix=Cutmix()))
    sums = torch.cat([batch.labels.sum(1) for batch in loader.epoch(0)])
    rows = np.concatenate([batch.rows for batch in loader.epoch(0)])
    assert (sums[few[rows] == -1] < 1).all()
    assert (sums > 0).any()


def test_a_lesson_of_labelled_images_shows_no_others(tiny_data, few):
    training_set = TrainingSet.of_labelled(tiny_data.train, few)
    batches = list(_loader(training_set).epoch(0))
    assert len(training_set.images) == training_set.length == 20
    assert torch.cat([batch.labels for batch in batches]).min() >= 0
    assert [len(batch.rows) for batch in batches] == [16]


def test_images_without_labels_alone_are_refused(tiny_data):
    nothing = np.full(len(tiny_data.train), -1)
    with pytest.raises(DataError, match=r"none of the \d+ training samples is labelled"):
        TrainingSet.of_labelled(tiny_data.train, nothing)


@pytest.mark.parametrize("batch_size", [5, 16, 64])
def test_a_longer_epoch_has_the_steps_of_so_many_images(tiny_data, few, batch_size):
    whole, count = _loader(TrainingSet.of_all(tiny_data.train), batch_size), len(tiny_data.train)
    loader = _loader(TrainingSet.of_labelled(tiny_data.train, few, length=count), batch_size)
    assert loader.steps_per_epoch == whole.steps_per_epoch
    for epoch in range(2):
        assert len(list(loader.epoch(epoch))) == whole.steps_per_epoch


def test_passes_show_each_image_as_often_and_each_time_in_another_view(tiny_data, few):
    count = len(tiny_data.train)
    loader = _loader(TrainingSet.of_labelled(tiny_data.train, few, length=count), batch_size=10)
    batches = [batch for epoch in range(4) for batch in loader.epoch(epoch)]
    shown = Counter(np.concatenate([batch.rows for batch in batches[: 2 * (len(batches) // 2)]]).tolist())
    assert set(shown.values()) == {len(batches) // 2}
    # Two steps a pass: the same 20 images, flipped anew, in another order.
    passes = [
        {
            row: image
            for batch in batches[start : start + 2]
            for row, image in zip(batch.rows.tolist(), batch.images, strict=True)
        }
        for start in (0, 2)
    ]
    assert any(not torch.equal(passes[0][row], passes[1][row]) for row in range(20))
    assert list(passes[0]) != list(passes[1])


def test_a_long_epoch_goes_on_from_any_step(tiny_data, few):
    loader = _loader(
        TrainingSet.of_labelled(tiny_data.train, few, length=len(tiny_data.train)), batch_size=8
    )
    whole = list(loader.epoch(1))
    for step in range(loader.steps_per_epoch):
        rest = list(loader.epoch(1, first_step=step))
        assert len(rest) == len(whole) - step
        for batch, expected in zip(rest, whole[step:], strict=True):
            assert batch.rows.tolist() == expected.rows.tolist()
            assert torch.equal(batch.images, expected.images)


def test_what_is_shown_is_part_of_a_lessons_identity(tiny_data, few):
    images, others = tiny_data.train, few.copy()
    others[[0, 20]] = -1, tiny_data.train.labels[20]
    lessons = [
        TrainingSet.of_all(images),
        TrainingSet.of_all(images, few),
        TrainingSet.of_all(images, others),
        TrainingSet.of_labelled(images, few),
        TrainingSet.of_labelled(images, few, length=len(images)),
    ]
    identities = [str(training_set.identity()) for training_set in lessons]
    assert len(set(identities)) == len(lessons)
    assert TrainingSet.of_all(images, few.copy()).identity() == lessons[1].identity()


def test_without_a_store_training_shows_labelled_images_alone(
    make_source, prepare_quietly, tmp_path, capsys
):
    source = make_source()
    for row in range(0, 90, 2):
        source.train[row] = replace(source.train[row], label=-1)
    folder = prepare_quietly(source, tmp_path / "prepared")
    rank_run.result(folder, SINGLE, "plain")
    train = PreparedData.open(folder).train
    assert f"training on {len(train) - 45} samples" in capsys.readouterr().err
