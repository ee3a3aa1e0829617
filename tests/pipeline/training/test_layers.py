"""Layers of a network in order: blocks of all kinds of networks, and timm's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.models.architecture import Architecture, build
from pipeline.training.optimizer import depths


def _network(name: str) -> nn.Module:
    stride = 1 if name == "resnet20" else 4
    with torch.device("meta"):
        return build(Architecture(name=name, num_classes=5, stem_stride=stride))


# How many layers there are, and parameters of which it is clear how deep they lie.
NETWORKS = {
    "resnet18": (
        10,
        {"conv1.weight": 9, "bn1.bias": 9, "layer1.0.conv2.weight": 8, "layer4.1.bn2.bias": 1},
    ),
    "resnet20": (11, {"stem.weight": 10, "norm.weight": 10, "groups.1.0.shortcut.0.weight": 6}),
    "mobilenet_v2": (20, {"features.0.0.weight": 19, "features.17.conv.1.0.weight": 2}),
    "shufflenet_v2_x0_5": (19, {"conv1.0.weight": 18, "stage4.3.branch2.0.weight": 2, "conv5.1.bias": 1}),
    "convnext_tiny": (
        23,
        {"features.0.0.weight": 22, "features.7.2.layer_scale": 1, "classifier.0.bias": 1},
    ),
    "swin_t": (17, {"features.0.0.weight": 16, "features.7.1.attn.qkv.weight": 1, "norm.weight": 1}),
    "densenet121": (9, {"features.conv0.weight": 8, "features.denseblock4.denselayer16.conv2.weight": 1}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_layer_is_a_block(name):
    count, known = NETWORKS[name]
    network = _network(name)
    found = depths(network)
    assert set(found) == {key for key, _ in network.named_parameters()}
    assert set(found.values()) == set(range(count))
    assert {key: found[key] for key in known} == known


def test_depth_falls_from_the_images_to_the_logits():
    for name in NETWORKS:
        found = list(depths(_network(name)).values())
        assert found == sorted(found, reverse=True)


def test_the_layers_of_a_transformer_are_those_of_beit():
    """Embeddings, twelve blocks, and the head: rates of 0.75^13 to 1, arXiv 2106.08254."""
    found = depths(_network("vit_b_16"))
    for name in ("class_token", "conv_proj.weight", "encoder.pos_embedding"):
        assert found[name] == 13
    for block in range(12):
        assert found[f"encoder.layers.encoder_layer_{block}.mlp.0.weight"] == 12 - block
    assert (found["encoder.ln.weight"], found["heads.head.weight"]) == (1, 0)


def test_timms_networks_have_timms_layers():
    found = depths(_network("timm:test_vit"))
    assert found["cls_token"] == found["patch_embed.proj.weight"] == max(found.values())
    assert found["blocks.0.mlp.fc1.weight"] == max(found.values()) - 1
    assert found["head.weight"] == 0


def test_a_network_in_a_wrapper_has_the_same_layers():
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = _network("resnet18")
            self.scale = nn.Parameter(torch.ones(1, device="meta"))

    plain, wrapped = depths(_network("resnet18")), depths(Wrapper())
    assert {name: wrapped[f"backbone.{name}"] for name in plain} == plain


def test_a_single_layer_is_the_last():
    assert depths(nn.Sequential(nn.Flatten(), nn.Linear(3, 2))) == {"1.weight": 0, "1.bias": 0}
