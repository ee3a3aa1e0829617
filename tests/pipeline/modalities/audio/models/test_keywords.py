"""The literature's networks for clips: shapes, causality, options, and image nets on spectrograms."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pipeline.core.errors import ModelError
from pipeline.modalities.audio.models.keywords import NETS, AudioLiterature
from pipeline.modalities.audio.models.waveforms import WaveNet
from pipeline.modalities.audio.preprocessing import AudioPreprocessing, GivenAudio
from pipeline.models.architecture import Architecture, build, source_of
from pipeline.models.heads import head_of

INPUTS = {"waveform": (2, 1, 4000), "log_mel": (2, 1, 40, 51)}
# Parameters at the papers' own sizes with 12 classes: 23 k for DS-CNN S, 9.2 k for BC-ResNet-1.
SIZES = {"ds_cnn": 23_180, "bc_resnet": 9_232, "m5": 559_116}


@pytest.mark.parametrize("name", NETS)
def test_each_gives_logits_and_learns(name):
    network = build(Architecture(name=name, num_classes=12, channels=1))
    logits = network(torch.randn(INPUTS[NETS[name].features], generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (2, 12)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    _, head = head_of(network)
    assert head.out_features == 12
    assert isinstance(source_of(name), AudioLiterature)


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_those_of_the_papers(name):
    network = build(Architecture(name=name, num_classes=12, channels=1))
    assert sum(parameter.numel() for parameter in network.parameters()) == SIZES[name]


def test_wavenet_hears_the_past_alone():
    torch.manual_seed(0)
    network = WaveNet(num_classes=3, channels=4, skips=4, layers=3, stacks=2, stride=4, frame=1).eval()
    wave = torch.randn(1, 1, 200)
    later = wave.clone()
    later[..., 120:] = 0
    seen: list[torch.Tensor] = []
    network.after.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network(wave), network(later)
    # A step of the stem sees 8 samples, up to its own last one.
    assert torch.equal(seen[0][..., :30], seen[1][..., :30])
    assert not torch.equal(seen[0][..., 31], seen[1][..., 31])


def test_the_features_are_those_of_the_network():
    usual, family = AudioPreprocessing.usual(4_000, 8_000), AudioLiterature()
    assert family.fitted("m5", usual, GivenAudio()).features == "waveform"
    assert family.fitted("ds_cnn", usual, GivenAudio(n_mels=64)).n_mels == 64
    with pytest.raises(
        ModelError, match="model m5 takes features: waveform, and its preprocessing says log_mel"
    ):
        family.fitted("m5", usual, GivenAudio(features="log_mel"))
    with pytest.raises(ModelError, match=r"model m5 is for clips; expected data.modality: audio"):
        family.fitted("m5", SimpleNamespace(), GivenAudio())


@pytest.mark.parametrize(
    ("name", "options", "stride", "message"),
    [
        ("ds_cnn", {"wide": 3}, 4, "model ds_cnn with options"),
        ("m5", {}, 2, "model m5 has stem_stride 2; expected none"),
    ],
)
def test_other_options_are_refused(name, options, stride, message):
    with pytest.raises(ModelError, match=message):
        build(Architecture(name=name, num_classes=2, channels=1, stem_stride=stride, options=options))


def test_bc_resnet_says_how_many_bands_it_wants():
    network = build(Architecture(name="bc_resnet", num_classes=2, channels=1))
    with pytest.raises(ValueError, match="64 mel bands; expected a multiple of 40; set n_mels"):
        network(torch.zeros(1, 1, 64, 51))


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5", "wrn_16_2"])
def test_image_nets_take_spectrograms(name):
    source, usual = source_of(name), AudioPreprocessing.usual(4_000, 8_000)
    architecture = Architecture(
        name=name, num_classes=5, channels=1, stem_stride=source.stem_stride(name, usual.side)
    )
    network = build(architecture).eval()
    assert network(usual.normalise(usual.example(2))).shape == (2, 5)
