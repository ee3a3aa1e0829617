"""Settings of the optimisation: ranges."""

from __future__ import annotations

import json
import math

import pytest

from pipeline.core.errors import ConfigError
from pipeline.training.settings import TrainingSettings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("epochs", -1),
        ("batch_size", 1),
        ("learning_rate", 0),
        ("learning_rate", -0.1),
        ("learning_rate", math.nan),
        ("learning_rate", math.inf),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("weight_decay", -1e-4),
        ("weight_decay", math.nan),
        ("weight_decay", math.inf),
        ("warmup_epochs", -1),
        ("warmup_epochs", 10.5),
        ("ema_decay", 1.0),
        ("ema_decay", -0.5),
        ("accumulate", 0),
        ("accumulate", 129),
        ("clip_norm", -1.0),
        ("clip_norm", math.inf),
        ("step_factor", 1.0),
        ("step_factor", 0.0),
        ("layer_decay", 0.0),
        ("layer_decay", 1.1),
        ("head_rate_factor", 0),
        ("head_rate_factor", math.inf),
    ],
)
def test_a_value_out_of_range_is_refused_with_what_was_found_and_expected(name, value):
    with pytest.raises(ConfigError, match=rf"^{name} is {value}; expected "):
        TrainingSettings(**{name: value})


@pytest.mark.parametrize(
    "values",
    [
        {"epochs": 1, "warmup_epochs": 1},
        {"warmup_epochs": 0},
        {"batch_size": 2},
        {"momentum": 0},
        {"weight_decay": 0},
        {"ema_decay": 0.9999},
    ],
)
def test_a_value_at_its_limit_is_accepted(values):
    settings = TrainingSettings(**values)
    assert all(getattr(settings, name) == value for name, value in values.items())


def test_a_warm_up_longer_than_the_training_says_how_long_that_is():
    with pytest.raises(ConfigError, match=r"warmup_epochs is 5; expected 0 to epochs \(3\)"):
        TrainingSettings(epochs=3, warmup_epochs=5)


def test_settings_are_plain_values_that_rebuild_them():
    settings = TrainingSettings(optimizer="adamw", precision="bf16", ema_decay=0.99)
    assert TrainingSettings(**json.loads(json.dumps(settings.to_dict()))) == settings


def test_settings_cannot_be_changed():
    with pytest.raises(AttributeError):
        TrainingSettings().epochs = 3


@pytest.mark.parametrize(
    ("schedule", "milestones"),
    [("step", ()), ("cosine", (3,)), ("step", (0,)), ("step", (10,)), ("step", (5, 3)), ("step", (3, 3))],
)
def test_milestones_that_make_no_schedule_are_refused(schedule, milestones):
    with pytest.raises(
        ConfigError, match=r"milestones is .* expected ascending epochs above 0 and below 10"
    ):
        TrainingSettings(schedule=schedule, milestones=milestones)
