"""The table: from names and settings to losses, and one clear line for what cannot be."""

from __future__ import annotations

import math
import re

import pytest
import torch

from pipeline import losses
from pipeline.core.errors import ConfigError
from pipeline.losses import LOSSES, Loss, kd, make_loss, require_kept, require_targets
from pipeline.losses.settings import Schedule, settings_of
from pipeline.losses.table import PAPER, fill
from tests.documents import ROOT, block_with
from tests.pipeline.losses.batches import LABELS, OF_FEATURES, STUDENT, TEACHER, defaults

DOCUMENT = ROOT / "pipeline/losses/README.md"
SETTINGS = [(name, key) for name, loss in LOSSES.items() for key in settings_of(loss.function)]


def test_settings_are_filled_in():
    loss = make_loss("kd", {"temperature": 2, "ce_weight": 0.3, "kd_weight": 0.7})
    expected = kd(STUDENT, LABELS, TEACHER, temperature=2, ce_weight=0.3, kd_weight=0.7)
    assert torch.equal(loss(STUDENT, LABELS, TEACHER), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_every_setting_is_annotated_with_its_range_and_has_a_default_in_it(name):
    ranges = settings_of(LOSSES[name].function)
    assert list(ranges) == list(defaults(name))
    assert all(ranges[key].holds(default) for key, default in defaults(name).items())
    assert set(LOSSES[name].schedules) <= set(ranges)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_a_public_name_that_says_its_source(name):
    function = getattr(losses, name)
    assert function is LOSSES[name].function
    assert name in losses.__all__
    assert not LOSSES[name].needs_teacher or re.search(r"arXiv \d{4}\.\d{4,5}", function.__doc__)


@pytest.mark.parametrize("name", LOSSES)
def test_the_readme_tells_of_every_loss_and_its_defaults(name):
    section = DOCUMENT.read_text()
    formula, settings, *presets = re.findall(rf"^\| `{name}` \| (.*) \|$", section, re.M)
    assert formula
    assert len(presets) == (name in PAPER)
    for key, value in PAPER.get(name, {}).items():
        told = "{warmup: 1, epochs: 20}" if isinstance(value, dict) else f"{value:g}"
        assert f"`{key}` {told}" in presets[0]
    if name in OF_FEATURES:
        settings += "".join(re.findall(r"^\| all three \| (.*) \|$", section, re.M))
    for key, default in defaults(name).items():
        assert f"`{key}` {default:g}" in settings


def test_the_readmes_new_loss_is_a_function_and_a_line(monkeypatch):
    function = block_with(DOCUMENT, "def reverse_kl")
    ((key, value),) = re.findall(r'^\+    "(reverse_kl)": (.*),$', DOCUMENT.read_text(), re.M)
    names: dict[str, object] = {"Loss": Loss}
    exec(function, names)
    monkeypatch.setitem(LOSSES, key, eval(value, names))
    expected = kd(TEACHER, LABELS, STUDENT, temperature=2, ce_weight=0, kd_weight=1)
    assert torch.equal(make_loss(key, {"temperature": 2})(STUDENT, LABELS, TEACHER), expected)
    with pytest.raises(
        ConfigError, match=r"loss 'reverse_kl': temperature is 0; expected a number more than 0"
    ):
        make_loss(key, {"temperature": 0})


@pytest.mark.parametrize("name", PAPER)
def test_a_preset_is_all_settings_of_the_paper_and_other_keys_override_it(name):
    assert set(PAPER[name]) == set(defaults(name))
    key, setting = next((key, value) for key, value in PAPER[name].items() if not isinstance(value, dict))
    paper, other = (
        make_loss(name, {"preset": "paper"}),
        make_loss(name, {"preset": "paper", key: setting / 2}),
    )
    assert paper.settings == {k: Schedule.parse(value) for k, value in PAPER[name].items()}
    assert other.settings == {**paper.settings, key: Schedule.parse(setting / 2)}


@pytest.mark.parametrize(
    ("name", "preset", "expected"),
    [
        ("dkd", "papper", "expected paper"),
        ("dkd", None, "expected paper"),
        ("kd", "paper", "expected no preset"),
    ],
)
def test_an_unknown_preset_is_refused(name, preset, expected):
    with pytest.raises(ConfigError, match=rf"loss {name} has the preset {preset!r}; {expected}"):
        make_loss(name, {"preset": preset})


# Names


def test_an_unknown_loss_gets_a_suggestion():
    message = r"loss is 'scrach'; expected one of scratch, label_smoothing, kd, .*; did you mean 'scratch'"
    with pytest.raises(ConfigError, match=message):
        make_loss("scrach", {})


@pytest.mark.parametrize(
    ("name", "key", "expected"),
    [
        ("kd", "temprature", "temperature, ce_weight, kd_weight; did you mean 'temperature'"),
        ("kd", "smoothing", "temperature, ce_weight, kd_weight"),
        ("label_smoothing", "temperature", "smoothing"),
        ("scratch", "smoothing", "none"),
        ("kd", "teacher", "temperature, ce_weight, kd_weight"),
        ("dkd", "gamma", "temperature, alpha, beta, ce_weight, kd_weight"),
    ],
)
def test_a_setting_that_a_loss_does_not_have_is_refused_with_those_it_has(name, key, expected):
    with pytest.raises(ConfigError, match=rf"loss '{name}' has no setting '{key}'; expected {expected}"):
        make_loss(name, {key: 1})


# Values


@pytest.mark.parametrize(("name", "key"), SETTINGS)
def test_what_is_no_value_of_a_setting_is_refused_with_what_was_found(name, key):
    for value in (-1, math.nan, math.inf, "hot", None, True, [0.1]):
        found = re.escape(repr(value))
        with pytest.raises(ConfigError, match=rf"^loss '{name}': {key} is {found}; expected a number .*$"):
            fill(name, LOSSES[name], {key: value})


@pytest.mark.parametrize(
    ("name", "key", "value", "expected"),
    [
        ("kd", "temperature", 0, "more than 0"),
        ("kd", "temperature", 1e6, "more than 0, from 0.001 to 1000"),
        ("kd_ls", "temperature", 1001, "more than 0, from 0.001 to 1000"),
        ("dist", "temperature", 1e-4, "more than 0, from 0.001 to 1000"),
        ("crd", "contrast_temperature", 1e-40, "more than 0, from 0.001 to 1000"),
        ("soft_ce", "temperature", {"from": 4, "to": 1e6, "epochs": 3}, "more than 0, from 0.001 to 1000"),
        ("label_smoothing", "smoothing", 1, "at least 0 and below 1"),
        ("wttm", "gamma", 0, "more than 0 and at most 1"),
        ("wttm", "gamma", 1.1, "more than 0 and at most 1"),
        ("kd", "ce_weight", -0.1, "at least 0"),
        ("kd", "temperature", {"from": 8, "to": 0, "epochs": 3}, "more than 0"),
        ("kd", "temperature", {"from": 0, "to": 8, "epochs": 3}, "more than 0"),
        ("kd", "temperature", {"warmup": 8, "epochs": 3}, r"more than 0.* \{warmup: .* starts at 0"),
        ("kd", "kd_weight", {"warmup": 1, "epoch": 3}, r"at least 0.* \{warmup: B, epochs: E\}"),
        ("kd", "kd_weight", {"warmup": 1, "epochs": 0}, r"at least 0.* E is more than 0"),
        ("kd", "kd_weight", {"warmup": 1, "share": 2}, r"at least 0.* share: S, a part of the run, may"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_range(name, key, value, expected):
    message = rf"loss '{name}': {key} is {re.escape(repr(value))}; expected a number {expected}"
    with pytest.raises(ConfigError, match=message):
        make_loss(name, {key: value})


# Targets


def test_a_loss_of_one_class_a_sample_is_refused_where_views_mix():
    with pytest.raises(
        ConfigError, match=r"loss 'wsld' needs one class per sample.*the views of dump x mix.*kd"
    ):
        require_targets("wsld", "dump x", mixes=True)
    require_targets("wsld", "dump x", mixes=False)
    for name in LOSSES:
        if name != "wsld":
            require_targets(name, "dump x", mixes=True)


# Features


@pytest.mark.parametrize("name", OF_FEATURES)
@pytest.mark.parametrize(
    ("codecs", "found"),
    [
        (["affine8"], "has codec affine8"),
        (["auto"], "has codec auto"),
        (["features", "features"], "averages 2 dumps"),
    ],
)
def test_a_loss_of_features_is_refused_where_none_are_kept(name, codecs, found):
    message = (
        rf"loss '{name}' needs teacher features, but dump x {found}; expected .*codec: features.*kd.*wttm"
    )
    with pytest.raises(ConfigError, match=message):
        require_kept(name, codecs, "dump x")


def test_every_loss_goes_with_a_dump_that_keeps_features():
    for name, loss in LOSSES.items():
        require_kept(name, ["pq-4" if loss.reads_codes else "features"], "dump x")
    require_kept("kd", ["affine8"], "dump x")
