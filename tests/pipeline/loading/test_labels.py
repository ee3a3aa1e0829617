"""Tags and numbers of mixed images: weighted by the shares, unknown where a part is unknown."""

from __future__ import annotations

import math

import torch

from pipeline.loading.labels import mixed_values


def test_tags_are_weighted_and_unknown_ones_stay_unknown():
    own = torch.tensor([[1, 0, 1, -1], [1, 0, -1, 1]], dtype=torch.int8)
    partner = torch.tensor([[0, 0, -1, 1], [0, 1, 1, -1]], dtype=torch.int8)
    found = mixed_values(own, partner, torch.tensor([0.75, 1.0]))
    # A share of 1 shows nothing of the partner.
    assert found.tolist() == [[0.75, 0, -1, -1], [1, 0, -1, 1]]


def test_numbers_are_weighted_and_an_unlabelled_part_makes_none():
    own, partner = torch.tensor([[4.0, 0.0], [1.0, 2.0]]), torch.tensor([[0.0, 8.0], [math.nan, math.nan]])
    found = mixed_values(own, partner, torch.tensor([0.25, 0.5]))
    assert found[0].tolist() == [1, 6]
    assert bool(found[1].isnan().all())
    whole = mixed_values(own, partner, torch.tensor([1.0, 1.0]))
    assert torch.equal(whole, own)
