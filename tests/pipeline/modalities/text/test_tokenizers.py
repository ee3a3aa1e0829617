"""Looking up pieces gives the ids that tokenising whole texts gives, for tokenizers of every kind."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.core.errors import ConfigError, ModelError
from pipeline.modalities.text.operations import carry_out
from pipeline.modalities.text.preprocessing import TextPreprocessing
from pipeline.modalities.text.rendering import TextRenderer
from pipeline.modalities.text.tokenizer_files import TokenizerFile, parse_tokenizer, read_tokenizer
from pipeline.modalities.text.tokenizers import Bytes, WordList
from pipeline.modalities.text.tokens import Encoder
from pipeline.modalities.text.words import BORDER, MASK, WordIndex
from tests.pipeline.modalities.text import texts
from tests.pipeline.modalities.text.test_operations import EVERYTHING
from tests.pipeline.modalities.text.texts import TEXTS, split_of

OWN = {"bytes": Bytes, "words": lambda: WordList(("the", "dog", ".", "a", "世"))}
FILES = {"bert": texts.bert, "byte_level": texts.byte_level, "metaspace": texts.metaspace}
JOINED = {"joined": texts.joined}
PAIRS = [(TEXTS[row], TEXTS[-row - 1]) for row in range(6)]


def _made(name):
    if name not in OWN:
        pytest.importorskip("tokenizers")
    return {**OWN, **FILES, **JOINED}[name]()


def expected(tokenizer, text: str, length: int, *, keeps_end: bool) -> list[int]:
    """Return the ids of a text, tokenised whole, cut and framed by hand."""
    parts = text.split(BORDER)
    frame = tokenizer.frame(len(parts))
    ids = [tokenizer.encode([part])[0] for part in parts]
    while sum(map(len, ids)) > frame.room(length, len(parts)):
        longest = max(ids, key=len)
        del longest[0 if keeps_end else -1]
    inner = [*ids[0], *(one for some in ids[1:] for one in (*frame.between, *some))]
    found = [*frame.before, *inner, *frame.after]
    return found + [tokenizer.pad] * (length - len(found))


@pytest.mark.parametrize("keeps_end", [False, True])
@pytest.mark.parametrize("length", [16, 200])
@pytest.mark.parametrize("given", [list(TEXTS), PAIRS], ids=["texts", "pairs"])
@pytest.mark.parametrize("name", [*OWN, *FILES, *JOINED])
def test_ids_of_a_view_are_those_of_its_text(name, given, length, keeps_end):
    tokenizer, split = _made(name), split_of(given)
    index, rows = WordIndex(split), np.arange(len(split))
    encoder = Encoder(tokenizer, length, keeps_end=keeps_end)
    for view in range(4):
        words = index.words(rows)
        words = carry_out(EVERYTHING, view, split.keys, words) if view else words
        found = encoder.encode(words).tolist()
        shown = words.begun().texts()
        if length == 16 and given is PAIRS:
            # Of two texts of equal length it is a matter of taste which one is cut first.
            assert [len(one) for one in found] == [length] * len(rows)
            continue
        assert found == [expected(tokenizer, text, length, keeps_end=keeps_end) for text in shown]


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", FILES)
def test_cutting_is_that_of_the_library(name, side, pair):
    pytest.importorskip("tokenizers")
    from tokenizers import Tokenizer

    tokenizer = _made(name)
    library = Tokenizer.from_str(tokenizer.content.decode())
    library.enable_truncation(17, direction=side)
    alone = [text.strip() for text in TEXTS]
    given = [(one.strip(), other.strip()) for one, other in PAIRS] if pair else alone
    split = split_of(given)
    words = WordIndex(split).words(np.arange(len(split)))
    found = Encoder(tokenizer, 17, keeps_end=side == "left").encode(words)
    for ids, text in zip(found.tolist(), given, strict=True):
        wanted = library.encode(*text).ids if pair else library.encode(text).ids
        assert ids == wanted + [tokenizer.pad] * (17 - len(wanted))


@pytest.mark.parametrize(("name", "by_piece"), [*((name, True) for name in FILES), ("joined", False)])
def test_a_file_says_whether_it_divides_at_white_space(name, by_piece):
    assert _made(name).by_piece is by_piece


def test_a_file_that_divides_otherwise_than_it_says_is_found_on_the_data(capsys):
    pytest.importorskip("tokenizers")
    spec = json.loads(texts.joined().content)
    splitter = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
    spec["pre_tokenizer"] = splitter
    tokenizer = TokenizerFile(json.dumps(spec).encode())
    assert tokenizer.by_piece
    split = split_of(["a\nb of\tthe", *TEXTS])
    renderer = TextRenderer(split, None, TextPreprocessing(tokenizer=tokenizer, max_length=64))
    found = renderer.render(0, np.arange(len(split))).tolist()
    shown = WordIndex(split).words(np.arange(len(split))).begun().texts()
    assert found == [expected(tokenizer, text, 64, keeps_end=False) for text in shown]
    assert "whole texts are tokenised" in capsys.readouterr().err


def test_masks_have_the_tokenizers_own_id():
    pytest.importorskip("tokenizers")
    masked, known = f"a {MASK} b", {"bert": "[MASK]", "byte_level": "<mask>", "metaspace": "<unk>"}
    for name, token in known.items():
        tokenizer = _made(name)
        wanted = tokenizer._library.token_to_id(token)
        assert tokenizer.encode([masked])[0].count(wanted) == 1
    assert Bytes().encode([masked]) == [[101, 36, 2, 36, 102]]
    assert WordList(("a",)).encode(["a", f" {MASK}", " b"]) == [[4], [2], [1]]


@pytest.mark.parametrize("name", [*OWN, *FILES])
def test_a_tokenizer_is_read_from_its_plain_values(name):
    tokenizer = _made(name)
    again = parse_tokenizer(json.loads(json.dumps(tokenizer.to_dict())))
    assert (again, again.size, again.pad) == (tokenizer, tokenizer.size, tokenizer.pad)
    assert again.encode(TEXTS) == tokenizer.encode(TEXTS)
    named = parse_tokenizer(tokenizer.identity())
    assert (named.digest, named.size, named.identity()) == (again.digest, again.size, tokenizer.identity())
    with pytest.raises(ModelError, match="names its teacher's tokenizer by digest alone"):
        named.encode(["a"])


@pytest.mark.parametrize(
    "plain",
    [
        {},
        {"kind": "letters"},
        {"kind": "bytes", "words": []},
        {"kind": "words", "words": [1]},
        {"kind": "file", "content": "AAAA"},
        {"kind": "file", "content": 3},
        {"kind": "file", "size": 3, "digest": "0" * 63},
        {"kind": "file", "size": 1 << 40, "digest": "0" * 64},
    ],
)
def test_plain_values_that_describe_no_tokenizer_are_refused(plain):
    with pytest.raises(ValueError, match="tokenizer"):
        parse_tokenizer(plain)


def test_what_is_no_tokenizer_file_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"no\.json: No such file or directory; expected a tok"):
        read_tokenizer(tmp_path / "no.json")
    pytest.importorskip("tokenizers")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json: not a tokenizer \(.*; expected a t"):
        read_tokenizer(tmp_path)


def test_a_tokenizer_without_padding_says_so():
    pytest.importorskip("tokenizers")
    from tokenizers import Tokenizer, models

    tokenizer = TokenizerFile(Tokenizer(models.WordLevel({"a": 0, "?": 1}, "?")).to_str().encode())
    with pytest.raises(ModelError, match="has no padding token; expected one of"):
        _ = tokenizer.pad
