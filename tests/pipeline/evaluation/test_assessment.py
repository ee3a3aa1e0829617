"""What metrics.json says of a finished model."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.evaluation.assessment import assess
from pipeline.evaluation.context import predict
from pipeline.tasks.class_figures import compare, fit_temperature


@pytest.fixture(scope="module")
def network(teacher, context):
    """The small teacher, whose logits say something, and too loudly."""
    network = teacher.network
    with torch.no_grad():
        network.head.weight.mul_(20)
    yield network
    with torch.no_grad():
        network.head.weight.div_(20)


def test_an_assessment_is_of_the_test_images_and_calibrated_on_validation(context, teacher, network):
    preprocessing, data = teacher.card.preprocessing, context.data
    logits, validation = (
        predict(network, context.feed(split, None, preprocessing), batch_size=9)
        for split in (data.test, data.validation)
    )
    labels = torch.from_numpy(data.test.labels)
    teacher_logits = logits.roll(1, 0)
    found = assess(context, network, preprocessing, teacher_logits)
    figures = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    for name, value in compare(logits, labels, teacher_logits).to_dict().items():
        assert figures[name] == pytest.approx(value, abs=1e-6)
    temperature = fit_temperature(validation, torch.from_numpy(data.validation.labels))
    assert figures["temperature"] == pytest.approx(temperature, rel=1e-4)
    assert figures["nll_calibrated"] == pytest.approx(compare(logits / temperature, labels).nll, rel=1e-4)
    assert figures["ece_calibrated"] == pytest.approx(compare(logits / temperature, labels).ece, abs=1e-3)
    assert [c["support"] for c in figures["classes"]] == [10, 10, 10]
    wrong = round(30 * (1 - figures["top1"]))
    assert sum(c["count"] for c in figures["confusions"]) == wrong > 0
    assert figures["macs"] > 1e6
    assert found.validation.top1 == compare(validation, torch.from_numpy(data.validation.labels)).top1


def test_without_validation_there_is_no_temperature(context, teacher):
    nothing = context.data.validation.subset(np.zeros(0, np.int64))
    context = replace(context, data=replace(context.data, validation=nothing))
    found = assess(context, teacher.network, teacher.card.preprocessing)
    assert found.validation.top1 is None
    figures = found.to_dict()
    assert (figures["temperature"], figures["nll_calibrated"], figures["ece_calibrated"]) == (None,) * 3
    assert figures["top1"] is not None


def test_unlabelled_test_images_have_no_classes(context, teacher):
    unlabelled = replace(context.data.test, labels=np.full(30, -1))
    context = replace(context, data=replace(context.data, test=unlabelled))
    figures = assess(context, teacher.network, teacher.card.preprocessing).to_dict()
    assert (figures["classes"], figures["confusions"], figures["top1"]) == ([], [], None)
    assert figures["temperature"] is not None
