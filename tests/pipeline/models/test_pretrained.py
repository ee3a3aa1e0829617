"""What a run begins with: fresh and pretrained networks that fit the data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.core.errors import DataError, ModelError
from pipeline.modalities.images.preprocessing import GivenPreprocessing, Preprocessing
from pipeline.models.architecture import Architecture, build
from pipeline.models.checkpoint import ModelCard, load_checkpoint, save_checkpoint
from pipeline.models.pretrained import Start, initial_network, pretrained_network

EYES = Preprocessing(size=16, mean=(0.4,), std=(0.2,), crop_fraction=0.875, interpolation="bicubic")
ARCHITECTURE = Architecture(name="resnet20", num_classes=5, channels=1, stem_stride=1)


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A network of five classes that was trained elsewhere."""
    torch.manual_seed(0)
    card = ModelCard(architecture=ARCHITECTURE, preprocessing=EYES, classes=tuple("vwxyz"))
    save_checkpoint(tmp_path / "x.pt", build(ARCHITECTURE).state_dict(), card)
    return tmp_path / "x.pt"


def _from(checkpoint: Path, **said) -> Start:
    return Start(model="resnet20", weights=str(checkpoint), **said)


# Fresh


def test_a_fresh_network_has_the_datas_size_channels_classes_and_moments(tiny_data):
    network, card = initial_network(tiny_data, Start(model="resnet20", weights=None), 0)
    assert card.preprocessing == Preprocessing(size=8, **tiny_data.statistics)
    assert (card.classes, card.architecture.channels) == (tiny_data.classes, 1)
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 3)


def test_fresh_weights_are_those_of_the_seed(tiny_data):
    start = Start(model="resnet20", weights=None)
    first, again, other = (initial_network(tiny_data, start, seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first.head.weight, again.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)


def test_what_the_user_says_stands_over_the_data_and_the_image_size(tiny_data):
    said = GivenPreprocessing(size=12, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic")
    start = Start(model="resnet18", weights=None, size=10, preprocessing=said)
    network, card = initial_network(tiny_data, start, 0)
    assert card.preprocessing == said.alone("")
    assert network.conv1.in_channels == 3


def test_images_of_many_sizes_need_one_that_is_said(tmp_path, tiny_data, pack_images, random_image):
    images = pack_images([random_image(20, 30, 1), random_image(30, 20, 1)])
    data = replace(tiny_data, train=images)
    with pytest.raises(DataError, match=r"the images are 20x20 to 30x30 pixels and data.image_size is not"):
        initial_network(data, Start(model="resnet20", weights=None), 0)
    said = GivenPreprocessing(size=16)
    initial_network(data, Start(model="resnet20", weights=None, preprocessing=said), 0)


# Pretrained


def test_pretrained_weights_are_used_as_they_are(tiny_data, checkpoint):
    network, card = pretrained_network(tiny_data, _from(checkpoint))
    loaded, loaded_card = load_checkpoint(checkpoint)
    assert card == loaded_card
    assert torch.equal(network.head.weight, loaded.head.weight)


def test_weights_of_other_classes_get_a_fresh_last_layer_and_keep_the_rest(tiny_data, checkpoint):
    network, card = initial_network(tiny_data, _from(checkpoint), 0)
    loaded, _ = load_checkpoint(checkpoint)
    assert network.head.out_features == 3
    assert (card.classes, card.preprocessing) == (tiny_data.classes, EYES)
    for name, tensor in loaded.state_dict().items():
        assert name.startswith("head.") or torch.equal(network.state_dict()[name], tensor)


def test_the_fresh_last_layer_is_the_seeds(tiny_data, checkpoint):
    first, again, other = (initial_network(tiny_data, _from(checkpoint), seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first.head.weight, again.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)


def test_weights_of_as_many_classes_keep_their_last_layer(tiny_data, tmp_path):
    card = ModelCard(
        architecture=replace(ARCHITECTURE, num_classes=3), preprocessing=EYES, classes=("x", "y", "z")
    )
    weights = build(card.architecture).state_dict()
    save_checkpoint(tmp_path / "x.pt", weights, card)
    network, found = initial_network(tiny_data, _from(tmp_path / "x.pt"), 0)
    assert torch.equal(network.head.weight, weights["head.weight"])
    assert found.classes == tiny_data.classes


def test_the_image_size_stands_over_the_weights_and_what_is_said_over_both(tiny_data, checkpoint):
    assert initial_network(tiny_data, _from(checkpoint, size=24), 0)[1].preprocessing.size == 24
    said = GivenPreprocessing(size=20, interpolation="bilinear")
    eyes = initial_network(tiny_data, _from(checkpoint, size=24, preprocessing=said), 0)[1].preprocessing
    assert eyes == replace(EYES, size=20, interpolation="bilinear")


def test_a_class_map_chooses_classes_also_to_be_fine_tuned(tiny_data, checkpoint):
    mapping = {"bar-0": "z", "bar-1": 0, "bar-2": "x"}
    loaded, _ = load_checkpoint(checkpoint)
    for network, card in (
        pretrained_network(tiny_data, _from(checkpoint, class_map=mapping)),
        initial_network(tiny_data, _from(checkpoint, class_map=mapping), 0),
    ):
        assert card.classes == tiny_data.classes
        assert torch.equal(network.head.weight, loaded.head.weight[[4, 0, 2]])


def test_a_card_that_contradicts_its_network_is_refused(tiny_data, checkpoint):
    card = checkpoint.with_suffix(".json")
    card.write_text(card.read_text().replace('"v",', ""))
    with pytest.raises(ModelError, match=r"resnet20 gives 5 logits, and its card names 4 classes"):
        pretrained_network(tiny_data, _from(checkpoint))


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"stem_stride": 2}, "stem_stride and weights"), ({"options": {"width": 2}}, "options and weights")],
)
def test_weights_with_a_card_have_their_own_form(tiny_data, checkpoint, changed, message):
    with pytest.raises(
        ModelError, match=rf"{message} \(.*x.pt\) are both set; these weights have their own"
    ):
        pretrained_network(tiny_data, _from(checkpoint, **changed))
