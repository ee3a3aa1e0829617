"""What holds for every loss of the tables, a new one's too."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pipeline.core.errors import ConfigError
from pipeline.losses.settings import settings_of
from tests.pipeline.losses.batches import (
    BATCH,
    CLASSES,
    HALF,
    LABELS,
    NONE,
    SHARES,
    STUDENT,
    TEACHER,
    logits,
    loss_of,
)
from tests.pipeline.losses.batches import OF_SOFTMAX as LOSSES
from tests.pipeline.waiting import NoWaiting, no_waiting_on_cuda

EVERY = pytest.mark.parametrize("name", LOSSES)
MIXABLE = [name for name, loss in LOSSES.items() if not loss.one_target]
EVERY_LABELLING = pytest.mark.parametrize("labels", [LABELS, HALF, NONE], ids=["all", "half", "none"])
LABELLINGS = [*((name, HALF) for name in LOSSES), *((name, SHARES) for name in MIXABLE)]
# These compare samples with each other: a batch is more than its parts.
RELATIONAL = {"dist", "crd", "rkd", "relational"}
# Its weights are constants of the gradient; tested beside its formula.
WITH_CONSTANTS = {"wsld"}


def _weights(name: str) -> list[str]:
    return [key for key in settings_of(LOSSES[name].function) if key.endswith("_weight")]


WEIGHING_LABELS = [name for name in LOSSES if "ce_weight" in _weights(name)]


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in WITH_CONSTANTS])
@EVERY_LABELLING
def test_gradients_agree_with_finite_differences(name, labels):
    loss, student = loss_of(name), STUDENT.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, labels, TEACHER), (student,))


@EVERY
@EVERY_LABELLING
@pytest.mark.parametrize("scale", [1e4, 65504.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_extreme_logits_give_finite_losses_and_gradients(name, labels, scale, dtype):
    student = (scale * torch.sign(STUDENT)).to(dtype).requires_grad_()
    loss = loss_of(name)(student, labels, (scale * torch.sign(TEACHER)).to(dtype))
    loss.backward()
    assert bool(loss.isfinite())
    assert not bool(student.grad.isnan().any())
    assert dtype == torch.float16 or bool(student.grad.isfinite().all())


@EVERY
def test_a_teacher_that_is_sure_gives_finite_losses_and_gradients(name):
    student = STUDENT.float().requires_grad_()
    loss = loss_of(name)(student, LABELS, 1e4 * torch.eye(CLASSES)[LABELS])
    loss.backward()
    assert bool(loss.isfinite())
    assert bool(student.grad.isfinite().all())


@EVERY
@EVERY_LABELLING
def test_rows_of_equal_logits_give_finite_losses_and_gradients(name, labels):
    student = torch.zeros(BATCH, CLASSES, requires_grad=True)
    loss = loss_of(name)(student, labels, torch.zeros(BATCH, CLASSES))
    loss.backward()
    assert bool(loss.isfinite())
    assert bool(student.grad.isfinite().all())


@EVERY
@EVERY_LABELLING
@pytest.mark.parametrize("classes", [2, CLASSES])
def test_a_batch_of_one_is_a_batch(name, labels, classes):
    student = logits(2, classes)[:1].requires_grad_()
    loss = loss_of(name, **({"ce_weight": 0} if name == "centre" else {}))
    value = loss(student, labels[:1].clamp(max=classes - 1), logits(3, classes)[:1], slice(1))
    value.backward()
    assert bool(value.isfinite())
    assert bool(student.grad.isfinite().all())


@pytest.mark.parametrize(("name", "labels"), LABELLINGS)
def test_the_order_of_the_batch_does_not_matter(name, labels):
    loss, order = loss_of(name), torch.randperm(BATCH, generator=torch.Generator().manual_seed(0))
    shuffled = loss(STUDENT[order], labels[order], TEACHER[order], order)
    assert float(shuffled) == pytest.approx(float(loss(STUDENT, labels, TEACHER)), rel=1e-12)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in RELATIONAL])
def test_the_loss_of_a_batch_is_the_mean_of_its_halves(name):
    loss, half = loss_of(name), BATCH // 2
    halves = [
        loss(STUDENT[part], HALF[part], TEACHER[part], part) for part in (slice(half), slice(half, None))
    ]
    assert float(loss(STUDENT, HALF, TEACHER)) == pytest.approx(float(sum(halves)) / 2, rel=1e-12)


@pytest.mark.parametrize("name", [*WEIGHING_LABELS, "scratch", "label_smoothing"])
def test_an_unlabelled_sample_has_no_hard_label_term(name):
    settings = {key: float(key == "ce_weight") for key in _weights(name)}
    student, unlabelled = STUDENT.clone().requires_grad_(), HALF == -1
    loss_of(name, **settings)(student, HALF, TEACHER).backward()
    assert not student.grad[unlabelled].any()
    assert student.grad[~unlabelled].any(1).all()


@pytest.mark.parametrize("name", WEIGHING_LABELS)
def test_the_weight_of_the_labels_does_not_matter_without_any(name):
    heavy, light = (loss_of(name, ce_weight=weight)(STUDENT, NONE, TEACHER) for weight in (5, 0.5))
    assert torch.equal(heavy, light)


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.needs_teacher])
def test_a_student_learns_of_its_teacher_without_labels(name):
    student = STUDENT.clone().requires_grad_()
    loss_of(name, **dict.fromkeys(_weights(name), 1.0))(student, NONE, TEACHER).backward()
    assert student.grad.any(1).all()


@EVERY
@pytest.mark.parametrize("labels", [LABELS, HALF], ids=["all", "half"])
def test_a_constant_added_to_the_teachers_logits_changes_nothing(name, labels):
    """Codecs keep logits up to a constant a row."""
    loss, constants = loss_of(name), torch.linspace(-20, 20, BATCH)[:, None]
    shifted = loss(STUDENT, labels, TEACHER + constants)
    assert float(shifted) == pytest.approx(float(loss(STUDENT, labels, TEACHER)), rel=1e-9)


# In crd a sample of the same class is no negative, unless images are mixed.
@pytest.mark.parametrize("name", [name for name in MIXABLE if name != "crd"])
@pytest.mark.parametrize("second", [LABELS, (LABELS + 2) % CLASSES, NONE], ids=["same", "other", "none"])
def test_a_mixed_label_weighs_the_losses_of_its_parts(name, second):
    loss = loss_of(name)
    one, other = torch.eye(CLASSES)[LABELS], torch.eye(CLASSES)[second] * (second >= 0)[:, None]
    expected = 0.75 * loss(STUDENT, LABELS, TEACHER) + 0.25 * loss(STUDENT, second, TEACHER)
    found = loss(STUDENT, 0.75 * one + 0.25 * other, TEACHER)
    assert float(found) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.one_target])
def test_a_loss_of_one_class_a_sample_refuses_mixed_labels(name):
    with pytest.raises(ConfigError, match=f"loss '{name}' got class shares.*expected one class"):
        loss_of(name)(STUDENT, SHARES, TEACHER)


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_computed_in_single_precision(name, dtype):
    student, teacher = STUDENT.to(dtype), TEACHER.to(dtype)
    loss = loss_of(name)
    found, expected = loss(student, HALF, teacher), loss(student.float(), HALF, teacher.float())
    assert found.dtype in (torch.float32, torch.float64)
    assert torch.equal(found, expected)


@EVERY
def test_single_precision_is_near_double(name):
    single = loss_of(name)(STUDENT.float(), HALF, TEACHER.float())
    assert float(single) == pytest.approx(float(loss_of(name)(STUDENT, HALF, TEACHER)), rel=2e-5)


@pytest.mark.parametrize(("name", "labels"), LABELLINGS)
def test_autocast_changes_nothing(name, labels):
    loss, student, teacher = loss_of(name), STUDENT.float(), TEACHER.float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(student, labels, teacher)
    assert torch.equal(inside, loss(student, labels, teacher))


@pytest.mark.parametrize(("name", "labels"), LABELLINGS)
def test_no_loss_waits_for_its_device(name, labels):
    """Fake tensors refuse to be read, and to be indexed by a mask, whose number of rows would be read."""
    loss = loss_of(name)
    with FakeTensorMode(allow_non_fake_inputs=True), NoWaiting():
        student = torch.empty_like(STUDENT).requires_grad_()
        loss(student, torch.empty_like(labels), torch.empty_like(TEACHER)).backward()
    assert student.grad is not None


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize(("name", "labels"), [case for case in LABELLINGS if case[0] in LOSSES])
def test_no_loss_waits_for_a_cuda_device(name, labels):
    loss, student = loss_of(name), STUDENT.cuda().requires_grad_()
    labels, teacher = labels.cuda(), TEACHER.cuda()
    loss(student, labels, teacher).backward()  # what is set up once may wait
    with no_waiting_on_cuda():
        found = loss(student, labels, teacher)
        found.backward()
    expected = loss(STUDENT, labels.cpu(), TEACHER)
    assert float(found.detach()) == pytest.approx(float(expected), rel=1e-9)


@EVERY
def test_nothing_that_is_given_is_changed(name):
    given = STUDENT.clone(), HALF.clone(), TEACHER.clone()
    loss_of(name)(*given)
    assert all(torch.equal(a, b) for a, b in zip(given, (STUDENT, HALF, TEACHER), strict=True))


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if not loss.needs_teacher])
def test_baselines_need_no_teacher(name):
    loss = loss_of(name)
    assert torch.equal(loss(STUDENT, LABELS, None), loss(STUDENT, LABELS, TEACHER))


@EVERY
def test_row_wise_losses_are_those_that_compare_no_samples(name):
    # Losses of features, and those with a projection, are gathered as wholes, though some compare none.
    whole = LOSSES[name].features is not None or LOSSES[name].projects
    assert LOSSES[name].row_wise == (name not in RELATIONAL and not whole)
