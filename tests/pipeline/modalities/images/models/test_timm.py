"""timm's models: built, with their weights and preprocessing, and what is said without timm.

Weights come from a file here in place of timm's hub; nothing else differs.
"""

from __future__ import annotations

import sys

import pytest
import timm
import torch
from safetensors.torch import save_file

from pipeline.core.errors import ModelError
from pipeline.modalities.images.preprocessing import GivenPreprocessing
from pipeline.models.architecture import Architecture, build
from pipeline.models.checkpoint import load_checkpoint, save_checkpoint
from pipeline.models.pretrained import Start, initial_network, load_pretrained, pretrained_network


@pytest.fixture
def hub(tmp_path):
    """Return a function from a model's name to options that read random weights from a file."""

    def options(name: str, num_classes: int = 1000) -> dict[str, object]:
        torch.manual_seed(1)
        path = tmp_path / f"{name}.safetensors"
        save_file(timm.create_model(name, num_classes=num_classes).state_dict(), path)
        return {"pretrained_cfg_overlay": {"file": str(path), "num_classes": num_classes}}

    return options


def _images(size: int, channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))


# Fresh


@pytest.mark.parametrize(
    ("name", "size"), [("test_resnet", 32), ("test_vit", 64), ("test_efficientnet", 48)]
)
def test_a_fresh_network_fits_classes_channels_and_size(tiny_data, name, size):
    start = Start(model=f"timm:{name}", weights=None, size=size)
    network, card = initial_network(tiny_data, start, 0)
    network.train()(_images(size, 1)).square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    assert (card.preprocessing.size, card.architecture.channels) == (size, 1)


def test_options_reach_timms_builder():
    architecture = Architecture(name="timm:test_resnet", num_classes=3, options={"drop_rate": 0.7})
    assert build(architecture).drop_rate == 0.7


@pytest.mark.parametrize("options", [{"widht": 2}, {"num_classes": 4}])
def test_options_that_timms_builder_does_not_take_are_refused(options):
    with pytest.raises(ModelError, match=rf"timm:test_resnet with options .*{next(iter(options))}"):
        build(Architecture(name="timm:test_resnet", num_classes=3, options=options))


def test_a_stem_for_small_images_is_refused():
    with pytest.raises(ModelError, match=r"timm:test_resnet has stem_stride 2; expected 4"):
        build(Architecture(name="timm:test_resnet", num_classes=3, stem_stride=2))


def test_an_unknown_name_gets_a_suggestion():
    with pytest.raises(ModelError, match=r"'timm:resnet510' is unknown; .*did you mean 'timm:resnet5"):
        build(Architecture(name="timm:resnet510", num_classes=3))


def test_an_unknown_tag_lists_those_there_are():
    with pytest.raises(ModelError, match=r"'a1'; expected r160_in1k, or"):
        build(Architecture(name="timm:test_resnet.a1", num_classes=3))


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r"not installed; .*pip install -e '.*\[timm\]'") as caught:
        build(Architecture(name="timm:test_resnet", num_classes=3))
    assert "\n" not in str(caught.value)


# With timm's weights


@pytest.mark.parametrize("weights", ["pretrained", "r160_in1k"])
def test_weights_come_with_timms_preprocessing_and_classes(hub, weights):
    options = hub("test_vit")
    network, card = load_pretrained("timm:test_vit", weights, options=options)
    settings = timm.get_pretrained_cfg("test_vit.r160_in1k")
    assert card.preprocessing.to_dict() == {
        "size": settings.input_size[1],
        "mean": list(settings.mean),
        "std": list(settings.std),
        "crop_fraction": settings.crop_pct,
        "interpolation": "bicubic",
    }
    assert (len(card.classes), card.classes[0]) == (1000, "n01440764")
    theirs = timm.create_model("test_vit", pretrained=True, **options).eval()
    with torch.inference_mode():
        assert torch.equal(network(_images(160)), theirs(_images(160)))


def test_a_crop_that_is_not_the_centres_is_said(hub, capsys):
    options = hub("test_resnet")
    options["pretrained_cfg_overlay"]["crop_mode"] = "squash"
    load_pretrained("timm:test_resnet", "pretrained", options=options)
    assert "crop mode squash; here it gets a centre" in capsys.readouterr().err


def test_images_that_are_no_squares_are_refused(hub):
    options = hub("test_resnet")
    options["pretrained_cfg_overlay"]["input_size"] = (3, 96, 128)
    with pytest.raises(ModelError, match=r"timm:test_resnet takes images of 96x128 pixels; expected a sq"):
        load_pretrained("timm:test_resnet", "pretrained", options=options)


def test_unknown_weights_list_timms_tags():
    message = r"'r170'; expected pretrained, r160_in1k, or the path"
    with pytest.raises(ModelError, match=message):
        load_pretrained("timm:test_vit", "r170")


def test_the_tag_of_the_name_and_other_weights_contradict():
    with pytest.raises(ModelError, match=r"timm:test_vit.r160_in1k has no weights 'r1'"):
        load_pretrained("timm:test_vit.r160_in1k", "r1")


def test_weights_that_cannot_be_had_are_one_line(tmp_path):
    nowhere = {"pretrained_cfg_overlay": {"file": str(tmp_path / "none.safetensors")}}
    with pytest.raises(
        ModelError, match=r"weights pretrained of timm:test_resnet could not be downloaded"
    ) as caught:
        load_pretrained("timm:test_resnet", "pretrained", options=nowhere)
    assert "\n" not in str(caught.value)


def test_a_teacher_survives_its_checkpoint(hub, tmp_path, tiny_data):
    start = Start(model="timm:test_efficientnet", weights="pretrained", options=hub("test_efficientnet"))
    network, card = pretrained_network(tiny_data, start)
    save_checkpoint(tmp_path / "x.pt", network.state_dict(), card)
    loaded, loaded_card = load_checkpoint(tmp_path / "x.pt")
    assert loaded_card == card
    with torch.inference_mode():
        assert torch.equal(loaded(_images(160)), network(_images(160)))


def test_a_transformer_takes_another_size_with_its_weights(hub, tmp_path, tiny_data):
    start = Start(
        model="timm:test_vit",
        weights="pretrained",
        options=hub("test_vit"),
        preprocessing=GivenPreprocessing(size=96),
    )
    network, card = pretrained_network(tiny_data, start)
    assert card.architecture.options["img_size"] == card.preprocessing.size == 96
    save_checkpoint(tmp_path / "x.pt", network.state_dict(), card)
    loaded, _ = load_checkpoint(tmp_path / "x.pt")
    with torch.inference_mode():
        assert torch.equal(loaded(_images(96)), network(_images(96)))


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_a_fine_tuned_network_has_a_fresh_head_for_the_data(hub, tmp_path, tiny_data, name):
    start = Start(model=f"timm:{name}", weights="pretrained", options=hub(name))
    network, card = initial_network(tiny_data, start, 0)
    before = timm.create_model(name, pretrained=True, **start.options).state_dict()
    changed = {key for key, tensor in network.state_dict().items() if not torch.equal(tensor, before[key])
               if tensor.shape == before[key].shape}  # fmt: skip
    assert not changed
    assert card.architecture.num_classes == 3
    save_checkpoint(tmp_path / "x.pt", network.state_dict(), card)
    model = load_pretrained(f"timm:{name}", str(tmp_path / "x.pt"))[0]
    assert model(_images(160)).shape == (2, 3)


def test_a_network_without_a_head_gets_one(hub, tiny_data):
    """As timm has self-supervised ones: what they give are features."""
    start = Start(model="timm:test_vit", weights="pretrained", options=hub("test_vit", num_classes=0))
    network, card = initial_network(tiny_data, start, 0)
    assert network(_images(160)).shape == (2, 3)
    assert card.architecture.num_classes == 3


def test_the_number_of_classes_is_no_option_of_weights():
    with pytest.raises(ModelError, match=r"num_classes comes from the weights"):
        load_pretrained("timm:test_vit", "pretrained", options={"num_classes": 5})
