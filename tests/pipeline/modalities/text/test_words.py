"""Words are found alike on every machine, and samples give back their texts."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.modalities.text.words import BORDER, Dictionary, WordIndex, packed, pieces_of, ranges, text_of
from tests.pipeline.modalities.text.texts import TEXTS, split_of


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("to be,\n not", ["to", " be,", "\n not"]),
        ("  x  ", ["  x"]),
        ("東京 2020年", ["東", "京", " 2020", "年"]),
        ("ทุกคน", ["ทุ", "ก", "ค", "น"]),
        ("བོད་ཡིག ", ["བོད་", "ཡིག"]),
        ("ប្រទេស", ["ប្", "រ", "ទេ", "ស"]),
        ("한국어 문장", ["한국어", " 문장"]),
        (" \t\n", []),
        ("a\u3000b\u00a0c", ["a", "\u3000b", "\u00a0c"]),
    ],
)
def test_words_are_runs_between_white_space_or_characters_of_scripts_without_it(text, pieces):
    assert pieces_of(text) == pieces


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_together_are_the_text_without_its_last_white_space(text):
    assert "".join(pieces_of(text)) == text.rstrip()


def test_a_sample_gives_its_texts_back():
    assert text_of(packed("né", "東京")).split(BORDER) == ["né", "東京"]
    assert 0xFF not in packed("".join(map(chr, range(1, 0xD800)))).tolist()


def test_words_of_some_rows_are_those_of_each_row_alone():
    pairs = [(TEXTS[row], TEXTS[-row - 1]) for row in range(6)]
    index = WordIndex(split_of(pairs))
    rows = np.array([4, 0, 4, 2])
    together = index.words(rows)
    assert together.texts() == [text for row in rows for text in index.words(np.array([row])).texts()]
    assert together.number.tolist()[:5] == [0, 1, 2, 3, 4]
    assert together.part.tolist() == [0, 1] * 4


def test_an_un_augmented_text_begins_and_ends_with_a_word():
    index = WordIndex(split_of(TEXTS))
    texts = index.words(np.arange(len(TEXTS))).begun().texts()
    assert texts == [text.strip() for text in TEXTS]


def test_a_dictionary_numbers_each_piece_and_each_change_once():
    dictionary, asked = Dictionary(), []
    ids = dictionary.number(["a", " b", "a"])
    assert ids.tolist() == [0, 1, 0]

    def upper(piece):
        asked.append(piece)
        return piece.upper()

    for _ in range(2):
        assert [dictionary.pieces[one] for one in dictionary.changed(ids, "upper", upper)] == [
            "A",
            " B",
            "A",
        ]
    assert asked == ["a", " b"]
    assert dictionary.bare(dictionary.number([" b"])) == dictionary.number(["b"])


def test_ranges():
    assert ranges(np.array([2, 0, 3])).tolist() == [0, 1, 0, 1, 2]
    assert ranges(np.zeros(0, np.int64)).tolist() == []
