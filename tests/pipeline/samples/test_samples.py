"""Names: a compact sequence of str."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from pipeline.core.errors import DataError
from pipeline.samples.samples import Names

SOME = ["a", "", "train/ä b.png", "\u2028x", "z"]


def test_names_are_a_sequence_of_what_went_in():
    names = Names.of(iter(SOME))
    assert (list(names), len(names)) == (SOME, 5)
    assert (names[-1], names[np.int64(2)], list(names[1:3])) == ("z", SOME[2], SOME[1:3])
    assert names.index("z") == 4
    with pytest.raises(IndexError):
        names[5]


@pytest.mark.parametrize("rows", [[], [3, 1, 1], [4, 3, 2, 1, 0]])
def test_a_subset_is_written_and_read_as_its_own_names(rows):
    part = Names.of(SOME).subset(np.array(rows, np.int64))
    assert list(part) == [SOME[row] for row in rows]
    assert list(Names.parse(part.to_bytes())) == list(part)
    assert list(pickle.loads(pickle.dumps(part))) == list(part)


def test_no_names_are_none():
    assert list(Names.of([])) == list(Names.parse(b"")) == []


@pytest.mark.parametrize(
    ("name", "what"), [("a\nb", "line break"), ("caf\udce9", "name is not valid UTF-8")]
)
def test_a_name_that_cannot_be_written_down_is_refused(name, what):
    with pytest.raises(DataError, match=what):
        Names.of(["a", name])
