"""Views of texts are drawn per word: exact, independent of the batch, and as often as the spec says."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.modalities.text import words
from pipeline.modalities.text.operations import carry_out, mistyped
from pipeline.modalities.text.spec import (
    Case,
    CharacterNoise,
    Mask,
    RandomCrop,
    RandomDeletion,
    RandomSwap,
    TextViews,
)
from pipeline.modalities.text.words import MASK, WordIndex, pieces_of
from tests.pipeline.modalities.text.texts import TEXTS, split_of

EVERYTHING = TextViews(
    seed=3,
    random_crop=RandomCrop(),
    random_deletion=RandomDeletion(),
    random_swap=RandomSwap(),
    mask=Mask(),
    character_noise=CharacterNoise(),
    case=Case(),
)
NUMBERS = [" ".join(f"w{row}x{place}" for place in range(40)) for row in range(250)]


def view_of(spec: TextViews, texts, view: int = 0, rows=None) -> list[str]:
    split = split_of(texts)
    rows = np.arange(len(split)) if rows is None else rows
    plain = WordIndex(split).words(rows)
    return carry_out(spec, view, split.keys[rows], plain).begun().texts()


def test_a_text_is_the_same_alone_and_in_any_batch():
    texts = [*TEXTS, *NUMBERS[:20]]
    whole = view_of(EVERYTHING, texts)
    for rows in ([5], [31, 2, 2, 0], list(range(len(texts)))[::-1]):
        assert view_of(EVERYTHING, texts, rows=np.array(rows)) == [whole[row] for row in rows]
    assert view_of(EVERYTHING, texts, view=1) != whole


def test_the_texts_of_a_view_are_pinned():
    """Raise `spec.SEMANTICS` when these change: stores of old views are then refused."""
    assert view_of(EVERYTHING, TEXTS[:6]) == PINNED


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ({"random_deletion": RandomDeletion(probability=0.3)}, 0.3),
        ({"mask": Mask(probability=0.3)}, 0.3),
        ({"character_noise": CharacterNoise(probability=0.3)}, 0.275),  # some replace a character by itself
        ({"case": Case(probability=0.3)}, 0.2),  # lower case leaves these words alone
    ],
)
def test_words_change_as_often_as_the_spec_says(operation, expected):
    found = view_of(TextViews(seed=1, **operation), NUMBERS)
    kept = sum(len({*new.split()} & {*old.split()}) for new, old in zip(found, NUMBERS, strict=True))
    assert 1 - kept / (250 * 40) == pytest.approx(expected, abs=0.015)


def test_a_span_is_kept_whole():
    spec = TextViews(seed=1, random_crop=RandomCrop(scale=(0.2, 0.6)))
    found = [text.split() for text in view_of(spec, NUMBERS)]
    assert {len(words) for words in found} == set(range(8, 25))
    assert all(" ".join(words) in old for words, old in zip(found, NUMBERS, strict=True))
    assert len({old.split().index(words[0]) for words, old in zip(found, NUMBERS, strict=True)}) > 20


def test_exchanges_keep_all_words():
    found = view_of(TextViews(seed=1, random_swap=RandomSwap(share=0.1)), NUMBERS)
    for new, old in zip(found, NUMBERS, strict=True):
        assert sorted(new.split()) == sorted(old.split())
        assert sum(a != b for a, b in zip(new.split(), old.split(), strict=True)) <= 8
    assert len(set(found) & set(NUMBERS)) < 5


def test_white_space_stays_where_it_is_when_words_are_exchanged():
    found = view_of(TextViews(seed=2, random_swap=RandomSwap(share=1)), ["a b\nc\t東d"])
    assert len(found[0]) == len("a b\nc\t東d")
    assert [place for place, letter in enumerate(found[0]) if letter.isspace()] == [1, 3, 5]


def test_one_word_stays_where_all_are_left_out():
    found = view_of(TextViews(seed=1, random_deletion=RandomDeletion(probability=1)), TEXTS)
    assert all(len(pieces_of(text)) == 1 for text in found)


def test_both_texts_of_a_pair_have_views_of_their_own():
    spec = TextViews(seed=1, random_deletion=RandomDeletion(probability=0.5))
    (found,) = view_of(spec, [(NUMBERS[0], NUMBERS[0])])
    first, second = found.split("\udcff")
    assert first != second
    # A second text does not change the first one's view.
    assert [first] == view_of(spec, [NUMBERS[0]])


def test_a_mask_is_never_written_in_another_case_or_mistyped():
    spec = TextViews(
        mask=Mask(probability=1), character_noise=CharacterNoise(probability=1), case=Case(probability=1)
    )
    assert view_of(spec, ["a b\nc"]) == [f"{MASK} {MASK}\n{MASK}"]


def test_a_typing_error_changes_one_place():
    found = {
        mistyped("wörd", kind, place, other)
        for kind in range(4)
        for place in range(4)
        for other in range(4)
    }
    assert {"örd", "wwörd", "öwrd", "wöwd", "wörr"} <= found
    assert {len(word) for word in found} == {3, 4, 5}
    assert [mistyped("x", kind, 0, 0) for kind in range(4)] == ["x", "xx", "x", "x"]


def test_typing_errors_are_the_same_when_the_dictionary_is_full(monkeypatch):
    spec = TextViews(character_noise=CharacterNoise(probability=0.5), case=Case(probability=0.5))
    expected = view_of(spec, TEXTS)
    monkeypatch.setattr(words, "_MOST_TYPED", 0)
    assert view_of(spec, TEXTS) == expected


def test_views_of_longer_texts_than_65536_words_are_drawn_too():
    (found,) = view_of(TextViews(random_deletion=RandomDeletion()), ["a " * 70_000])
    assert 60_000 < len(found.split()) < 66_000


PINNED = [
    "fox jumps over the",
    "Don't stop,\n\nbelieving  in",
    "Σε μια του νύχτα χειμώνα, \udcfe",
    "Всский \udcfe имеет право",
    "Tokyoに行き\udcfeた。 京",
    "\udcfeกคนมี",
]
