"""The students' logits depend on the text alone: not on padding, nor on the rest of a batch."""

from __future__ import annotations

import pytest
import torch

from pipeline.core.errors import ModelError
from pipeline.evaluation.assessment import count_macs
from pipeline.modalities.text.models.own import STUDENTS
from pipeline.modalities.text.preprocessing import GivenText, TextPreprocessing
from pipeline.modalities.text.tokenizers import WordList
from pipeline.models.architecture import Architecture, build, source_of

IDS = torch.tensor([[5, 6, 7, 2, 2], [8, 2, 2, 2, 2], [9, 8, 7, 6, 5]])
WORDS = tuple("abcdef")


def made(name: str, **options):
    torch.manual_seed(0)
    given = {"pad": 2, **({"max_length": 24} if name == "bert_tiny" else {}), **options}
    return build(Architecture(name=name, num_classes=3, channels=10, options=given)).eval()


@pytest.mark.parametrize("name", STUDENTS)
def test_logits_do_not_depend_on_padding(name):
    network = made(name)
    wider = torch.cat([IDS, torch.full((3, 16), 2)], 1)
    assert network(IDS).shape == (3, 3)
    torch.testing.assert_close(network(wider), network(IDS), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(network(IDS[:2, :3]), network(IDS)[:2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", STUDENTS)
def test_logits_depend_on_every_token_and_on_their_order(name):
    network = made(name)
    whole = network(IDS)
    changed = IDS.clone()
    changed[2, 3] = 1
    assert not torch.allclose(network(changed)[2], whole[2], atol=1e-6)
    assert not torch.allclose(network(IDS.flip(1))[2], whole[2], atol=1e-6)


@pytest.mark.parametrize("name", STUDENTS)
def test_a_network_learns_to_tell_texts_apart(name):
    torch.manual_seed(0)
    network = made(name, dropout=0.0).train()
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    labels = torch.tensor([0, 1, 2])
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(network(IDS), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.1


@pytest.mark.parametrize("name", STUDENTS)
def test_the_cost_of_every_network_is_counted(name):
    short, long = (count_macs(made(name), torch.full((1, length), 5)) for length in (8, 16))
    assert 1_000 < short < long


def test_a_sample_of_padding_alone_has_finite_logits():
    for name in STUDENTS:
        assert made(name)(torch.full((2, 4), 2)).isfinite().all()


def test_byte_cnn_takes_bytes_and_others_the_words_of_the_data():
    own = TextPreprocessing(tokenizer=WordList(WORDS), max_length=16, words=WORDS)
    found = source_of("byte_cnn").fitted("byte_cnn", own, GivenText())
    assert (found.tokenizer.kind, found.channels, found.max_length) == ("bytes", 260, 16)
    found = source_of("kim_cnn").fitted("kim_cnn", own, GivenText(vocabulary=2, truncation="left"))
    assert (found.channels, found.truncation, found.words) == (6, "left", None)
    with pytest.raises(ModelError, match=r"byte_cnn takes bytes, and preprocessing\.tokenizer is 'words'"):
        source_of("byte_cnn").fitted("byte_cnn", own, GivenText(tokenizer="words"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("kim_cnn", {"depth": 3}, "unexpected keyword argument 'depth'"),
        ("byte_cnn", {"width": 4}, "width is 4; expected an odd number"),
        ("bert_tiny", {"heads": 3}, "dim is 128 and heads is 3; expected a multiple"),
    ],
)
def test_options_that_a_network_does_not_take_are_one_line(name, options, message):
    with pytest.raises(ModelError, match=message):
        made(name, **options)
