"""Names become networks: stems, channels, and what cannot be built."""

from __future__ import annotations

import pytest
import torch

from pipeline.core.errors import ModelError
from pipeline.models.architecture import Architecture, build, source_of

# A network of each family that has a small stem, its last stage, and by how much it shrinks an
# image at the stem stride of ImageNet.
FAMILIES = {
    "resnet18": ("layer4", 32),
    "resnext50_32x4d": ("layer4", 32),
    "shufflenet_v2_x0_5": ("conv5", 32),
    "mobilenet_v2": ("features", 32),
    "mobilenet_v3_small": ("features", 32),
    "mobilenet_v3_large": ("features", 32),
}


def _on_meta(architecture: Architecture) -> torch.nn.Module:
    """Build without computing weights: shapes are enough, and cost nothing."""
    with torch.device("meta"):
        return build(architecture).eval()


def _last_stage(network: torch.nn.Module, stage: str, size: int, channels: int = 3) -> list[int]:
    shapes = []
    network.get_submodule(stage).register_forward_hook(
        lambda module, given, out: shapes.append(list(out.shape))
    )
    network(torch.empty(2, channels, size, size, device="meta"))
    return shapes[0]


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_stem_stride_is_how_far_the_stem_shrinks_the_image(name, stride):
    stage, shrinks = FAMILIES[name]
    network = _on_meta(Architecture(name=name, num_classes=7, stem_stride=stride))
    shape = _last_stage(network, stage, 128)
    assert shape[2:] == [128 * 4 // (stride * shrinks)] * 2


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("stride", "channels"), [(1, 1), (4, 1)])
def test_channels_and_classes_are_those_asked_for(name, stride, channels):
    network = _on_meta(Architecture(name=name, num_classes=7, channels=channels, stem_stride=stride))
    assert network(torch.empty(2, channels, 64, 64, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["wrn_16_2", "wrn_40_2"])
def test_wide_resnets_take_any_channels_and_keep_a_quarter_of_the_side(name, channels):
    network = _on_meta(Architecture(name=name, num_classes=7, channels=channels, stem_stride=1))
    assert _last_stage(network, "groups", 28, channels) == [2, 128, 7, 7]
    assert network(torch.empty(2, channels, 28, 28, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("name", "width"), [("resnet20", 64), ("resnet8x4", 256)])
def test_small_resnets_take_any_channels_and_keep_a_quarter_of_the_side(name, width, channels):
    network = _on_meta(Architecture(name=name, num_classes=7, channels=channels, stem_stride=1))
    assert _last_stage(network, "groups", 28, channels) == [2, width, 7, 7]
    assert network(torch.empty(2, channels, 28, 28, device="meta")).shape == (2, 7)


# Of 100 classes: millions of parameters in Tian et al., arXiv 1910.10699, and what came after it (one
# digit less there), and convolutions on all paths.
LITERATURE = {
    "resnet20": (0.278, 19 + 2),
    "resnet32": (0.473, 31 + 2),
    "resnet56": (0.862, 55 + 2),
    "resnet110": (1.737, 109 + 2),
    "resnet8x4": (1.234, 7 + 3),
    "resnet32x4": (7.434, 31 + 3),
    "wrn_16_2": (0.703, 13 + 3),
    "wrn_40_1": (0.570, 37 + 2),
    "wrn_40_2": (2.255, 37 + 3),
}


@pytest.mark.parametrize("name", LITERATURE)
def test_the_literatures_nets_have_its_size_and_depth(name):
    network = _on_meta(Architecture(name=name, num_classes=100, stem_stride=1))
    millions, convolutions = LITERATURE[name]
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=5e-4)
    assert sum(isinstance(m, torch.nn.Conv2d) for m in network.modules()) == convolutions


@pytest.mark.parametrize(
    ("name", "stride", "options", "millions"),
    [
        ("mobilenet_v2", 2, {"width_mult": 0.5, "round_nearest": 4}, 0.81),
        ("shufflenet_v2_x1_0", 1, {}, 1.36),
        ("resnet50", 1, {}, 23.71),
    ],
)
def test_torchvisions_nets_become_the_literatures_by_stem_and_options(name, stride, options, millions):
    network = _on_meta(Architecture(name=name, num_classes=100, stem_stride=stride, options=options))
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.02)


def test_the_literatures_nets_and_torchvisions_have_no_name_in_common():
    literature, torchvision = source_of("resnet20"), source_of("resnet18")
    assert literature is not torchvision
    assert not set(literature.names()) & set(torchvision.names())


def test_a_wide_resnet_block_does_not_change_its_input():
    """Activations are in place: the residual must still be the block's input."""
    torch.manual_seed(0)
    network = build(Architecture(name="wrn_16_2", num_classes=3, stem_stride=1)).eval()
    block = network.groups[0][1]  # its shortcut is the identity
    x = torch.randn(2, 32, 8, 8)
    before = x.clone()
    out = block(x)
    assert torch.equal(x, before)
    residual = block.conv2(block.norm2(block.conv1(block.norm1(x).relu())).relu())
    torch.testing.assert_close(out, x + residual)


@pytest.mark.parametrize("name", ["resnet18", "wrn_16_2"])
def test_the_fitted_first_layer_is_initialised_for_its_fan(name):
    torch.manual_seed(0)
    network = build(Architecture(name=name, num_classes=2, channels=1, stem_stride=1))
    first = next(m for m in network.modules() if isinstance(m, torch.nn.Conv2d))
    assert first.in_channels == 1
    fan_out = first.out_channels * 9
    assert float(first.weight.detach().std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.2)


def test_the_same_seed_builds_the_same_weights():
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        architecture = Architecture(name="shufflenet_v2_x0_5", num_classes=3, channels=1, stem_stride=2)
        states.append(build(architecture).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_options_reach_the_builder():
    sizes = [
        sum(
            p.numel()
            for p in _on_meta(
                Architecture(name="mobilenet_v3_small", num_classes=3, options={"width_mult": width})
            ).parameters()
        )
        for width in (0.5, 1.0)
    ]
    assert sizes[0] < 0.6 * sizes[1]


def test_a_torchvision_network_without_a_small_stem_is_built_with_stride_four():
    network = _on_meta(Architecture(name="squeezenet1_1", num_classes=5))
    assert network(torch.empty(1, 3, 64, 64, device="meta")).shape == (1, 5)


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("resnet19", "resnet1"), ("wrn_16_4", "wrn_16_2"), ("mobilnet_v2", "mobilenet_v2")],
)
def test_an_unknown_model_gets_a_suggestion(name, suggestion):
    with pytest.raises(ModelError, match=rf"model '{name}' is unknown.*did you mean '{suggestion}"):
        build(Architecture(name=name, num_classes=2))


@pytest.mark.parametrize("name", ["fcn_resnet50", "r3d_18", "maskrcnn_resnet50_fpn", "raft_large"])
def test_a_torchvision_network_that_is_no_classifier_is_unknown(name):
    with pytest.raises(
        ModelError, match=r"is unknown; (did you mean '.*'\? E|e)xpected resnet8, .*wrn_40_2, a torchv"
    ):
        build(Architecture(name=name, num_classes=2))


@pytest.mark.parametrize(
    ("name", "stride", "options"),
    [
        ("resnet18", 4, {"width_mult": 0.5}),
        ("shufflenet_v2_x0_5", 4, {"stages_repeats": 3}),
        ("mobilenet_v2", 4, {"width_mult": "wide"}),
        ("mobilenet_v2", 4, {"num_classes": 4}),
        ("wrn_16_2", 1, {"depth": 22}),
        ("mobilenet_v2", 4, {"round_nearest": 0}),
    ],
)
def test_options_that_do_not_fit_are_refused_with_their_values(name, stride, options):
    architecture = Architecture(name=name, num_classes=2, stem_stride=stride, options=options)
    with pytest.raises(ModelError, match=rf"model {name} with options .*{next(iter(options))}"):
        build(architecture)


def test_weights_among_the_options_are_refused():
    architecture = Architecture(name="resnet18", num_classes=2, stem_stride=4, options={"weights": "NOPE"})
    with pytest.raises(ModelError, match=r"weights in its options; .* weights: 'NOPE'"):
        build(architecture)


@pytest.mark.parametrize("stride", [2, 4])
def test_a_wide_resnet_has_no_other_stem(stride):
    with pytest.raises(ModelError, match=rf"wrn_16_2 has stem_stride {stride}; it supports only 1"):
        build(Architecture(name="wrn_16_2", num_classes=2, stem_stride=stride))


def test_a_small_stem_for_a_family_without_one_is_refused_with_the_families_that_have():
    with pytest.raises(ModelError, match=r"stem_stride 2; expected 4: only resnet, .*shufflenet"):
        build(Architecture(name="squeezenet1_1", num_classes=2, stem_stride=2))


@pytest.mark.parametrize(("size", "stride"), [(28, 1), (48, 1), (49, 2), (96, 2), (97, 4), (224, 4)])
def test_the_default_stem_suits_the_image(size, stride):
    assert source_of("resnet18").stem_stride("resnet18", size) == stride
    assert source_of("wrn_16_2").stem_stride("wrn_16_2", size) == 1
    assert source_of("squeezenet1_1").stem_stride("squeezenet1_1", size) == 4


def test_an_architecture_survives_its_dictionary():
    architecture = Architecture(
        name="mobilenet_v2", num_classes=4, channels=1, stem_stride=2, options={"width_mult": 0.5}
    )
    assert Architecture(**architecture.to_dict()) == architecture
