"""Codecs, fidelity and records under another rule than that of a softmax."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.codecs import TeacherOutput, find_codec
from pipeline.codecs.fidelity import Fidelity
from pipeline.codecs.rule import SOFTMAX, Measures, histogram_key, sort_keys
from pipeline.core.forms import require_form
from pipeline.store.wire import FidelityForm
from pipeline.tasks.classes import CLASSES


class Sigmoid:
    """Nothing may be dropped: each output is a probability of its own."""

    measures = Measures(divergences=("bernoulli",), agreement="labels")

    def kept(self, outputs_BC: Tensor) -> Tensor:
        return outputs_BC

    def diverge(self, outputs_BC: Tensor, decoded_BC: Tensor) -> Tensor:
        p, q = outputs_BC.double().sigmoid(), decoded_BC.double().sigmoid()
        kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
        return kl.mean(1, keepdim=True).clamp(min=0)

    def agree(self, outputs_BC: Tensor, decoded_BC: Tensor) -> Tensor:
        return ((outputs_BC > 0) == (decoded_BC > 0)).all(1)


@pytest.fixture
def outputs() -> Tensor:
    return 3 * torch.randn(50, 6, generator=torch.Generator().manual_seed(0))


def _read(plain: dict[str, Any]) -> Fidelity:
    """As a record is read."""
    require_form(FidelityForm, sort_keys(plain))
    return Fidelity.from_dict(plain)


def test_what_a_rule_keeps_comes_back(outputs):
    codec, rule = find_codec("fp16", 6), Sigmoid()
    decoded = codec.decode(codec.encode(TeacherOutput(outputs), rule))
    torch.testing.assert_close(decoded.sigmoid(), outputs.sigmoid(), atol=1e-3, rtol=0)
    assert Fidelity.measure(rule, outputs, decoded).within(1e-6)


def test_a_rule_measures_what_the_rule_of_another_task_would_not_see(outputs):
    decoded = CLASSES.kept(outputs)
    assert Fidelity.measure(CLASSES, outputs, decoded).within(1e-9)
    found = Fidelity.measure(Sigmoid(), outputs, decoded)
    assert found.worst > 0.1
    assert found.agreed < 0.5


def test_a_fidelity_is_told_by_its_rules_names(outputs):
    found = Fidelity.measure(Sigmoid(), outputs, outputs + 0.1)
    assert list(found.summary()) == ["bernoulli_mean", "bernoulli_p99", "labels_agreement"]
    assert list(found.to_dict()) == ["samples", "bernoulli", "same_labels", "histogram_bernoulli"]
    assert _read(found.to_dict()) == found
    assert found.measures.are_those_of(Sigmoid.measures)
    assert not found.measures.are_those_of(SOFTMAX)


def test_the_names_of_a_softmax_are_those_that_stores_have(outputs):
    found = Fidelity.measure(CLASSES, outputs, outputs + 0.1)
    assert list(found.to_dict()) == [
        *("samples", "kl_t1", "kl_t4", "same_top1", "histogram_t1", "histogram_t4")
    ]
    assert list(found.summary()) == ["kl_t1_mean", "kl_t1_p99", "kl_t4_mean", "top1_agreement"]
    assert list(map(histogram_key, SOFTMAX.divergences)) == ["histogram_t1", "histogram_t4"]


def test_the_order_of_keys_says_nothing(outputs):
    plain = Fidelity.measure(CLASSES, outputs, outputs + 0.1).to_dict()
    turned = Fidelity.from_dict(dict(reversed(plain.items())))
    assert turned.measures.are_those_of(SOFTMAX)
    total = Fidelity.total(SOFTMAX, [turned])
    assert list(total.summary()) == ["kl_t1_mean", "kl_t1_p99", "kl_t4_mean", "top1_agreement"]


@pytest.mark.parametrize(
    "change",
    [
        {"samples": None},
        {"samples": True},
        {"samples": -1},
        {"kl_t1": -0.5},
        {"kl_t1": float("nan")},
        {"kl_t1": float("inf")},
        {"kl_t1": "1"},
        {"kl_t1": {}},
        {"kl_t1": None},
        {"kl t7": 0.5},
        {"kl_t7": 0.5},
        {"same_top1": 0.5},
        {"same_top1": 51},
        {"same_top5": 1},
        {"histogram_t1": 1.0},
        {"histogram_t1": {"x": 50}},
        {"histogram_t1": {"-16": 49}},
        {"histogram_t1": {"99999": 50}},
        {"histogram_t7": {"-16": 50}},
        {f"kl_{n}": 0.5 for n in range(9)},
    ],
    ids=str,
)
def test_a_forged_fidelity_is_refused(outputs, change):
    plain = {**Fidelity.measure(CLASSES, outputs, outputs + 0.1).to_dict(), **change}
    with pytest.raises(ValueError, match=r"\w"):
        _read(plain)


@pytest.mark.parametrize("key", ["samples", "kl_t1", "same_top1", "histogram_t4"])
def test_a_fidelity_that_lacks_something_is_refused(outputs, key):
    plain = Fidelity.measure(CLASSES, outputs, outputs + 0.1).to_dict()
    del plain[key]
    with pytest.raises(ValueError, match=r"\w"):
        _read(plain)
