"""The task of vectors: neighbours and alignment against brute force, and costs by angle and length."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.tasks.embedding import EMBEDDING, linear_cka

GENERATOR = torch.Generator().manual_seed(0)
CENTRES = torch.randn(4, 16, generator=GENERATOR)
LABELS = torch.arange(120) % 4
VECTORS = CENTRES[LABELS] + 1.5 * torch.randn(120, 16, generator=GENERATOR)


def test_neighbours_vote_by_their_cosine():
    x = torch.nn.functional.normalize(VECTORS.double(), dim=1).numpy()
    right = 0
    for row in range(120):
        cosines = x @ x[row]
        cosines[row] = -np.inf
        near = np.argsort(-cosines)[:20]
        votes = [np.exp(cosines[near] / 0.07)[LABELS[near].numpy() == c].sum() for c in range(4)]
        right += int(np.argmax(votes)) == int(LABELS[row])
    assert 40 < right < 120
    assert EMBEDDING.compare(VECTORS, LABELS).knn == pytest.approx(right / 120)


def test_lengths_and_unlabelled_samples_change_no_neighbours():
    scaled = VECTORS * torch.rand(120, 1, generator=GENERATOR).add(0.5)
    assert EMBEDDING.compare(scaled, LABELS).knn == EMBEDDING.compare(VECTORS, LABELS).knn
    more = torch.cat([VECTORS, -VECTORS[:9]])
    found = EMBEDDING.compare(more, torch.cat([LABELS, torch.full((9,), -1)]))
    assert found.knn == EMBEDDING.compare(VECTORS, LABELS).knn


@pytest.mark.parametrize(
    "labels",
    [torch.full((120,), -1), torch.zeros(120, 3, dtype=torch.int8), torch.zeros(120, 2)],
    ids=["unlabelled", "tags", "numbers"],
)
def test_without_classes_there_are_no_neighbours(labels):
    found = EMBEDDING.compare(VECTORS, labels)
    assert (found.knn, found.score, found.headline) == (None, None, "")
    assert EMBEDDING.calibrate((VECTORS, labels), (VECTORS, labels)) == {"probe": None}
    assert EMBEDDING.quality(VECTORS, labels.numpy()) is None


def test_alignment_is_blind_to_rotation_and_scale_and_takes_any_widths():
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=GENERATOR))[0]
    found = EMBEDDING.compare(VECTORS, LABELS, 3 * VECTORS @ rotation)
    assert found.cka == pytest.approx(1)
    assert abs(found.cosine) < 0.3
    narrow = EMBEDDING.compare(VECTORS[:, :8], LABELS, VECTORS)
    assert (narrow.cosine, 0 < narrow.cka < 1) == (None, True)
    # By Gram matrices, as the paper defines it.
    x, y = (v - v.mean(0) for v in (VECTORS[:, :8].double(), VECTORS.double()))
    k, m = x @ x.T, y @ y.T
    assert narrow.cka == pytest.approx(float((k * m).sum() / (k.norm() * m.norm())))
    assert linear_cka(torch.ones(5, 2), torch.ones(5, 3)) == 0


def test_a_linear_probe_finds_classes_that_neighbours_do_not():
    # The class is in one direction, drowned by the others.
    x = torch.randn(400, 12, generator=GENERATOR) * torch.tensor([0.3] + [5.0] * 11)
    labels = (x[:, 0] > 0).long()
    found = EMBEDDING.calibrate((x[:200], labels[:200]), (x[200:], labels[200:]))
    assert found["probe"] > 0.9 > EMBEDDING.compare(x, labels).knn


def test_costs_are_of_angle_and_of_relative_length():
    vectors = VECTORS.double()
    turned = torch.cat([vectors[:, :1].neg(), vectors[:, 1:]], 1)
    cosine, error = EMBEDDING.diverge(vectors, turned).T
    expected = (vectors - turned).square().sum(1) / vectors.square().sum(1)
    torch.testing.assert_close(error, expected)
    # Both have one length, so the squared chord is twice 1 - cosine.
    torch.testing.assert_close(cosine, expected / 2)
    assert EMBEDDING.diverge(vectors, 2 * vectors)[:, 0].max() < 1e-12
    assert EMBEDDING.agree(vectors, 2 * vectors).all()
    assert torch.equal(EMBEDDING.agree(vectors, turned), cosine <= 0.01)
    assert EMBEDDING.diverge(torch.zeros(1, 3), torch.zeros(1, 3)).isfinite().all()


def test_a_teacher_without_classes_in_its_vectors_is_refused():
    noise = torch.randn(120, 16, generator=GENERATOR)
    quality = EMBEDDING.quality(noise, LABELS.numpy())
    assert "kNN" in str(EMBEDDING.weakness(quality, LABELS.numpy(), "test"))
    good = EMBEDDING.quality(VECTORS, LABELS.numpy())
    assert EMBEDDING.weakness(good, LABELS.numpy(), "test") is None
