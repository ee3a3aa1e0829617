"""Embeddings of networks: inputs of the last layer or outputs of a named one, normalised or raw."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.core.errors import ConfigError, ModelError
from pipeline.models.architecture import Architecture, build
from pipeline.models.checkpoint import load_checkpoint, save_checkpoint
from pipeline.models.embedder import Embedder, require_output
from pipeline.models.heads import WithFeatures
from pipeline.models.pretrained import Start, initial_network, pretrained_network
from pipeline.models.teacher import Teacher

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def _network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build(
        Architecture(name=name, num_classes=7, options={"image_size": 32} if "vit" in name else {})
    )


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "mobilenet_v3_small", "vit_b_16"])
def test_the_embedding_is_the_input_of_the_last_layer(name):
    network = _network(name).eval()
    with torch.inference_mode():
        opened = WithFeatures(network)
        _, expected = opened(IMAGES)
        opened.close()
        found = Embedder(network, "embedding", "none").eval()(IMAGES)
    assert torch.equal(found, expected)


def test_a_layer_by_name_is_averaged_over_positions():
    network = _network("resnet18").eval()
    given: list[torch.Tensor] = []
    network.layer3.register_forward_hook(lambda *args: given.append(args[2]))
    with torch.inference_mode():
        found = Embedder(network, "layer:layer3", "none").eval()(IMAGES)
    assert torch.equal(found, given[0].mean((2, 3)))


def test_the_class_token_is_the_first_position():
    network = _network("vit_b_16").eval()
    with torch.inference_mode():
        tokens = Embedder(network, "cls:encoder.ln", "none").eval()(IMAGES)
        assert torch.equal(tokens, Embedder(network, "embedding", "none").eval()(IMAGES))


def test_vectors_have_length_one_or_standardised_features():
    network = _network("resnet18").eval()
    with torch.inference_mode():
        unit = Embedder(network, "embedding", "length").eval()(IMAGES)
        torch.testing.assert_close(unit.norm(dim=1), torch.ones(3))
        standard = Embedder(network, "", "features").eval()
        standard.widen(512)
        raw = standard(IMAGES)
        standard.standardise(raw)
        found = standard(IMAGES)
    torch.testing.assert_close(found.mean(0), torch.zeros(512), atol=1e-4, rtol=0)
    moves = raw.std(0, correction=0) > 1e-6
    torch.testing.assert_close(found.std(0, correction=0)[moves], torch.ones(512)[moves], atol=1e-3, rtol=0)


def test_an_unknown_layer_is_refused_with_those_that_are_near():
    with pytest.raises(ModelError, match=r"layer 'layer5', .* did you mean 'layer4'"):
        Embedder(_network("resnet18"), "layer:layer5", "none")
    wrong = Embedder(_network("resnet18"), "layer:avgpool", "none")
    assert wrong(IMAGES).shape == (3, 512)


@pytest.mark.parametrize("output", ["pooled", "layer:", "cls", "logits"])
def test_an_output_of_another_form_is_refused(output):
    with pytest.raises(ConfigError, match="expected embedding, layer:NAME or cls:NAME"):
        require_output(output, "none")


@pytest.fixture
def of_embeddings(tiny_data):
    """The small dataset under the task of embeddings."""
    return type(tiny_data)(
        **{name: getattr(tiny_data, name) for name in ("classes", "statistics", "train", "validation")},
        test=tiny_data.test,
        task="embedding",
    )


@pytest.mark.parametrize("normalise", ["none", "length", "features"])
def test_a_checkpoint_of_an_embedding_gives_it_again(of_embeddings, tmp_path, normalise):
    start = Start(model="wrn_16_2", weights=None, size=32, normalise=normalise)
    network, card = initial_network(of_embeddings, start, seed=0)
    assert (card.task, len(card.classes), card.architecture.output) == ("embedding", 128, "embedding")
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 32, 32, 1)).astype(np.uint8))
    images = card.preprocessing.normalise(pixels)
    with torch.inference_mode():
        if normalise == "features":
            network.eval().standardise(network(images))
        expected = network.eval()(images)
    save_checkpoint(tmp_path / "net.pt", network.state_dict(), card)
    again, found = load_checkpoint(tmp_path / "net.pt")
    assert found == card
    with torch.inference_mode():
        assert torch.equal(again(images), expected)
    teacher = Teacher(name="net", network=again, card=found, precision="fp32")
    assert teacher.head is None
    output = teacher.output(images)
    assert torch.equal(output.logits, expected)
    assert output.features is None


def test_weights_of_a_classifier_give_embeddings(of_embeddings):
    network, card = pretrained_network(
        of_embeddings, Start(model="wrn_16_2", weights="FASHION_MNIST_V1", output="layer:groups.1")
    )
    assert (card.task, card.architecture.output) == ("embedding", "layer:groups.1")
    assert isinstance(network, Embedder)


def test_a_class_map_has_no_meaning_for_an_embedding(of_embeddings):
    start = Start(
        model="wrn_16_2", weights="FASHION_MNIST_V1", class_map={"bar-0": 1, "bar-1": 2, "bar-2": 3}
    )
    with pytest.raises(ModelError, match=r"has a class_map, and outputs of task embedding have no classes"):
        pretrained_network(of_embeddings, start)


def test_an_embedding_is_refused_under_a_task_of_classes(tiny_data):
    start = Start(model="wrn_16_2", weights="FASHION_MNIST_V1", output="embedding", class_map=None)
    with pytest.raises(
        ModelError, match=r"task classes takes an output per class; .* data.task: embedding"
    ):
        pretrained_network(tiny_data, start)


SAYS = """
from torch import nn

def tagger(num_classes):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
    network.task = "multilabel"
    return network
"""


def test_own_code_that_says_it_is_no_softmax_is_refused(tiny_data, tmp_path, monkeypatch):
    (tmp_path / "taggers.py").write_text(SAYS)
    monkeypatch.syspath_prepend(str(tmp_path))
    start = Start(model="taggers:tagger", weights=None, size=8)
    with pytest.raises(ModelError, match=r"says that it is of task 'multilabel', .* set data.task"):
        initial_network(tiny_data, start, seed=0)
