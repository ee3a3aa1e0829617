"""The estimate of a codec's cost under another head, against the teacher's own features."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.codecs.head import Head
from pipeline.dump.reencode import recode
from pipeline.dump.run import cache_logits
from pipeline.modalities.table import preprocessing_of, views_of
from pipeline.store.reader import LogitStore
from pipeline.tasks.classes import CLASSES


@pytest.fixture(scope="module")
def opened(context, decided_teacher, make_spec, tmp_path_factory) -> LogitStore:
    path = tmp_path_factory.mktemp("recode") / "main.zarr"
    cache_logits(context, decided_teacher, make_spec("features", 1e-2), path)
    return LogitStore.open(path)


def test_an_estimate_is_near_the_truth_and_the_same_each_time(opened, context, decided_teacher):
    images = context.data.train
    feed = context.feed(images, views_of(opened), preprocessing_of(opened))
    truth = decided_teacher.output(next(feed.batches(0, [np.arange(len(images))]))).require_features()
    arrays = {name: torch.from_numpy(values) for name, values in opened.encoded_view(0).items()}
    assert opened.codec.features is not None
    stored = opened.codec.features.decode(arrays)[torch.from_numpy(opened.rows_of(images))]
    weight = opened.codec.state["weight"]
    groups = Head(
        weight=weight,
        bias=opened.codec.state["bias"],
        classes=("one", "others"),
        groups=torch.tensor([0, 1, 1]),
    )
    found = recode(opened, CLASSES, of_outputs=False)
    estimate = found.fidelity(groups, CLASSES).mean("kl_t1")
    real = float(CLASSES.diverge(groups.outputs(truth), groups.outputs(stored))[:, 0].mean())
    assert real > 0
    assert 0.2 < estimate / real < 5
    again = recode(opened, CLASSES, of_outputs=False)
    assert torch.equal(again.before, found.before)
    assert found.scale >= 1


def test_the_teachers_own_head_has_at_least_the_recorded_cost(opened):
    state = opened.codec.state
    own = Head(weight=state["weight"], bias=state["bias"], classes=("a", "b", "c"))
    found = recode(opened, CLASSES, of_outputs=False).fidelity(own, CLASSES)
    recorded = opened.manifest.fidelity()
    assert found.mean("kl_t1") >= 0.99 * recorded.mean("kl_t1")
