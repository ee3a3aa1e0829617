"""Messages quote values of any size and kind."""

from __future__ import annotations

import pytest

from pipeline.core.errors import brief, did_you_mean, quoted
from pipeline.core.text import require_name
from tests.pipeline.store.forging import nested


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("main", "'main'"),
        ("a\nb\x1b[31m", r"'a\nb\x1b[31m'"),
        ("\u202egnp", r"'\u202egnp'"),
        ("\ud800", r"'\ud800'"),
        ("größe 猫", "'größe 猫'"),
        (3, "3"),
        pytest.param(10**5000, "a int", id="huge"),
    ],
)
def test_values_are_quoted_so_that_a_terminal_shows_them(value, text):
    assert quoted(value) == text


@pytest.mark.parametrize(
    "value",
    ["x" * 10**6, b"x" * 10**6, ["x" * 1000] * 1000, nested(5000)],
    ids=["text", "bytes", "list", "nested"],
)
def test_quotes_are_bounded(value):
    assert len(quoted(value)) <= 200


def test_a_text_is_cut_to_its_first_line():
    assert brief("first\nsecond") == "first"
    assert brief("") == ""
    assert brief("a\x1bb") == r"a\x1bb"
    assert len(brief("x" * 10**6)) == 200


def test_a_long_name_is_compared_by_its_beginning():
    assert did_you_mean("x" * 10**6, ["main"]) == ""


@pytest.mark.parametrize("name", ["", "-a", "a/b", "..", "a b", "a.b", "é", "x" * 65, "a\n"])
def test_names_keep_the_rule(name):
    with pytest.raises(ValueError, match="expected 1 to 64 characters"):
        require_name("teacher", name)
