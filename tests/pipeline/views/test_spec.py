"""Specs of views: ranges, contradictions, canonical form and digest."""

from __future__ import annotations

import json
import math

import pytest

from pipeline.errors import ConfigError
from pipeline.views.augmentations import PadCrop, RandomResizedCrop
from pipeline.views.spec import SEMANTICS, ViewSpec

SPECS = (
    ViewSpec(),
    ViewSpec(seed=1),
    ViewSpec(flip="random"),
    ViewSpec(flip="alternating"),
    ViewSpec(pad_crop=PadCrop()),
    ViewSpec(pad_crop=PadCrop(padding=2)),
    ViewSpec(random_resized_crop=RandomResizedCrop()),
    ViewSpec(random_resized_crop=RandomResizedCrop(scale=(0.5, 1.0))),
    ViewSpec(random_resized_crop=RandomResizedCrop(ratio=(1.0, 1.0))),
)


@pytest.mark.parametrize("padding", [-1, 0, 65])
def test_padding_out_of_range_is_refused(padding):
    with pytest.raises(ConfigError, match=rf"pad_crop.padding is {padding}; expected 1 to 64"):
        PadCrop(padding=padding)


@pytest.mark.parametrize("padding", [1, 64])
def test_padding_at_its_limits_is_accepted(padding):
    assert PadCrop(padding=padding).padding == padding


@pytest.mark.parametrize("scale", [(0, 1), (-0.1, 1), (0.5, 0.4), (0.5, 1.1), (math.nan, 1)])
def test_scale_out_of_range_is_refused(scale):
    with pytest.raises(ConfigError, match=r"random_resized_crop.scale is \["):
        RandomResizedCrop(scale=scale)


@pytest.mark.parametrize("ratio", [(0, 1), (-1, 1), (1.3, 0.7), (1, math.inf), (1, math.nan)])
def test_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(ConfigError, match=r"random_resized_crop.ratio is \["):
        RandomResizedCrop(ratio=ratio)


@pytest.mark.parametrize("seed", [-1, 1 << 64])
def test_seed_out_of_range_is_refused(seed):
    with pytest.raises(ConfigError, match=r"views.seed is .* expected 0 to 2\^64 - 1"):
        ViewSpec(seed=seed)


def test_two_ways_to_crop_are_a_contradiction():
    with pytest.raises(ConfigError, match="both pad_crop and random_resized_crop"):
        ViewSpec(pad_crop=PadCrop(), random_resized_crop=RandomResizedCrop())


def test_canonical_form_is_plain_json_with_the_semantics_of_rendering():
    for spec in SPECS:
        canonical = spec.canonical()
        assert canonical["semantics"] == SEMANTICS
        json.dumps(canonical, allow_nan=False)


def test_every_field_is_in_the_digest():
    assert len({spec.digest() for spec in SPECS}) == len(SPECS)


def test_digest_is_that_of_older_stores():
    """A store made before a change must be found again: these two change only with SEMANTICS."""
    spec = ViewSpec(seed=1, pad_crop=PadCrop(padding=2), flip="random")
    assert spec.digest() == "d70e6e3327cf1af99ec1236660f3b3c1379fe0e12a4c72ce423376effcdd4e9a"
    crop = ViewSpec(seed=1, random_resized_crop=RandomResizedCrop(scale=(0.25, 1.0)))
    assert crop.digest() == "758abde8c4d8b7e9d5fb805fdbb05efd958a596ae89a2b1c3f6518d9ee847187"


def test_equal_specs_have_equal_digests():
    floats = ViewSpec(random_resized_crop=RandomResizedCrop(scale=(0.5, 1.0), ratio=(1.0, 2.0)))
    integers = ViewSpec(random_resized_crop=RandomResizedCrop(scale=(0.5, 1), ratio=(1, 2)))
    assert floats == integers
    assert floats.digest() == integers.digest()
