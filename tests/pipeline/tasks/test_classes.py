"""The task of classes: what may be dropped, by how much answers differ, and how good a teacher must be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.codecs import TeacherOutput, find_codec
from pipeline.codecs.fidelity import Fidelity
from pipeline.core.errors import ConfigError
from pipeline.tasks.classes import CLASSES, least_top1
from pipeline.tasks.table import TASKS, find_task


def _logits(seed: int) -> torch.Tensor:
    return 3 * torch.randn(200, 7, generator=torch.Generator().manual_seed(seed))


def test_tasks_are_found_by_name():
    assert find_task() is find_task("classes") is CLASSES
    assert [find_task(task.name) for task in TASKS] == list(TASKS)


def test_an_unknown_task_is_refused():
    with pytest.raises(
        ConfigError, match=r"expected classes, .* or module:NAME of your own; did you mean 'classes'"
    ):
        find_task("clases")


def test_a_constant_a_row_may_be_dropped():
    logits, shift = _logits(0), torch.arange(200.0)[:, None]
    assert (CLASSES.kept(logits).amax(1) == 0).all()
    assert CLASSES.diverge(logits, logits + shift).max() < 1e-9
    assert CLASSES.agree(logits, logits + shift).all()


def test_divergences_are_kl_at_temperatures_1_and_4():
    logits, decoded = _logits(0), _logits(1)
    found = CLASSES.diverge(logits, decoded)
    assert (found.shape, found.dtype) == ((200, len(CLASSES.measures.divergences)), torch.float64)
    for column, temperature in zip(found.T, (1, 4), strict=True):
        p, q = ((x.double() / temperature).softmax(1) for x in (logits, decoded))
        assert column.numpy() == pytest.approx((p * (p / q).log()).sum(1).numpy())
    assert torch.equal(CLASSES.agree(logits, decoded), logits.argmax(1) == decoded.argmax(1))


def test_quality_is_the_share_of_labelled_samples_whose_first_class_is_the_label():
    logits = torch.eye(4)
    labels = np.array([0, 1, 3, -1])
    assert CLASSES.tally(CLASSES.answers(logits).numpy(), labels) == (3, 2)
    assert CLASSES.quality(logits, labels) == pytest.approx(2 / 3)
    assert CLASSES.quality(logits, np.full(4, -1)) is None


def test_a_cost_is_told_in_one_line():
    logits = _logits(0)
    codec = find_codec("affine4", 7)
    fidelity = Fidelity.measure(CLASSES, logits, codec.decode(codec.encode(TeacherOutput(logits), CLASSES)))
    mean = fidelity.summary()["kl_t1_mean"]
    words = CLASSES.describe(fidelity)
    assert f"KL(teacher || cached) {mean:.1e} at T = 1" in words
    assert f"top-1 agreement {fidelity.agreed:.4f}" in words


def test_the_best_epoch_has_the_most_right_and_then_the_likeliest_labels():
    labels = torch.tensor([0, 1, -1])
    sure, unsure = torch.eye(3) * 4, torch.eye(3)
    right, less_sure, wrong = (CLASSES.compare(x, labels) for x in (sure, unsure, sure.roll(1, 1)))
    assert right.score > less_sure.score > wrong.score
    assert (right.headline, next(iter(right.followed))) == ("top-1 1.0000", "top1")


def test_without_labels_there_is_no_score_and_nothing_is_said():
    unknown = CLASSES.compare(torch.eye(3), torch.full((3,), -1))
    assert (unknown.score, unknown.headline, str(unknown)) == (None, "", "")
    assert set(unknown.followed.values()) == {None}


def test_columns_name_figures_of_a_model():
    figures = CLASSES.compare(_logits(0), torch.zeros(200, dtype=torch.int64), _logits(1)).to_dict()
    assert [column.name for column in CLASSES.columns] == list(figures)
    nothing = torch.zeros(0, 7), torch.zeros(0, dtype=torch.int64)
    assert [column.name for column in CLASSES.mended] == list(CLASSES.calibrate(nothing, nothing))
    assert set(CLASSES.against_teacher) <= set(figures)
    headings = {column.name: column.heading for column in CLASSES.columns}
    assert (headings["top1"], headings["nll"]) == ("Top-1, %", "NLL, nats")


def test_a_poor_teacher_is_told_what_was_expected():
    labels = np.array([0, 0, 0, 1, -1])
    assert CLASSES.weakness(0.99, labels, "test") is None
    assert CLASSES.weakness(0.7, labels, "test") == (
        "top-1 0.700 on test; naming the largest class always gives 0.750, and at least 0.797 was "
        "expected, 19% fewer errors"
    )
    alone = np.array([2, 2, -1])
    assert CLASSES.weakness(0.5, alone, "test") is None
    assert CLASSES.weakness(0.0, alone, "test") == (
        "top-1 0.000 on test, all of one class; at least 0.500 was expected"
    )


@pytest.mark.parametrize("share", [0.001, 0.1, 0.34, 0.45, 0.48, 0.49, 0.5, 0.51, 0.7, 0.85])
def test_a_teacher_of_89_percent_is_good_enough(share):
    assert share < least_top1(share) < 0.89


def test_a_teacher_that_names_the_largest_class_is_never_good_enough():
    assert all(least_top1(share / 100) > share / 100 for share in range(1, 100))


def test_what_is_asked_for_grows_evenly_with_the_largest_class():
    steps = np.diff([least_top1(share / 100) for share in range(1, 101)])
    assert steps.min() > 0
    assert steps.max() <= 0.02 + 1e-9
    assert np.abs(np.diff(steps)).max() < 0.001 + 1e-9
