"""Text that people write: YAML, of which what PyYAML passes over is refused, and names."""

from __future__ import annotations

import pytest

from pipeline.core.errors import ConfigError, quoted, shortened
from pipeline.core.text import LARGEST_BYTES, parse_yaml, read_yaml, require_name


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a: 1\nb: 2\na: 3", "key 'a' appears in lines 1 and 3"),
        ("x:\n  a: 1\n  'a': 2", "key 'a' appears in lines 2 and 3"),
        ("x: {a: 1, b: 2,\n  a: 3}", "key 'a' appears in lines 1 and 2"),
        ("- a: 1\n  a: 1", "key 'a' appears in lines 1 and 2"),
        ("yes: 1\ntrue: 2", "key 'true' appears in lines 1 and 2"),
        ("16: 1\n0x10: 2", "key '0x10' appears in lines 1 and 2"),
        ("x: &a {k: 1}\ny: {<<: *a, k: 2,\n  k: 3}", "key 'k' appears in lines 2 and 3"),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_both_lines(text, found):
    with pytest.raises(ValueError, match=found):
        parse_yaml(text)


def test_equal_keys_of_different_mappings_are_fine():
    assert parse_yaml("x: {a: 1}\ny: {a: 1}") == {"x": {"a": 1}, "y": {"a": 1}}


def test_merge_keys_are_as_pyyaml_has_them():
    text = "x: &x {k: 1, j: 0}\ny: &y {<<: *x, k: 2}\nz: {<<: [*y, *x], i: 3}\nw: {<<: *y}"
    parsed = parse_yaml(text)
    assert parsed["y"] == parsed["w"] == {"k": 2, "j": 0}
    assert parsed["z"] == {"k": 2, "j": 0, "i": 3}


@pytest.mark.parametrize(
    "text", ["2024-13-45", "!!int x", "!!timestamp x", "!!bool x", "!!int ''", "9" * 5000]
)
def test_a_value_of_which_python_makes_nothing_is_refused_with_its_line(text):
    with pytest.raises(ValueError, match=r"is not a valid .*line 2") as caught:
        parse_yaml(f"a: 1\nb: {text}")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("opening", ["[", "{a: "])
def test_thousands_of_brackets_are_refused_in_one_line(opening):
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_yaml(opening * 3000)


def test_a_file_without_an_end_is_refused(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"#" * (LARGEST_BYTES + 1))
    with pytest.raises(ValueError, match="more than 8 MiB"):
        read_yaml(tmp_path / "x.yaml")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_file_is_utf_8_whatever_the_locale(tmp_path, encoding):
    (tmp_path / "x.yaml").write_text("a: é", encoding=encoding)
    assert read_yaml(tmp_path / "x.yaml") == {"a": "é"}


@pytest.mark.parametrize("content", [b"a: \xe9", "a: 1".encode("utf-16")])
def test_a_file_in_another_encoding_is_refused(tmp_path, content):
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(ValueError, match="not UTF-8 text"):
        read_yaml(tmp_path / "x.yaml")


# Names that a user gives, and the values that messages repeat


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
