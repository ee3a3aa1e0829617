"""Schedules: what they say at an epoch, and a loss whose settings have them."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.core.errors import ConfigError
from pipeline.losses import Schedule, ScheduledLoss, dkd, kd, make_loss, scratch
from tests.pipeline.losses.batches import LABELS, STUDENT, TEACHER

BATCH = STUDENT, LABELS, TEACHER


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, [3, 3, 3, 3, 3]),
        ({"from": 8, "to": 2, "epochs": 30}, [8, 7.9, 5, 2, 2]),
        ({"from": 0.1, "to": 0.7, "epochs": 30}, [0.1, 0.11, 0.4, 0.7, 0.7]),
        ({"warmup": 2, "epochs": 10}, [0, 0.1, 2, 2, 2]),
        ({"warmup": 2, "epochs": 0.25}, [0, 2, 2, 2, 2]),
        # What YAML takes for text.
        ("3e-3", [0.003] * 5),
        ({"from": "1e1", "to": 0, "epochs": "3e1"}, [10, 9.8333333, 5, 0, 0]),
    ],
)
def test_a_schedule_is_linear_and_then_stays(value, expected):
    schedule = Schedule.parse(value)
    found = [schedule.at(epoch) for epoch in (0, 0.5, 15, 30, math.inf)]
    assert found == pytest.approx(expected)
    assert found[-1] == schedule.end


@pytest.mark.parametrize(
    "value",
    [
        "hot",
        "nan",
        None,
        True,
        [8, 2],
        math.nan,
        math.inf,
        {},
        {"from": 8, "to": 2},
        {"from": 8, "epochs": 30},
        {"from": 8, "to": 2, "epochs": 0},
        {"from": 8, "to": 2, "epochs": -1},
        {"from": 8, "to": 2, "epochs": math.inf},
        {"from": 8, "to": "cold", "epochs": 30},
        {"from": 8, "to": 2, "epochs": 30, "warmup": 1},
        {"from": True, "to": 2, "epochs": 30},
        {"warmup": 1},
        {"warmup": {"from": 1, "to": 2, "epochs": 3}, "epochs": 20},
        {"warmup": 1, "share": 0},
        {"warmup": 1, "share": 1.1},
        {"warmup": 1, "share": 0.1, "epochs": 3},
    ],
)
def test_what_is_no_schedule(value):
    assert Schedule.parse(value) is None


@pytest.mark.parametrize(
    "values",
    [(0, math.nan, 3), (math.inf, 0, 3), (0, 1, -1), (0, 1, math.inf)],
)
def test_a_schedule_that_cannot_be_is_refused(values):
    with pytest.raises(ConfigError, match=r"a schedule goes from .* expected finite numbers"):
        Schedule(*values)
    with pytest.raises(ConfigError, match=r"a schedule takes 1\.5 of a run; expected a share from 0 to 1"):
        Schedule(0, 1, share=1.5)


def test_a_loss_has_the_settings_of_the_moment():
    settings = {"temperature": {"from": 8, "to": 2, "epochs": 30}, "kd_weight": 0.5}
    loss = make_loss("kd", settings)
    for epoch, temperature in ((0, 8), (10, 6), (12.5, 5.5), (30, 2), (99, 2)):
        expected = kd(*BATCH, temperature=temperature, kd_weight=0.5)
        torch.testing.assert_close(loss.at(epoch)(*BATCH), expected)


def test_a_loss_that_is_called_is_what_it_ends_as():
    loss = make_loss("kd", {"temperature": {"from": 8, "to": 2, "epochs": 30}})
    assert torch.equal(loss(*BATCH), kd(*BATCH, temperature=2))


def test_a_constant_loss_is_the_same_at_every_moment():
    loss = make_loss("kd", {"temperature": 3})
    for epoch in (0, 0.5, 100):
        assert torch.equal(loss.at(epoch)(*BATCH), kd(*BATCH, temperature=3))


def test_a_share_of_a_run_becomes_epochs():
    loss = make_loss("dkd", {"kd_weight": {"warmup": 2, "share": 0.1}})
    for run_epochs in (4, 240):
        run = loss.over(run_epochs)
        assert run.epochs == 0.1 * run_epochs
        for done, weight in ((0, 0), (0.05, 1), (0.1, 2), (1, 2)):
            expected = dkd(*BATCH, kd_weight=weight)
            torch.testing.assert_close(run.at(done * run_epochs)(*BATCH), expected)


def test_a_share_of_an_unknown_run_has_only_its_end():
    loss = make_loss("kd", {"kd_weight": {"from": 0.9, "to": 0, "share": 0.3}})
    assert torch.equal(loss(*BATCH), kd(*BATCH, kd_weight=0))
    with pytest.raises(ConfigError, match=r"0\.3 of a run whose length is unknown; call .*over\(epochs\)"):
        loss.at(1)


def test_schedules_of_epochs_ignore_the_length_of_the_run():
    loss = make_loss("kd", {"temperature": {"from": 8, "to": 2, "epochs": 30}})
    assert torch.equal(loss.over(10).at(15)(*BATCH), kd(*BATCH, temperature=5))


def test_a_loss_knows_when_its_last_schedule_ends():
    falling = {"from": 8, "to": 2, "epochs": 30}
    assert make_loss("kd", {"temperature": falling, "kd_weight": {"warmup": 1, "epochs": 2.5}}).epochs == 30
    assert make_loss("kd", {"temperature": 3}).epochs == ScheduledLoss(scratch).epochs == 0


def test_a_function_of_ones_own_is_a_loss():
    loss = ScheduledLoss(scratch)
    assert torch.equal(loss.at(3)(STUDENT, LABELS, None), scratch(STUDENT, LABELS))
