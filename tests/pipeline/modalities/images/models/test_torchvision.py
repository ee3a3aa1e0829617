"""Every family of torchvision's classifiers: built for the data, trained a step, and saved."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torchvision.models import VisionTransformer

from pipeline.core.errors import ModelError
from pipeline.models.architecture import source_of
from pipeline.models.auxiliary import weighted_logits
from pipeline.models.checkpoint import load_checkpoint, save_checkpoint
from pipeline.models.pretrained import Start, initial_network

# A model of each family, and a small side that it takes.
FAMILIES = {
    "alexnet": 64,
    "convnext_tiny": 32,
    "densenet121": 32,
    "efficientnet_b0": 32,
    "efficientnet_v2_s": 32,
    "googlenet": 32,
    "inception_v3": 299,
    "maxvit_t": 224,
    "mnasnet0_5": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "regnet_y_400mf": 32,
    "resnet18": 32,
    "shufflenet_v2_x0_5": 32,
    "squeezenet1_1": 32,
    "swin_t": 32,
    "swin_v2_t": 32,
    "vgg11": 32,
    "vit_b_32": 64,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_of_each_family_fits_the_data_and_learns(tiny_data, name):
    size = FAMILIES[name]
    network, card = initial_network(tiny_data, Start(model=name, weights=None, size=size), 0)
    assert (card.preprocessing.size, card.preprocessing.channels) == (size, 1)
    assert card.classes == tiny_data.classes
    images = torch.randn(2, 1, size, size, generator=torch.Generator().manual_seed(0))
    parts = weighted_logits(network.train()(images))
    assert all(logits.shape == (2, 3) for _, logits in parts)
    loss = sum(weight * F.cross_entropy(logits, torch.tensor([0, 1])) for weight, logits in parts)
    loss.backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


def test_every_classifier_has_a_family_above():
    """ResNeXt and the wide ResNets are of ResNet's class."""
    known = {name.split("_")[0].rstrip("0123456789") for name in FAMILIES} | {"resnext", "wide"}
    names = source_of("resnet18").names()
    assert len(names) >= 80
    assert not [name for name in names if name.split("_")[0].rstrip("0123456789") not in known]


# Sizes


def test_inception_sees_299_pixels_unless_told_otherwise(tiny_data):
    start = Start(model="inception_v3", weights=None, options={"aux_logits": False, "init_weights": False})
    _, card = initial_network(tiny_data, start, 0)
    assert card.preprocessing.size == 299


@pytest.mark.parametrize("size", [64, 298])
def test_inceptions_auxiliary_head_has_no_room_in_smaller_images(tiny_data, size):
    message = (
        rf"inception_v3 gets images of {size} pixels; expected at least 299, or 75 .*aux_logits: false"
    )
    with pytest.raises(ModelError, match=message):
        initial_network(tiny_data, Start(model="inception_v3", weights=None, size=size), 0)


@pytest.mark.parametrize("size", [74, 75])
def test_inception_without_its_auxiliary_head_has_room_in_75_pixels(tiny_data, size):
    options = {"aux_logits": False, "init_weights": False}
    start = Start(model="inception_v3", weights=None, size=size, options=options)
    if size == 75:
        initial_network(tiny_data, start, 0)
        return
    message = (
        r"inception_v3 cannot take images of 74x74 pixels .*expected at least 75 pixels; set data.image"
    )
    with pytest.raises(ModelError, match=message):
        initial_network(tiny_data, start, 0)


def test_images_too_small_for_a_network_are_refused_with_what_it_needs(tiny_data):
    message = r"squeezenet1_1 cannot take images of 12x12 pixels and 1 channels .*at least 17 pixels"
    with pytest.raises(ModelError, match=message):
        initial_network(tiny_data, Start(model="squeezenet1_1", weights=None, size=12), 0)


def test_a_transformer_is_built_for_the_size_of_its_images(tiny_data):
    network, card = initial_network(tiny_data, Start(model="vit_b_32", weights=None, size=96), 0)
    assert network.encoder.pos_embedding.shape == (1, 1 + 9, 768)
    assert card.architecture.options == {"image_size": 96}


def test_a_transformer_whose_patches_do_not_fit_is_refused(tiny_data):
    message = r"vit_b_32 with options {'image_size': 40}: .*indivisible by patch size.*correct the options"
    with pytest.raises(ModelError, match=message):
        initial_network(tiny_data, Start(model="vit_b_32", weights=None, size=40), 0)


def test_a_transformers_positions_are_interpolated_for_another_size():
    torch.manual_seed(0)
    network = VisionTransformer(
        image_size=32, patch_size=8, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8, num_classes=3
    ).eval()
    before = network.encoder.pos_embedding.detach().clone()
    source_of("vit_b_32").resize(network, 48)
    assert network(torch.zeros(2, 3, 48, 48)).shape == (2, 3)
    after = network.encoder.pos_embedding.detach()
    assert torch.equal(after[:, :1], before[:, :1])
    smooth = F.interpolate(before[:, 1:].mT.reshape(1, 8, 4, 4), 6, mode="bicubic", align_corners=True)
    torch.testing.assert_close(after[:, 1:].mT.reshape(1, 8, 6, 6), smooth)
    with pytest.raises(ModelError, match=r"patches have 8 pixels, but images have 44; expected a mul"):
        source_of("vit_b_32").resize(network, 44)


# Checkpoints


@pytest.mark.parametrize("name", ["googlenet", "mobilenet_v3_small", "swin_t"])
def test_a_checkpoint_of_a_fresh_network_gives_the_same_logits(tiny_data, tmp_path, name):
    network, card = initial_network(tiny_data, Start(model=name, weights=None, size=32), 0)
    save_checkpoint(tmp_path / "x.pt", network.state_dict(), card)
    loaded, _ = load_checkpoint(tmp_path / "x.pt")
    images = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(loaded(images), network.eval()(images))


def test_weights_that_lie_in_the_hub_folder_need_no_download(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    source = source_of("resnet18")
    assert source.installed() == []
    (tmp_path / "checkpoints").mkdir()
    for name in ("resnet18-f37072fd.pth", "vit_b_16-c867db91.pth", "vgg16_features-amdegroot-88682ab5.pth"):
        (tmp_path / "checkpoints" / name).touch()
    (found,) = source.installed()
    assert (found.model, found.weights) == ("resnet18", "IMAGENET1K_V1")
    assert found.top1 == pytest.approx(0.69758)
    assert found.forward_flops == pytest.approx(3.6e9, rel=0.02)
