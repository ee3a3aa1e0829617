"""The rule for names, and the values that messages repeat."""

from __future__ import annotations

import pytest

from pipeline.core.errors import ConfigError, quoted, shortened
from pipeline.core.text import require_name


@pytest.mark.parametrize("name", ["a", "0", "main-4_views", "2024", "A" * 64, "x--y_"])
def test_a_name_of_letters_digits_hyphens_and_underscores_passes(name):
    assert require_name("dump", name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "-x",
        "_x",
        ".",
        "..",
        "a.b",
        "a b",
        "a/b",
        "../up",
        "a\n",
        "a\0",
        "ü",
        "１",
        "$(x)",
        "x;y",
        "a" * 65,
    ],
)
def test_any_other_name_is_refused_in_one_line_that_shows_it(name):
    with pytest.raises(ConfigError, match=r"dump name .*expected 1 to 64") as caught:
        require_name("dump", name)
    assert "\n" not in str(caught.value)
    assert repr(name) in str(caught.value)


def test_a_message_repeats_no_more_of_a_value_than_its_ends():
    with pytest.raises(ConfigError) as caught:
        require_name("student", "a" * 100_000)
    assert len(str(caught.value)) < 400
    assert quoted({"a": "b"}) == "{'a': 'b'}"
    assert shortened("0123456789", 5) == "01…89"
    assert shortened("01234", 5) == "01234"
