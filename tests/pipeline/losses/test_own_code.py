"""Losses of the user's own code: found, given their settings, and what is said when that goes wrong."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

from pipeline.core.errors import ConfigError
from pipeline.losses import Features, Schedule, find_loss, kd, make_loss, require_kept, require_targets
from tests.documents import ROOT, block_with
from tests.pipeline.losses import batches
from tests.pipeline.losses.batches import LABELS

STUDENT, TEACHER = batches.STUDENT.float(), batches.TEACHER.float()
CODE = '''
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.losses import FeatureNeeds, kd

if TYPE_CHECKING:
    from nowhere import Tensor

def mean(student: Tensor, labels, teacher, *, weight=1.0, kind="plain", shift):
    """Annotations that nobody can evaluate; a number, a word and a setting without a default."""
    return weight * student.mean() + shift

def by_place(student, labels, teacher, weight=1.0):
    print("a step")
    return weight * (student - teacher).square().mean()

class Baseline:
    needs_teacher = False
    one_target = True
    def __init__(self, weight=1.0, power=2):
        self.weight, self.power = weight, power
    def __call__(self, student, labels, teacher):
        assert teacher is None
        return self.weight * student.abs().pow(self.power).mean()

class Near:
    features = FeatureNeeds(negatives=3)
    def __call__(self, student, labels, teacher, features):
        return kd(student, labels, teacher) + (features.student - features.teacher).square().mean()

def anything(student, labels, teacher, **settings):
    return student.sum() * len(settings)

def rows(student, labels, teacher):
    return F.mse_loss(student, teacher, reduction="none")

def counts(student, labels, teacher):
    return labels.sum()

def number(student, labels, teacher):
    return 1.0

def detached(student, labels, teacher):
    return student.detach().sum()

def broken(student, labels, teacher):
    raise ValueError("no\\nsuch thing")

def full(student, labels, teacher):
    raise torch.OutOfMemoryError("CUDA out of memory")

def precision(student, labels, teacher):
    assert not torch.is_autocast_enabled("cpu")
    assert (student.dtype, teacher.dtype, labels.dtype) == (torch.float32, torch.float32, torch.int64)
    return student.mean()

class Learns(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

class NoCall:
    pass

def odd(student, labels, teacher):
    return student.mean()

odd.needs_teacher = "yes"
constant = 3
'''


@pytest.fixture(autouse=True)
def code(tmp_path, monkeypatch):
    """A working folder with a module of the user's, fresh for each test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("mine.py").write_text(CODE)
    importlib.invalidate_caches()
    yield
    for name in {"mine", "readme_loss"} & set(sys.modules):
        del sys.modules[name]


def test_a_function_is_given_its_settings_and_numbers_may_have_schedules():
    loss = make_loss(
        "mine:mean", {"weight": {"from": 0, "to": 4, "epochs": 2}, "kind": "fast", "shift": "1e0"}
    )
    assert loss.epochs == 2
    assert loss.at(1)(STUDENT, LABELS, TEACHER) == 2 * STUDENT.mean() + 1
    assert loss.settings["shift"] == Schedule(1.0, 1.0, 0)


def test_settings_may_be_taken_by_place_too_and_prints_are_progress(capsys):
    loss = make_loss("mine:by_place", {"weight": 2})
    assert loss(STUDENT, LABELS, TEACHER) == 2 * (STUDENT - TEACHER).square().mean()
    assert capsys.readouterr() == ("", "a step\n")


def test_a_class_is_made_with_its_settings_and_says_what_it_needs():
    found = find_loss("mine:Baseline")
    assert (found.needs_teacher, found.one_target, found.features) == (False, True, None)
    loss = make_loss("mine:Baseline", {"weight": "5e-1"})
    assert loss(STUDENT, LABELS) == 0.5 * STUDENT.square().mean()
    with pytest.raises(ConfigError, match="loss 'mine:Baseline' needs one class per sample"):
        require_targets("mine:Baseline", "dump x", mixes=True)


def test_what_says_nothing_learns_from_a_teachers_logits():
    found = find_loss("mine:by_place")
    assert (found.needs_teacher, found.one_target, found.features) == (True, False, None)
    require_targets("mine:by_place", "dump x", mixes=True)
    require_kept("mine:by_place", ["affine8"], "dump x")


def test_a_loss_of_features_is_given_them_and_refused_where_none_are_kept():
    loss = make_loss("mine:Near", {})
    assert loss.features.negatives == 3
    features = Features(student=torch.ones(2, 3), teacher=torch.zeros(2, 3))
    value = loss.at(0)(STUDENT, LABELS, TEACHER, features)
    assert value == kd(STUDENT, LABELS, TEACHER) + 1
    with pytest.raises(
        ConfigError, match="loss 'mine:Near' needs teacher features, but dump x has codec affine8"
    ):
        require_kept("mine:Near", ["affine8"], "dump x")


def test_any_settings_go_to_a_function_that_takes_any():
    assert make_loss("mine:anything", {"a": 1, "b": "x"})(STUDENT, LABELS, TEACHER) == 2 * STUDENT.sum()


def test_it_computes_in_single_precision_outside_autocast():
    loss = make_loss("mine:precision", {})
    with torch.autocast("cpu", torch.bfloat16):
        assert loss(STUDENT.bfloat16(), LABELS, TEACHER.bfloat16()).dtype == torch.float32


def test_the_readmes_new_loss_is_one_of_the_users_own_too():
    """With the ranges of its settings."""
    function = block_with(ROOT / "pipeline/losses/README.md", "def reverse_kl")
    Path("readme_loss.py").write_text(function)
    expected = kd(TEACHER, LABELS, STUDENT, temperature=2, ce_weight=0, kd_weight=1)
    loss = make_loss("readme_loss:reverse_kl", {"temperature": 2})
    assert torch.allclose(loss(STUDENT, LABELS, TEACHER), expected)
    with pytest.raises(ConfigError, match="temperature is 0; expected a number more than 0"):
        make_loss("readme_loss:reverse_kl", {"temperature": 0})


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("yours:mean", {}, r"loss yours:mean: no module 'yours' in .*run in the project folder"),
        ("mine:meen", {}, r"mine has no 'meen'; expected a callable that returns .*; did you mean 'mean'"),
        ("mine:constant", {}, r"loss mine:constant is not callable \(int\)"),
        ("os:system", {}, r"loss os:system: os is part of the standard library, which has no losses"),
        ("mine:mean", {}, r"needs the setting 'shift', which has no default; add it"),
        ("mine:mean", {"shifd": 1}, r"has no setting 'shifd'; expected weight, kind, shift; did you mean"),
        ("mine:by_place", {"teacher": 1}, r"has no setting 'teacher'; expected weight"),
        ("mine:Baseline", {"wait": 1}, r"has no setting 'wait'; expected weight, power"),
        ("mine:NoCall", {}, r"returns a NoCall, which is not callable; .*add __call__"),
        ("mine:Learns", {}, r"has trainable weights, but the optimiser does not train them"),
        ("mine:odd", {}, r"attribute needs_teacher is a str; expected a bool"),
        (
            "mine loss",
            {},
            r"loss is 'mine loss'; expected one of scratch, .*, or your own package.module:NAME",
        ),
    ],
)
def test_a_loss_that_cannot_be_made_is_one_line(name, settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make_loss(name, settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine:rows", r"returns a tensor of shape \(\d+, \d+\) and type torch.float32; expected a scalar"),
        ("mine:counts", r"returns a tensor of shape \(\) and type torch.int64; expected a scalar"),
        ("mine:number", r"returns a float; expected a scalar float tensor"),
        ("mine:detached", r"returns a value without a gradient"),
        (
            "mine:broken",
            r"the code raises ValueError: no such thing; fix it \(--debug shows the traceback\)",
        ),
    ],
)
def test_a_loss_that_cannot_be_used_is_one_line(name, message):
    with pytest.raises(ConfigError, match=f"^loss '?{name}'?:? {message}") as caught:
        make_loss(name, {})(STUDENT.clone().requires_grad_(), LABELS, TEACHER)
    assert "\n" not in str(caught.value)


def test_want_of_memory_is_not_the_users_fault():
    with pytest.raises(torch.OutOfMemoryError):
        make_loss("mine:full", {})(STUDENT, LABELS, TEACHER)
