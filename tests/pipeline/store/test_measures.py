"""A layout tells the measures of all but a softmax, and refuses forged ones."""

from __future__ import annotations

import pytest

from pipeline.codecs import find_codec
from pipeline.codecs.rule import SOFTMAX, Measures
from pipeline.store.layout import Layout, Section

SIGMOID = Measures(divergences=("kl_bernoulli",), agreement="tags", link="sigmoid", scales=(1.0, 2.0))


def _layout(measures: Measures) -> Layout:
    sections = {"train": Section(name="train", extents=((0, 10),), n_views=1)}
    codec = find_codec("affine8", 2, absolute=measures.is_absolute)
    return Layout(
        codec="affine8",
        arrays=codec.arrays,
        n_classes=2,
        shard_rows=10,
        sections=sections,
        measures=measures,
    )


@pytest.mark.parametrize("measures", [SOFTMAX, SIGMOID])
def test_a_layout_comes_back_with_its_measures(measures):
    assert Layout.from_dict(_layout(measures).to_dict()) == _layout(measures)


def test_a_softmax_is_not_told_as_in_stores_of_older_versions():
    assert "measures" not in _layout(SOFTMAX).to_dict()


@pytest.mark.parametrize(
    "forged",
    [
        None,
        {},
        {"divergences": [], "agreement": "tags", "link": "sigmoid"},
        {"divergences": ["kl"], "agreement": "tags", "link": "softplus"},
        {"divergences": ["kl"], "agreement": "no text", "link": "sigmoid"},
        {"divergences": ["kl"], "agreement": "tags", "link": "sigmoid", "scales": [1.0]},
        {"divergences": ["kl"], "agreement": "tags", "link": "sigmoid", "scales": [1.0, 0.0]},
        {"divergences": ["kl"], "agreement": "tags", "link": "sigmoid", "scales": [1.0, float("inf")]},
        {"divergences": ["kl"], "agreement": "tags", "link": "sigmoid", "code": "mine:TASK"},
    ],
    ids=str,
)
def test_forged_measures_are_refused(forged):
    with pytest.raises((ValueError, TypeError)):
        Layout.from_dict({**_layout(SIGMOID).to_dict(), "measures": forged})
