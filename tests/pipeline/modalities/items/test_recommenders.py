"""Recommenders: padding changes nothing, order and masks do."""

from __future__ import annotations

import pytest
import torch

from pipeline.core.errors import ModelError
from pipeline.modalities.items.models.recommenders import RECOMMENDERS, Recommenders
from pipeline.modalities.items.preprocessing import GivenItems, ItemsPreprocessing
from pipeline.modalities.text.preprocessing import TextPreprocessing
from pipeline.modalities.text.tokenizers import Bytes

C = 30


def build(name: str, **options):
    torch.manual_seed(0)
    made = Recommenders().build(
        name, num_classes=C, channels=C + 2, stem_stride=4, options={"dim": 8, **options}
    )
    return made.eval()


@pytest.fixture(params=RECOMMENDERS)
def network(request):
    return build(request.param)


def ids(*rows: list[int], length: int) -> torch.Tensor:
    return torch.tensor([[0] * (length - len(row)) + row for row in rows])


@torch.inference_mode()
def test_padding_changes_no_logit(network):
    rows = [1, 5, 30], [7]
    short, long = network(ids(*rows, length=3)), network(ids(*rows, length=20))
    assert short.shape == (2, C)
    torch.testing.assert_close(short, long)
    torch.testing.assert_close(network(ids([7], length=1))[0], long[1])


@torch.inference_mode()
def test_every_item_the_order_and_the_mask_count(network):
    plain = network(ids([1, 2, 3], length=4))
    for other in ([9, 2, 3], [2, 1, 3], [1, C + 1, 3], [2, 3]):
        assert not torch.allclose(network(ids(other, length=4)), plain, atol=1e-6)


def test_the_last_layer_holds_the_embeddings(network):
    assert network.head.weight.shape == (C, 8)
    network.train()(ids([4, 5], length=6)).logsumexp(1).sum().backward()
    assert network.items.mask.grad is not None
    assert float(network.head.weight.grad[3].abs().sum()) > 0


@torch.inference_mode()
def test_attention_is_causal():
    network = build("sasrec", layers=1)
    taken = []
    network.norm.register_forward_pre_hook(lambda _, given: taken.append(given[0]))
    layer = network.layers[0]
    states = []
    layer.register_forward_hook(lambda _, given, made: states.append(made))
    network(ids([1, 2, 3], length=3))
    network(ids([1, 2, 9], length=3))
    torch.testing.assert_close(states[0][:, :2], states[1][:, :2])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sasrec", {"heads": 3}, "dim is 8 and heads is 3; expected a multiple"),
        ("gru4rec", {"width": 3}, "unexpected keyword argument 'width'"),
    ],
)
def test_wrong_options_are_refused(name, options, message):
    with pytest.raises(ModelError, match=message):
        build(name, **options)


def test_other_samples_are_refused():
    texts = TextPreprocessing(tokenizer=Bytes(), max_length=16)
    with pytest.raises(ModelError, match="model sasrec is for histories"):
        Recommenders().fitted("sasrec", texts, GivenItems())
    known = ItemsPreprocessing(items=C, max_length=16)
    assert Recommenders().fitted("sasrec", known, GivenItems(max_length=9)).max_length == 9
    with pytest.raises(ModelError, match="30 logits and 40 ids; expected one logit per item"):
        Recommenders().build("sasrec", num_classes=C, channels=40, stem_stride=4, options={})
