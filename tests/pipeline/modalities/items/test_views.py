"""Views of histories: what each operation does, and that nothing depends on batch or order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.core.errors import ConfigError, MismatchError
from pipeline.core.hashing import content_digest, sample_key
from pipeline.modalities.items.form import history_form
from pipeline.modalities.items.operations import MASKED, Histories, carry_out
from pipeline.modalities.items.preprocessing import GivenItems, ItemsPreprocessing
from pipeline.modalities.items.rendering import ItemsRenderer
from pipeline.modalities.items.spec import Crop, ItemsViews, Mask, Reorder
from pipeline.samples.packed import PackedSplit, offsets_of
from pipeline.samples.samples import Names

C = 40
EVERYTHING = ItemsViews(seed=5, crop=Crop(), mask=Mask(), reorder=Reorder())


def histories(count: int = 200) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.permutation(C)[: 1 + n % 30].astype(np.int32) for n in range(count)]


def split_of(arrays: list[np.ndarray]) -> PackedSplit:
    form, shapes = (
        history_form([f"item {n}" for n in range(C)]),
        np.array([a.shape for a in arrays], np.int32),
    )
    return PackedSplit(
        values=np.concatenate(arrays),
        form=form,
        offsets=offsets_of(shapes, form)[:-1],
        shapes=shapes,
        labels=np.zeros(len(arrays), np.int64),
        keys=np.array([sample_key(str(n)) for n in range(len(arrays))], np.uint64),
        digests=np.array([content_digest(a, 0) for a in arrays], np.uint64),
        names=Names.of(map(str, range(len(arrays)))),
    )


def shown(spec: ItemsViews, view: int = 0) -> list[np.ndarray]:
    arrays = histories()
    keys = split_of(arrays).keys
    return carry_out(spec, view, keys, Histories.of(arrays)).split()


def contains(whole: np.ndarray, part: np.ndarray) -> bool:
    return any((whole[n : n + len(part)] == part).all() for n in range(len(whole) - len(part) + 1))


def test_a_crop_is_a_span_of_the_right_length():
    found = shown(ItemsViews(crop=Crop(scale=(0.5, 0.8))))
    for whole, part in zip(histories(), found, strict=True):
        assert contains(whole, part)
        assert max(1, 0.5 * len(whole) - 0.51) <= len(part) <= max(1, 0.8 * len(whole) + 0.51)
    starts = {
        int(np.flatnonzero(w == p[0])[0]) for w, p in zip(histories(), found, strict=True) if len(w) == 30
    }
    assert len(starts) > 2
    ends = shown(ItemsViews(crop=Crop(scale=(0.5, 0.8), place="end")))
    assert all(part[-1] == whole[-1] for whole, part in zip(histories(), ends, strict=True))


def test_a_mask_hides_its_share_and_never_everything():
    found = shown(ItemsViews(mask=Mask(probability=0.3)))
    hidden = np.concatenate(found) == MASKED
    assert hidden.mean() == pytest.approx(0.3, abs=0.03)
    for whole, part in zip(histories(), found, strict=True):
        assert ((part == whole) | (part == MASKED)).all()
    all_but_one = shown(ItemsViews(mask=Mask(probability=1)))
    assert all((part != MASKED).sum() == 1 for part in all_but_one)


def test_a_shuffle_moves_one_span_alone():
    found = shown(ItemsViews(reorder=Reorder(share=0.4)))
    moved = 0
    for whole, part in zip(histories(), found, strict=True):
        assert sorted(whole) == sorted(part)
        places = np.flatnonzero(whole != part)
        moved += len(places)
        if len(places):
            assert np.ptp(places) < 0.4 * len(whole) + 0.51
    assert moved > 200
    assert all(
        (a == b).all()
        for a, b in zip(histories(), shown(ItemsViews(reorder=Reorder(share=0))), strict=True)
    )


def test_one_operation_per_view_as_in_cl4srec():
    spec = ItemsViews(
        apply="one", crop=Crop(scale=(0.5, 0.5)), mask=Mask(probability=0.5), reorder=Reorder()
    )
    kinds = []
    for whole, part in zip(histories(), shown(spec), strict=True):
        if len(whole) < 10:
            continue
        if len(part) < len(whole):
            kinds.append("crop")
            assert contains(whole, part)
        elif (part == MASKED).any():
            kinds.append("mask")
            assert ((part == whole) | (part == MASKED)).all()
        else:
            kinds.append("reorder")
            assert sorted(part) == sorted(whole)
    assert all(kinds.count(kind) > len(kinds) / 6 for kind in ("crop", "mask", "reorder"))


def test_views_depend_on_neither_batch_nor_order():
    split = split_of(histories())
    seen = ItemsPreprocessing(items=C, max_length=16)
    renderer = ItemsRenderer(split, EVERYTHING, seen)
    whole = renderer.render(3, np.arange(len(split)))
    order = np.random.default_rng(1).permutation(len(split))
    assert torch.equal(renderer.render(3, order), whole[torch.from_numpy(order)])
    for rows in (order[:1], order[1:8]):
        assert torch.equal(ItemsRenderer(split, EVERYTHING, seen).render(3, rows), whole[rows])
    assert not torch.equal(renderer.render(4, np.arange(len(split))), whole)
    evidence = renderer.evidence(3, order[:9])
    assert all((a == b).all() for a, b in zip(evidence, renderer.evidence(3, order), strict=False))


def test_histories_are_cut_at_the_beginning_and_padded_in_front():
    split = split_of([np.arange(5, dtype=np.int32), np.array([7], np.int32)])
    renderer = ItemsRenderer(split, None, ItemsPreprocessing(items=C, max_length=4))
    assert renderer.render(0, np.arange(2)).tolist() == [[2, 3, 4, 5], [0, 0, 0, 8]]
    masked = ItemsRenderer(
        split, ItemsViews(mask=Mask(probability=1)), ItemsPreprocessing(items=C, max_length=8)
    )
    ids = masked.render(0, np.arange(2))
    assert (ids[0] == C + 1).sum() == 4
    # Trimmed to the longest, in steps of 8.
    longer = masked.for_model(ItemsPreprocessing(items=C, max_length=20))
    rendered = longer.render(0, np.arange(2))
    assert longer.used(rendered) == (2, slice(12, 20))
    assert longer.lengths(0, np.arange(2)).tolist() == [5, 1]


def test_two_models_see_the_same_view_at_their_own_length():
    split = split_of(histories())
    long = ItemsRenderer(split, EVERYTHING, ItemsPreprocessing(items=C, max_length=30))
    short = long.for_model(ItemsPreprocessing(items=C, max_length=5))
    rows = np.arange(50)
    assert torch.equal(long.render(2, rows)[:, -5:], short.render(2, rows))


def test_the_bytes_of_a_view_are_pinned():
    digest = content_digest(np.concatenate(shown(EVERYTHING, view=7)), 0)
    assert digest == PINNED


PINNED = 18194691880107077397


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Crop(scale=(0.0, 1.0)), r"crop.scale is \[0.0, 1.0\]; expected two shares"),
        (lambda: Crop(place="begin"), "crop.place is 'begin'; expected one of random, end"),
        (lambda: Mask(probability=1.5), "mask.probability is 1.5; expected 0 to 1"),
        (lambda: Reorder(share=-1), "reorder.share is -1; expected 0 to 1"),
        (lambda: ItemsViews(apply="two"), "views.apply is 'two'; expected one of all, one"),
        (lambda: GivenItems(max_length=1), "max_length is 1; expected 2 to 32,768"),
    ],
)
def test_values_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_canonical_forms_come_back_and_foreign_ones_do_not():
    assert ItemsViews.from_canonical(EVERYTHING.canonical()) == EVERYTHING
    assert ItemsViews(mask=Mask(probability=1)).digest() == ItemsViews(mask=Mask(probability=1.0)).digest()
    for wrong in ({"semantics": 9}, {"semantics": 1, "insert": {}}, {"semantics": 1, "mask": {"rate": 1}}):
        with pytest.raises(MismatchError):
            ItemsViews.from_canonical(wrong)
    for plain in ({"items": 3}, {"items": 0, "max_length": 5}, {"items": 3, "max_length": True}):
        with pytest.raises(ValueError, match="expected"):
            ItemsPreprocessing.parse(plain)
