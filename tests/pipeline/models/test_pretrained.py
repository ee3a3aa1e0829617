"""Pretrained weights by name, and what a run begins with: networks that fit the data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision

from pipeline.core.errors import DataError, ModelError
from pipeline.modalities import images
from pipeline.modalities.images.models.cifar import BUILTIN
from pipeline.modalities.images.models.torchvision import preprocessing_of
from pipeline.modalities.images.preprocessing import GivenPreprocessing, Preprocessing
from pipeline.modalities.images.sources.arrays import CLASSES, load_subset
from pipeline.models import pretrained as weights_module
from pipeline.models.architecture import Architecture, build
from pipeline.models.checkpoint import ModelCard, load_checkpoint, save_checkpoint, state_digest
from pipeline.models.pretrained import Start, initial_network, load_pretrained, pretrained_network

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
    with pytest.raises(
        DataError, match=r"the images are 20x20 to 30x30 pixels, but data.image_size is not"
    ):
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
    preprocessing = initial_network(tiny_data, _from(checkpoint, size=24, preprocessing=said), 0)[
        1
    ].preprocessing
    assert preprocessing == replace(EYES, size=20, interpolation="bilinear")


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
    with pytest.raises(ModelError, match=r"resnet20 returns 5 logits, but its card lists 4 classes"):
        pretrained_network(tiny_data, _from(checkpoint))


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"stem_stride": 2}, "stem_stride and weights"), ({"options": {"width": 2}}, "options and weights")],
)
def test_weights_with_a_card_have_their_own_form(tiny_data, checkpoint, changed, message):
    with pytest.raises(ModelError, match=rf"{message} \(.*x.pt\) are both set, but these weights fix it"):
        pretrained_network(tiny_data, _from(checkpoint, **changed))


# Weights by name


CARD = ModelCard(
    architecture=Architecture(name="shufflenet_v2_x0_5", num_classes=2, stem_stride=2),
    preprocessing=Preprocessing(size=16, mean=(0.5,) * 3, std=(0.2,) * 3),
    classes=("a", "b"),
)


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    network = build(CARD.architecture)
    save_checkpoint(tmp_path / "x.pt", network.state_dict(), CARD)
    return tmp_path / "x.pt", network


def test_a_checkpoint_is_named_by_its_path(saved):
    path, network = saved
    loaded, card = load_pretrained("shufflenet_v2_x0_5", str(path))
    assert card == CARD
    assert state_digest(loaded) == state_digest(network)
    assert not loaded.training


def test_a_checkpoint_of_another_model_is_refused(saved):
    path, _ = saved
    with pytest.raises(ModelError, match=r"weights are for shufflenet_v2_x0_5; expected resnet18"):
        load_pretrained("resnet18", str(path))


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"none.pt: no such file"):
        load_pretrained("resnet18", str(tmp_path / "none.pt"))


def test_unknown_weights_list_those_of_torchvision(tmp_path):
    message = r"resnet50 has no weights 'IMAGENET'; expected IMAGENET1K_V1, IMAGENET1K_V2"
    with pytest.raises(ModelError, match=message):
        load_pretrained("resnet50", "IMAGENET")


def test_unknown_weights_list_the_built_in_ones():
    with pytest.raises(ModelError, match=r"expected FASHION_MNIST_V1, or the path of a checkpoint"):
        load_pretrained("wrn_16_2", "CIFAR10")


def test_unknown_weights_of_a_model_without_any_ask_for_a_checkpoint():
    with pytest.raises(
        ModelError, match=r"wrn_40_2 has no weights 'FASHION_MNIST_V1'; expected the path of a checkpoint"
    ):
        load_pretrained("wrn_40_2", "FASHION_MNIST_V1")


def test_weights_of_an_unknown_model_are_refused():
    with pytest.raises(ModelError, match="resnet19"):
        load_pretrained("resnet19", "IMAGENET1K_V1")


def test_built_in_weights_belong_to_models_that_can_be_built():
    for name, _ in BUILTIN:
        assert build(Architecture(name=name, num_classes=2, stem_stride=1)) is not None


@pytest.mark.parametrize(
    ("name", "size", "fraction"),
    [("resnet18", 224, 224 / 256), ("mobilenet_v3_small", 224, 224 / 256), ("vit_b_16", 224, 224 / 256)],
)  # fmt: skip
def test_the_preprocessing_of_torchvision_weights_is_torchvisions_evaluation(name, size, fraction):
    preprocessing = preprocessing_of(torchvision.models.get_model_weights(name)["IMAGENET1K_V1"])
    assert preprocessing.size == size
    assert preprocessing.crop_fraction == pytest.approx(fraction)
    assert preprocessing.mean == (0.485, 0.456, 0.406)
    assert preprocessing.std == (0.229, 0.224, 0.225)


# torchvision's, from its cache in place of its server


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Return a function that puts random weights of a model where torchvision downloads its own to."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub/checkpoints"
    folder.mkdir(parents=True)

    def put(name: str, **arguments) -> dict[str, torch.Tensor]:
        entry = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
        torch.manual_seed(3)
        state = torchvision.models.get_model(name, weights=None, **arguments).state_dict()
        torch.save(state, folder / Path(entry.url).name)
        return state

    return put


@pytest.mark.parametrize(
    "weights", ["IMAGENET1K_V1", "DEFAULT", "pretrained", "ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1"]
)
def test_torchvisions_weights_have_their_names_there(cached, weights):
    state = cached("shufflenet_v2_x0_5")
    network, card = load_pretrained("shufflenet_v2_x0_5", weights)
    assert torch.equal(network.fc.weight, state["fc.weight"])
    assert not network.training
    assert card.architecture == Architecture(name="shufflenet_v2_x0_5", num_classes=1000)
    assert card.classes[:2] == ("tench", "goldfish")


@pytest.mark.parametrize("weights", ["ResNet18_Weights.IMAGENET1K_V1", "ShuffleNet_V2_X0_5_Weights.V3"])
def test_weights_of_another_class_of_torchvisions_are_unknown(weights):
    with pytest.raises(ModelError, match=rf"shufflenet_v2_x0_5 has no weights '{weights}'"):
        load_pretrained("shufflenet_v2_x0_5", weights)


def test_weights_without_a_last_layer_are_none_of_a_classifier():
    with pytest.raises(ModelError, match=r"'IMAGENET1K_FEATURES'; expected IMAGENET1K_V1, or"):
        load_pretrained("vgg16", "IMAGENET1K_FEATURES")


def test_torchvisions_weights_have_their_own_form():
    with pytest.raises(ModelError, match=r"options and weights \(DEFAULT\) are both set"):
        load_pretrained("resnet18", "DEFAULT", options={"width_per_group": 32})


@pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
def test_weights_of_torchvision_come_without_auxiliary_heads(cached, tmp_path, name):
    """And as torchvision's own are evaluated: with its transformation of the input."""
    state = cached(name, aux_logits=True, init_weights=False)
    network, card = load_pretrained(name, "DEFAULT")
    assert not [key for key in network.state_dict() if key.lower().startswith("aux")]
    assert network.transform_input
    assert torch.equal(network.fc.weight, state["fc.weight"])
    save_checkpoint(tmp_path / "x.pt", network.state_dict(), card)
    loaded, _ = load_checkpoint(tmp_path / "x.pt")
    assert loaded.transform_input
    assert state_digest(loaded) == state_digest(network)


def test_efficientnets_are_evaluated_with_bicubic_crops():
    preprocessing = preprocessing_of(torchvision.models.get_model_weights("efficientnet_b0").DEFAULT)
    assert preprocessing.interpolation == "bicubic"


def test_weights_that_cannot_be_downloaded_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", _offline)
    message = r"DEFAULT of resnet18 could not be downloaded from https://.*: .*no route>; put the file"
    with pytest.raises(ModelError, match=message) as caught:
        load_pretrained("resnet18", "DEFAULT")
    assert "\n" not in str(caught.value)


def _offline(*_: object, **__: object) -> None:
    raise URLError("no route")


# The built-in ones


@pytest.fixture(scope="module")
def builtin_teacher():
    return load_pretrained("wrn_16_2", "FASHION_MNIST_V1")


def test_the_builtin_teacher_is_small_and_what_its_card_says(builtin_teacher):
    network, card = builtin_teacher
    folder = Path(images.__file__).parent / "builtin"
    assert (folder / BUILTIN["wrn_16_2", "FASHION_MNIST_V1"]).stat().st_size < 6e6
    assert card.classes == CLASSES
    text = (folder / "wrn_16_2-fashion_mnist_v1.md").read_text()
    assert state_digest(network) in text


def test_the_builtin_teacher_knows_fashion(builtin_teacher):
    """On 500 test images; its card has the accuracy on all 10,000."""
    network, card = builtin_teacher
    arrays = load_subset()
    images = card.preprocessing.normalise(torch.from_numpy(arrays["test_images"][:500, ..., None]))
    with torch.inference_mode():
        hits = network(images).argmax(1).numpy() == arrays["test_labels"][:500]
    assert hits.mean() > 0.9


def test_half_precision_weights_load_as_the_same_network(tmp_path):
    card = ModelCard(
        architecture=Architecture(name="wrn_16_2", num_classes=3, stem_stride=1),
        preprocessing=Preprocessing(size=8, mean=(0.5,) * 3, std=(0.2,) * 3),
        classes=("a", "b", "c"),
    )
    network = build(card.architecture).eval()
    save_checkpoint(tmp_path / "full.pt", network.state_dict(), card)
    digest = weights_module.save_half(tmp_path / "full.pt", tmp_path / "half.safetensors")
    half, loaded = load_pretrained("wrn_16_2", str(tmp_path / "half.safetensors"))
    assert loaded == card
    assert state_digest(half) == digest
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(half(images), network(images), atol=2e-2)
