"""Losses of features: their terms against formulas in numpy, pair by pair, and what projections make."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.core.errors import ConfigError
from pipeline.losses import LOSSES, Features, centre, crd, kd, rkd
from pipeline.losses.features import (
    CentreProjection,
    ContrastProjection,
    angles,
    contrast,
    distances,
    to_centres,
)
from tests.pipeline.losses.batches import (
    BATCH,
    CLASSES,
    HALF,
    LABELS,
    NONE,
    OF_FEATURES,
    SHARES,
    STUDENT,
    TEACHER,
    defaults,
    features,
)

GIVEN = features()
KD = kd(STUDENT, LABELS, TEACHER, ce_weight=1, kd_weight=0)
# Differently wide, as of a small and a large network.
NARROW = 2 * GIVEN.student[:, :4] + 1


def huber(a, b):
    return (a - b) ** 2 / 2 if abs(a - b) <= 1 else abs(a - b) - 0.5


def contrastive(anchors, candidates, negative, temperature):
    """The anchors are the first candidates; the noise is the mean over all negative pairs."""
    pairs = list(zip(*np.nonzero(negative), strict=True))
    noise = np.mean([np.exp(anchors[i] @ candidates[j] / temperature) for i, j in pairs])
    total = 0.0
    for i, anchor in enumerate(anchors):
        e = np.exp(candidates @ anchor / temperature)
        h = e / (e + negative[i].sum() * noise)
        total -= np.log(h[i]) + np.log(1 - h[negative[i]]).sum()
    return total / len(anchors)


def negative_pairs(labels, extra):
    everyone = [*labels, *extra]
    return np.array(
        [
            [i != j and (label == -1 or label != other) for j, other in enumerate(everyone)]
            for i, label in enumerate(labels)
        ]
    )


@pytest.mark.parametrize("labels", [LABELS, HALF, NONE], ids=["all", "half", "none"])
def test_crd_is_its_formula(labels):
    s, t, more = (x.numpy() for x in (GIVEN.student, GIVEN.teacher, GIVEN.negatives))
    pairs = negative_pairs(labels.tolist(), GIVEN.negative_labels.tolist())
    expected = contrastive(s, np.concatenate([t, more]), pairs, 0.07)
    expected += contrastive(t, s, pairs[:, :BATCH], 0.07)
    logits = float(kd(STUDENT, labels, TEACHER, ce_weight=1, kd_weight=0))
    found = crd(STUDENT, labels, TEACHER, GIVEN)
    assert float(found) == pytest.approx(logits + 0.8 * expected, rel=1e-9)


def test_crd_of_the_batch_alone():
    s, t = GIVEN.student.numpy(), GIVEN.teacher.numpy()
    pairs = negative_pairs(NONE.tolist(), [])
    expected = contrastive(s, t, pairs, 0.5) + contrastive(t, s, pairs, 0.5)
    batch = Features(GIVEN.student, GIVEN.teacher)
    found = crd(STUDENT, NONE, TEACHER, batch, contrast_temperature=0.5, feature_weight=1)
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_negatives_without_labels_are_negatives_of_all():
    unknown = replace(GIVEN, negative_labels=torch.full((3,), -1))
    found = crd(STUDENT, LABELS, TEACHER, replace(GIVEN, negative_labels=None))
    assert torch.equal(found, crd(STUDENT, LABELS, TEACHER, unknown))
    assert not torch.equal(found, crd(STUDENT, LABELS, TEACHER, GIVEN))


def test_samples_of_mixed_images_are_negatives_of_all_others():
    mixed, unlabelled = (crd(STUDENT, y, TEACHER, GIVEN, ce_weight=0) for y in (SHARES, NONE))
    assert torch.equal(mixed, unlabelled)


def test_the_noise_of_a_contrast_has_no_gradient():
    pairs = torch.from_numpy(negative_pairs(HALF.tolist(), []))
    s, t, where = GIVEN.student.numpy(), GIVEN.teacher.numpy(), pairs.numpy()
    noise = np.mean([np.exp(s[i] @ t[j]) for i, j in zip(*np.nonzero(where), strict=True)])

    def frozen(anchors):
        h = [e / (e + n * noise) for e, n in zip(np.exp(anchors @ t.T), where.sum(1), strict=True)]
        own = [np.log(row[i]) for i, row in enumerate(h)]
        others = [np.log(1 - row[other]).sum() for row, other in zip(h, where, strict=True)]
        return -(np.sum(own) + np.sum(others)) / len(s)

    anchors = GIVEN.student.clone().requires_grad_()
    contrast(anchors, GIVEN.teacher, pairs, temperature=1).backward()
    for place in np.ndindex(s.shape):
        step = np.zeros_like(s)
        step[place] = 1e-5
        slope = (frozen(s + step) - frozen(s - step)) / 2e-5
        assert float(anchors.grad[place]) == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_an_anchor_without_negatives_has_no_contrast():
    anchors = GIVEN.student.clone().requires_grad_()
    alone = torch.zeros(BATCH, BATCH, dtype=torch.bool)
    loss = contrast(anchors, GIVEN.teacher, alone, temperature=0.07)
    loss.backward()
    assert float(loss.detach()) == 0
    assert not anchors.grad.any()


def test_embeddings_learn_to_find_each_other():
    torch.manual_seed(0)
    raw = Features(torch.randn(BATCH, 12), torch.randn(BATCH, 20), torch.randn(30, 20))
    projection = ContrastProjection(12, 20)
    optimizer = torch.optim.SGD(projection.parameters(), lr=0.05)
    losses = []
    for _ in range(40):
        loss = crd(torch.zeros(BATCH, CLASSES), NONE, torch.zeros(BATCH, CLASSES), projection(raw))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    embedded = projection(raw)
    nearest = (embedded.student @ torch.cat([embedded.teacher, embedded.negatives]).T).argmax(1)
    assert nearest.tolist() == list(range(BATCH))


def relative_distances(x):
    d = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
    return d / np.mean([d[i, j] for i in range(len(x)) for j in range(len(x)) if i != j])


def test_distances_are_their_formula():
    s, t = relative_distances(NARROW.numpy()), relative_distances(GIVEN.teacher.numpy())
    expected = np.mean([huber(a, b) for a, b in zip(s.ravel(), t.ravel(), strict=True)])
    assert float(distances(NARROW, GIVEN.teacher)) == pytest.approx(expected, rel=1e-9)


def cosines(x):
    found = np.zeros((len(x),) * 3)
    for j, i, k in np.ndindex(found.shape):
        one, other = x[i] - x[j], x[k] - x[j]
        lengths = np.linalg.norm(one) * np.linalg.norm(other)
        found[j, i, k] = 0 if lengths == 0 else one @ other / lengths
    return found


def test_angles_are_their_formula():
    s, t = cosines(NARROW.numpy()), cosines(GIVEN.teacher.numpy())
    expected = np.mean([huber(a, b) for a, b in zip(s.ravel(), t.ravel(), strict=True)])
    assert float(angles(NARROW, GIVEN.teacher)) == pytest.approx(expected, rel=1e-9)


def test_rkd_adds_distances_and_angles():
    expected = KD + 25 * distances(NARROW, GIVEN.teacher) + 50 * angles(NARROW, GIVEN.teacher)
    found = rkd(STUDENT, LABELS, TEACHER, Features(NARROW, GIVEN.teacher))
    torch.testing.assert_close(found, expected)


def test_relations_do_not_change_with_rotation_shift_and_scale():
    rotation, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    moved = 3 * GIVEN.teacher @ rotation + 5
    assert float(distances(moved, GIVEN.teacher)) == pytest.approx(0, abs=1e-12)
    assert float(angles(moved, GIVEN.teacher)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("term", [distances, angles])
def test_gradients_of_relations_agree_with_finite_differences(term):
    student = NARROW.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: term(s, GIVEN.teacher), (student,))


@pytest.mark.parametrize("term", [distances, angles])
@pytest.mark.parametrize("student", [torch.zeros(BATCH, 4), torch.ones(1, 4)], ids=["collapsed", "one"])
def test_samples_that_do_not_differ_have_finite_relations(term, student):
    student = student.requires_grad_()
    loss = term(student, GIVEN.teacher[: len(student)].float())
    loss.backward()
    assert bool(loss.isfinite())
    assert bool(student.grad.isfinite().all())


@pytest.mark.parametrize("labels", [LABELS, HALF, SHARES], ids=["all", "half", "shares"])
def test_centre_is_its_formula(labels):
    shares = (
        labels.numpy() if labels is SHARES else np.eye(CLASSES)[labels] * (labels >= 0).numpy()[:, None]
    )
    expected = 0.0
    for x, row in zip(GIVEN.student.numpy(), shares, strict=True):
        for share, centre_of_class in zip(row, GIVEN.centres.numpy(), strict=True):
            expected += share * ((x - centre_of_class) ** 2).sum() / 2 / BATCH
    found = float(to_centres(GIVEN.student, labels, GIVEN.centres))
    assert found == pytest.approx(expected, rel=1e-6)
    logits = float(kd(STUDENT, labels, TEACHER, ce_weight=1, kd_weight=0))
    whole = float(centre(STUDENT, labels, TEACHER, GIVEN))
    assert whole == pytest.approx(logits + 0.003 * expected, rel=1e-6)


def test_features_are_pulled_straight_to_their_centres():
    student = GIVEN.student.clone().requires_grad_()
    to_centres(student, HALF, GIVEN.centres).backward()
    expected = (GIVEN.student - GIVEN.centres[HALF]) * (HALF >= 0)[:, None] / BATCH
    torch.testing.assert_close(student.grad, expected)


def test_centre_without_centres_is_refused():
    with pytest.raises(ConfigError, match=r"loss 'centre' needs centres, .* \(C, Dt\)"):
        centre(STUDENT, LABELS, TEACHER, Features(GIVEN.student, GIVEN.teacher))


@pytest.mark.parametrize("name", OF_FEATURES)
def test_the_weights_of_kd_are_its_own(name):
    settings = {"temperature": 3, "ce_weight": 0.2, "kd_weight": 0.7}
    terms = {"feature_weight", "distance_weight", "angle_weight"}
    off = dict.fromkeys(terms & set(defaults(name)), 0)
    found = LOSSES[name].function(STUDENT, LABELS, TEACHER, GIVEN, **settings, **off)
    torch.testing.assert_close(found, kd(STUDENT, LABELS, TEACHER, **settings))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OF_FEATURES)
def test_features_are_compared_in_single_precision(name, dtype):
    tensors = {key: getattr(GIVEN, key).to(dtype) for key in ("student", "teacher", "negatives", "centres")}
    given, exact = (
        replace(GIVEN, **{k: v.to(d) for k, v in tensors.items()}) for d in (dtype, torch.float32)
    )
    loss, logits = LOSSES[name].function, (STUDENT.float(), LABELS, TEACHER.float())
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(*logits, given)
    assert found.dtype == torch.float32
    assert torch.equal(found, loss(*logits, exact))
    double = loss(STUDENT, LABELS, TEACHER, replace(exact, **{k: v.double() for k, v in tensors.items()}))
    assert float(found) == pytest.approx(float(double), rel=1e-5)


@pytest.mark.parametrize("name", OF_FEATURES)
def test_a_loss_trains_student_and_projection_from_features_as_they_are(name):
    """Through the interface that the table declares."""
    line, needs = LOSSES[name], LOSSES[name].features
    torch.manual_seed(0)
    student = torch.randn(BATCH, 12, requires_grad=True)
    raw = Features(
        student,
        torch.randn(BATCH, 20),
        torch.randn(3, 20) if needs.negatives else None,
        centres=torch.randn(CLASSES, 20) if needs.centres else None,
    )
    projection = nn.Identity() if needs.projection is None else needs.projection(12, 20)
    loss = line.function(STUDENT.float(), LABELS, TEACHER.float(), projection(raw))
    loss.backward()
    assert student.grad.any(1).all()
    assert all(p.grad.any() for p in projection.parameters())


def test_embeddings_have_length_one():
    embedded = ContrastProjection(12, 20)(
        Features(torch.randn(BATCH, 12), torch.randn(BATCH, 20), torch.randn(3, 20))
    )
    for vectors in (embedded.student, embedded.teacher, embedded.negatives):
        assert vectors.shape[1] == 128
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))


def test_a_student_as_wide_as_its_teacher_is_not_projected_to_centres():
    assert not list(CentreProjection(20, 20).parameters())
    assert torch.equal(CentreProjection(6, 6)(GIVEN).student, GIVEN.student)


def test_two_samples_of_the_same_features_do_not_blow_gradients_up():
    student = torch.randn(BATCH, 12, generator=torch.Generator().manual_seed(3))
    student[1] = student[0]
    student.requires_grad_()
    angles(student, torch.randn(BATCH, 20, generator=torch.Generator().manual_seed(4))).backward()
    assert student.grad.any()
    assert float(student.grad.abs().max()) < 1
