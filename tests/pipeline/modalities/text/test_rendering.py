"""Rendered texts: the same for any batch, thread and queue, trimmed to a batch's longest, and in batches "
"by length."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline import Feed, Loader
from pipeline.core.errors import ConfigError
from pipeline.modalities.text.preprocessing import TextPreprocessing
from pipeline.modalities.text.tokenizers import Bytes
from pipeline.modalities.text.words import text_of
from pipeline.store.records import RenderChecksums
from tests.pipeline.modalities.text.test_operations import EVERYTHING
from tests.pipeline.modalities.text.texts import TEXTS, split_of

CPU = torch.device("cpu")
LENGTHS = np.random.default_rng(0).geometric(0.03, 500).clip(1, 200)
MANY = split_of([f"{row} " + "x" * int(length) for row, length in enumerate(LENGTHS)])


def feed_of(samples, spec=EVERYTHING, max_length=64, **settings) -> Feed:
    return Feed(
        samples, spec, TextPreprocessing(tokenizer=Bytes(), max_length=max_length), device=CPU, **settings
    )


def test_batches_threads_and_other_models_see_the_same_texts():
    split = split_of(TEXTS)
    rows = np.arange(len(split))
    feed = feed_of(split)
    whole = feed.pixels(3, rows)
    for workers, sizes in ((1, 5), (3, 2)):
        batches = [rows[start : start + sizes] for start in range(0, len(rows), sizes)]
        found = [batch.clone() for batch in feed_of(split, workers=workers).batches(3, batches)]
        for batch, some in zip(found, batches, strict=True):
            assert torch.equal(batch, whole[some, : batch.shape[1]].long())
            assert not whole[some, batch.shape[1] :].any()
    other = feed.seen_by(TextPreprocessing(tokenizer=Bytes(), max_length=16))
    assert [a.tolist() for a in other.evidence(3, rows)] == [a.tolist() for a in feed.evidence(3, rows)]
    assert torch.equal(other.pixels(3, rows), whole[:, :16])


def test_evidence_is_the_text_whatever_the_tokenizer_cuts():
    split = split_of(TEXTS)
    shown = feed_of(split, None, max_length=8).evidence(0, np.arange(len(split)))
    assert [text_of(one) for one in shown] == [text.strip() for text in TEXTS]
    checksums = RenderChecksums.of(shown)
    assert (len(checksums.crcs), checksums.values.shape, checksums.values.dtype) == (
        len(TEXTS),
        (len(TEXTS), 4),
        np.uint8,
    )


def test_a_batch_is_as_long_as_its_longest_text_in_steps_of_eight():
    split = split_of(["a" * 3, "b" * 9, "c" * 100])
    feed = feed_of(split, None)
    lengths = [
        batch.shape[1] for batch in feed.batches(0, [np.array(rows) for rows in ([0], [0, 1], [1, 2])])
    ]
    assert lengths == [8, 16, 64]
    assert feed.pixels(0, np.array([0])).shape == (1, 64)


def test_an_epoch_has_every_text_once_in_batches_of_similar_length():
    loader = Loader(feed_of(MANY, max_length=256), None, batch_size=10, seed=1)
    epochs = [[batch.rows for batch in loader.epoch(epoch)] for epoch in (0, 1, 0)]
    assert all(sorted(np.concatenate(rows).tolist()) == list(range(500)) for rows in epochs)
    assert [rows.tolist() for rows in epochs[0]] == [rows.tolist() for rows in epochs[2]]
    assert [rows.tolist() for rows in epochs[0]] != [rows.tolist() for rows in epochs[1]]
    padded, spread = (
        sum(len(rows) * MANY.shapes[rows].max() for rows in batches) / MANY.shapes.sum()
        for batches in (epochs[0], np.random.default_rng(0).permutation(500).reshape(50, 10))
    )
    assert padded < 1.3
    assert spread > 2
    # Long batches are not the last ones, nor the first ones.
    means = [MANY.shapes[rows].mean() for rows in epochs[0]]
    assert abs(np.corrcoef(means, np.arange(50))[0, 1]) < 0.4


def test_rows_of_a_shard_are_arranged_by_length():
    feed = feed_of(MANY)
    rows = np.arange(100, 200)
    order = feed.arrange(0, rows)
    assert sorted(order.tolist()) == list(range(100))
    assert (np.diff(MANY.shapes[rows[order], 0]) >= 0).all()


def test_texts_are_not_rendered_on_a_device():
    with pytest.raises(ConfigError, match="texts are rendered on the CPU"):
        feed_of(MANY, on_device=True)


@pytest.mark.cuda
def test_a_gpu_gets_the_same_trimmed_batches():
    rows = [np.array([0, 1]), np.arange(2, 60), np.array([7])]
    there = Feed(MANY, EVERYTHING, feed_of(MANY).preprocessing, device=torch.device("cuda"), workers=3)
    for ours, theirs in zip(feed_of(MANY).batches(2, rows), there.batches(2, rows), strict=True):
        assert theirs.device.type == "cuda"
        assert torch.equal(ours, theirs.cpu())
