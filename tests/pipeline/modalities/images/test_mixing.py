"""Mixing: partners inside groups of a view's own permutation, boxes and shares, Beta in integers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from pipeline.core.errors import ConfigError
from pipeline.core.random import Draws
from pipeline.modalities.images.augmentations import Cutmix, Grayscale, Mixup
from pipeline.modalities.images.geometry import UNIT
from pipeline.modalities.images.mixing import draw_mixture
from pipeline.modalities.images.spec import ViewSpec
from pipeline.views.pairing import BLOCK_ROWS, GROUP, Pairing, group_starts, require_whole_groups
from pipeline.views.shares import WHOLE, beta_table
from tests.pipeline.modalities.images.distributions import COUNT, KEYS, correlated, differ, uneven

# Blocks of 11, 8, 1, 2, 3, 4 and 5 samples, in no order.
BLOCKS = np.random.default_rng(1).permutation(np.repeat([7, 3, 0, 9, 4, 1, 5], [11, 8, 1, 2, 3, 4, 5]))
ROWS = np.arange(len(BLOCKS))
ALPHAS = (0.05, 0.2, 0.4, 0.8, 1.0, 2.0, 2.5, 8.0)


@pytest.fixture
def pairing() -> Pairing:
    return Pairing(5, KEYS[: len(BLOCKS)], BLOCKS)


def _groups(pairing: Pairing, view: int) -> list[list[int]]:
    whole, odd = pairing.groups(view)
    return [*whole.tolist(), *(group.tolist() for group in odd)]


# Who is mixed with whom.


@pytest.mark.parametrize("view", range(4))
def test_groups_hold_every_sample_once_and_are_of_one_block(pairing, view):
    groups = _groups(pairing, view)
    assert sorted(itertools.chain(*groups)) == ROWS.tolist()
    assert all(len(set(BLOCKS[group])) == 1 for group in groups)


@pytest.mark.parametrize(
    ("count", "sizes"),
    [
        *((1, [1]), (2, [2]), (3, [3]), (4, [4]), (5, [5]), (7, [7])),
        *((8, [4, 4]), (9, [4, 5]), (11, [4, 7]), (12, [4, 4, 4]), (15, [4, 4, 7])),
    ],
)
def test_what_is_over_joins_the_last_group(count, sizes):
    pairing = Pairing(0, KEYS[:count])
    assert sorted(len(group) for group in _groups(pairing, 0)) == sizes
    whole, odd = pairing.groups(0)
    assert whole.shape[1] == GROUP
    assert [len(group) for group in odd] == [size for size in sizes if size != GROUP]
    assert np.diff([*group_starts(count), count]).tolist() == sizes


@pytest.mark.parametrize("view", range(4))
def test_a_partner_is_the_next_one_round_in_the_group(pairing, view):
    partners = pairing.partners(view, ROWS)
    for group in _groups(pairing, view):
        assert partners[group].tolist() == [*group[1:], group[0]]


@pytest.mark.parametrize("count", range(1, 9))
def test_nobody_is_its_own_partner_but_who_is_alone(count):
    pairing = Pairing(0, KEYS[:count])
    for view in range(5):
        partners = pairing.partners(view, np.arange(count))
        assert (partners == np.arange(count)).any() == (count == 1)
        assert sorted(partners) == list(range(count))


def test_partners_of_some_rows_are_those_that_they_have_among_all(pairing):
    whole = pairing.partners(3, ROWS)
    rows = np.random.default_rng(2).permutation(ROWS)[:13]
    assert np.array_equal(pairing.partners(3, rows), whole[rows])
    for row in rows:
        assert pairing.partners(3, np.array([row])) == whole[row]
    assert len(pairing.partners(3, rows[:0])) == 0


def test_partners_do_not_depend_on_where_samples_stand():
    """A store's rows and a student's split have different orders; a block's members are the same."""
    order = np.random.default_rng(3).permutation(ROWS)
    here = Pairing(5, KEYS[ROWS], BLOCKS)
    there = Pairing(5, KEYS[order], BLOCKS[order])
    for view in range(3):
        assert np.array_equal(order[there.partners(view, ROWS)], here.partners(view, order))


def test_a_block_has_its_partners_whatever_other_blocks_there_are(pairing):
    rows = np.flatnonzero(BLOCKS == 7)
    alone = Pairing(5, KEYS[rows], BLOCKS[rows])
    assert np.array_equal(rows[alone.partners(2, np.arange(len(rows)))], pairing.partners(2, rows))


def test_views_and_seeds_have_their_own_partners():
    rows = np.arange(400)
    first, other = (Pairing(seed, KEYS[rows]).partners(0, rows) for seed in (0, 1))
    second = Pairing(0, KEYS[rows]).partners(1, rows)
    for partners in (other, second):
        assert (partners == first).sum() < 10  # one in expectation


def test_a_split_without_blocks_is_cut_in_its_order():
    count = BLOCK_ROWS + 10
    keys = np.arange(count, dtype=np.uint64)
    plain = Pairing(0, keys).partners(0, np.arange(count))
    assert ((plain < BLOCK_ROWS) == (np.arange(count) < BLOCK_ROWS)).all()
    assert np.array_equal(
        plain, Pairing(0, keys, np.arange(count) // BLOCK_ROWS).partners(0, np.arange(count))
    )


@pytest.mark.parametrize("count", [1, 7, len(BLOCKS)])
def test_arranged_rows_hold_each_once_with_groups_side_by_side(pairing, count):
    rows = np.random.default_rng(4).permutation(ROWS)[:count]
    arranged = pairing.arrange(1, rows)
    assert sorted(arranged) == list(range(count))
    group_of = {row: number for number, group in enumerate(_groups(pairing, 1)) for row in group}
    met = [number for number, _ in itertools.groupby(group_of[row] for row in rows[arranged])]
    assert len(met) == len(set(met))


@pytest.mark.parametrize("batch_size", [4, 8, 12])
def test_arranged_batches_of_whole_groups_need_no_image_of_another_batch(batch_size):
    """But for the odd last group of a block, which here has none."""
    rows = np.arange(48)
    pairing = Pairing(0, KEYS[rows], rows // 16)
    arranged = rows[pairing.arrange(0, rows)]
    for start in range(0, 48, batch_size):
        batch = arranged[start : start + batch_size]
        assert set(pairing.partners(0, batch)) == set(batch)


@pytest.mark.parametrize("count", [63, 64])
def test_partners_over_many_views_are_as_good_as_drawn_freely(count):
    """How often i gets j has the dispersion of free drawing, in one direction and in both together.

    Fixed groups would show, and groups of two, whose dispersion in both directions is 2.
    """
    views, rows = 1500, np.arange(count)
    pairing = Pairing(11, KEYS[rows])
    partners = np.stack([pairing.partners(view, rows) for view in range(views)])
    times = np.zeros((count, count))
    np.add.at(times, (np.tile(rows, views), partners.ravel()), 1)
    others = ~np.eye(count, dtype=bool)
    expected = views / (count - 1)
    # A share of 1 / (count - 1) is drawn: its variance is that much below its mean.
    dispersion = ((times[others] - expected) ** 2).mean() / expected / (1 - 1 / (count - 1))
    assert abs(dispersion - 1) < 4 * np.sqrt(2 / others.sum())
    both = (times + times.T)[np.triu(others)]
    assert (
        abs(((both - 2 * expected) ** 2).mean() / (2 * expected) - 1)
        < 4 * np.sqrt(2 / len(both)) + 2 / count
    )
    for apart in (1, 2, 5):
        repeats = (partners[apart:] == partners[:-apart]).mean()
        chance = 1 / (count - 1)
        assert abs(repeats - chance) < 4 * np.sqrt(chance / partners[apart:].size)


@pytest.mark.parametrize(("batch_size", "ways"), [(1, "4"), (3, "4"), (6, "4 or 8"), (130, "128 or 132")])
def test_batches_that_cut_groups_are_refused(batch_size, ways):
    message = rf"batch_size is {batch_size}, .* groups of 4; expected a multiple of 4; set it to {ways}$"
    with pytest.raises(ConfigError, match=message):
        require_whole_groups(batch_size)


@pytest.mark.parametrize("batch_size", [4, 8, 256])
def test_batches_of_whole_groups_are_accepted(batch_size):
    require_whole_groups(batch_size)


# How they are mixed.


def _drawn(*, view: int = 0, **mixes):
    return draw_mixture(ViewSpec(seed=6, **mixes), Draws(6, view, KEYS))


def test_a_spec_that_does_not_mix_draws_no_mixture():
    assert _drawn(grayscale=Grayscale()) is None


def test_a_mixture_of_some_samples_is_theirs_among_all():
    spec = ViewSpec(seed=6, mixup=Mixup(probability=0.5), cutmix=Cutmix(probability=0.5))
    rows = np.random.default_rng(0).permutation(COUNT)[:50]
    whole, part = draw_mixture(spec, Draws(6, 2, KEYS)), draw_mixture(spec, Draws(6, 2, KEYS[rows]))
    for one in (part, whole[rows]):
        assert np.array_equal(one.levels, whole.levels[rows])
        assert np.array_equal(one.boxes, whole.boxes[rows])
    assert (part.levels.dtype, part.boxes.dtype) == (np.int32, np.int32)


def test_mixup_blends_the_whole_image_and_shares_by_its_level():
    drawn = _drawn(mixup=Mixup(alpha=1.0))
    assert (drawn.boxes == [0, 0, UNIT, UNIT]).all()
    assert np.array_equal(drawn.shares, drawn.levels / WHOLE)
    assert (drawn.levels.min(), drawn.levels.max()) == (0, WHOLE)


def test_cutmix_takes_a_box_inside_the_image_and_shares_by_its_area():
    drawn = _drawn(cutmix=Cutmix(alpha=1.0))
    top, left, height, width = drawn.boxes.astype(np.int64).T
    assert not drawn.levels.any()
    assert min(top.min(), left.min(), height.min(), width.min()) >= 0
    assert max((top + height).max(), (left + width).max()) <= UNIT
    assert np.array_equal(drawn.shares, 1 - height * width / UNIT**2)


def test_a_sample_that_is_not_mixed_has_no_box_and_all_of_its_label():
    drawn = _drawn(mixup=Mixup(probability=0.2), cutmix=Cutmix(probability=0.3))
    untouched = (drawn.levels == WHOLE) & (drawn.boxes[:, 2] == 0)
    assert not drawn.boxes[untouched].any()
    assert (drawn.shares[untouched] == 1).all()
    assert not uneven(untouched, [0.5, 0.5])


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.5, 0.5), (0.2, 0.3), (0.9, 0.1), (0.3, 0.0), (0.0, 0.7)])
def test_mixup_and_cutmix_happen_as_often_as_they_should(mixup, cutmix):
    mixes = {"mixup": Mixup(probability=mixup)} if mixup else {}
    mixes |= {"cutmix": Cutmix(probability=cutmix)} if cutmix else {}
    drawn = _drawn(**mixes)
    whole = (drawn.boxes == [0, 0, UNIT, UNIT]).all(1)
    kinds = np.where(whole, 1, np.where(drawn.levels == 0, 2, 0))
    assert not uneven(kinds, [1 - mixup - cutmix, mixup, cutmix])


def test_mixup_and_cutmix_leave_each_others_samples_as_they_are():
    mixup, cutmix = Mixup(probability=0.4), Cutmix(probability=0.6)
    both, blended, cut = _drawn(mixup=mixup, cutmix=cutmix), _drawn(mixup=mixup), _drawn(cutmix=cutmix)
    whole = (both.boxes == [0, 0, UNIT, UNIT]).all(1)
    assert np.array_equal(whole, (blended.boxes == [0, 0, UNIT, UNIT]).all(1))
    assert np.array_equal(both.levels[whole], blended.levels[whole])
    assert np.array_equal(both.boxes[~whole], cut.boxes[~whole])
    assert np.array_equal(both.levels[~whole], cut.levels[~whole])
    assert not cut.boxes[whole].any()


@pytest.mark.parametrize("alpha", [0.3, 1.0, 3.0])
def test_boxes_of_cutmix_are_distributed_as_torchvisions(alpha):
    ours = _drawn(cutmix=Cutmix(alpha=alpha)).boxes / UNIT
    theirs = _torchvision_boxes(alpha)
    for axis in range(4):
        assert not differ(_coarse(ours[:, axis]), _coarse(theirs[:, axis]))
    assert not differ(_coarse(ours[:, 2] * ours[:, 3]), _coarse(theirs[:, 2] * theirs[:, 3]))
    centres = ours[:, :2] + ours[:, 2:] / 2
    assert not correlated(*centres.T)


def _coarse(parts: np.ndarray) -> np.ndarray:
    """Lambda is in 256ths with us: compare on a grid on which that does not show."""
    return np.floor(parts * 12)


def _torchvision_boxes(alpha: float) -> np.ndarray:
    """Top, left, height, width in sides."""
    image = torch.empty(1, 1, 1, 1).expand(1, 1, UNIT, UNIT)
    cut = v2.CutMix(alpha=alpha, num_classes=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = np.array([cut.make_params([image])["box"] for _ in range(COUNT)]) / UNIT
    left, top, right, bottom = drawn.T
    return np.stack([top, left, bottom - top, right - left], axis=1)


# Beta in integers.


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("probability", [0.5, 1.0])
def test_levels_of_mixup_are_distributed_as_beta(alpha, probability):
    views = [_drawn(mixup=Mixup(alpha=alpha, probability=probability), view=view) for view in range(5)]
    drawn = np.concatenate([drawn.levels[drawn.boxes[:, 2] > 0] for drawn in views])
    theirs = np.random.default_rng(0).beta(alpha, alpha, len(drawn))
    assert not differ(drawn, np.floor(theirs * WHOLE + 0.5))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_table_is_symmetric_and_never_falls(alpha):
    table = beta_table(alpha).astype(np.int64)
    assert table.shape == (WHOLE,)
    assert (np.diff(table) >= 0).all()
    assert np.array_equal(table + table[::-1], np.full(WHOLE, 1 << 32))


@pytest.mark.parametrize(
    ("alpha", "distribution"),
    [
        (0.5, lambda x: 2 / np.pi * np.arcsin(np.sqrt(x))),
        (1.0, lambda x: x),
        (1.5, lambda x: (2 * np.arcsin(np.sqrt(x)) - np.sin(4 * np.arcsin(np.sqrt(x))) / 2) / np.pi),
        (2.0, lambda x: 3 * x**2 - 2 * x**3),
        (3.0, lambda x: 10 * x**3 - 15 * x**4 + 6 * x**5),
    ],
)
def test_the_table_is_the_distribution_function_between_levels(alpha, distribution):
    ends = (np.arange(WHOLE) + 0.5) / WHOLE
    assert np.abs(beta_table(alpha) - distribution(ends) * 2**32).max() < 0.51
