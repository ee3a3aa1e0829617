"""Audio classifiers of transformers: fresh ones from a configuration, pretrained ones from a folder."""

from __future__ import annotations

import sys

import pytest
import torch

from pipeline.core.errors import ModelError
from pipeline.modalities.audio.models.transformers import AudioTransformers
from pipeline.modalities.audio.preprocessing import AudioPreprocessing, GivenAudio
from pipeline.models.architecture import source_of
from pipeline.models.heads import head_of, replace_head

transformers = pytest.importorskip("transformers")
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
CONVOLUTIONS = {"conv_dim": (8, 8), "conv_kernel": (10, 3), "conv_stride": (5, 2)}
EMBEDDING = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8}
EXTRACTOR = '{"sampling_rate": 4000, "do_normalize": true}'
USUAL = AudioPreprocessing.usual(4_000, 8_000)


@pytest.fixture
def hubert(tmp_path):
    """A folder of a small network with two labels."""
    torch.manual_seed(0)
    config = transformers.HubertConfig(**SMALL, **CONVOLUTIONS, **EMBEDDING, id2label={0: "no", 1: "yes"})
    transformers.HubertForSequenceClassification(config).save_pretrained(tmp_path / "hubert")
    (tmp_path / "hubert/preprocessor_config.json").write_text(
        '{"sampling_rate": 4000, "do_normalize": true}'
    )
    return tmp_path / "hubert"


@pytest.fixture
def ast(tmp_path):
    """A folder with the configuration of a small spectrogram transformer."""
    transformers.ASTConfig(**SMALL, patch_size=8, num_mel_bins=32, max_length=99).save_pretrained(
        tmp_path / "ast"
    )
    return tmp_path / "ast"


def fresh(name: str, **given: object):
    family = source_of(name)
    assert isinstance(family, AudioTransformers)
    preprocessing = family.fitted(name, USUAL, GivenAudio(**given))
    options = family.fitted_options(name, preprocessing)
    network = family.build(name, num_classes=5, channels=1, stem_stride=4, options=options)
    return network.eval(), preprocessing


def test_a_fresh_network_hears_waveforms_at_its_own_rate(hubert):
    network, preprocessing = fresh(f"hf:{hubert}")
    assert (preprocessing.features, preprocessing.sample_rate) == ("waveform", 4_000)
    clips = preprocessing.example(2, torch.Generator().manual_seed(0))
    logits = network(preprocessing.normalise(clips))
    assert logits.shape == (2, 5)
    assert torch.allclose(network(preprocessing.normalise(clips // 2)), logits, atol=0.02)


def test_a_fresh_network_sees_spectrograms_of_any_length(ast):
    network, preprocessing = fresh(f"hf:{ast}")
    assert (preprocessing.features, preprocessing.n_mels) == ("log_mel", 32)
    assert network(preprocessing.normalise(preprocessing.example(2))).shape == (2, 5)


def test_pretrained_weights_come_back_and_take_a_new_head(hubert):
    name, family = f"hf:HubertForSequenceClassification:{hubert}", AudioTransformers()
    found = family.pretrained(name, "pretrained", {})
    assert found.classes == ("no", "yes")
    assert (found.preprocessing.rendered_rate, found.preprocessing.size) == (4_000, 4_000)
    options = {"num_classes": 2, "channels": 1, "stem_stride": 4, "options": found.options}
    again = family.build(name, **options).eval()
    again.load_state_dict(found.network.state_dict())
    waves = torch.randn(2, 1, 4_000)
    assert torch.equal(again(waves), found.network(waves))
    replace_head(again, 7)
    assert (head_of(again)[1].out_features, again(waves).shape) == (7, (2, 7))


def test_an_unusable_folder_is_a_clear_error(hubert, tmp_path):
    family = AudioTransformers()
    assert not family.knows(f"hf:{tmp_path}")
    with pytest.raises(ModelError, match=r"config.json is of no audio model; expected a folder"):
        family.fitted(f"hf:{tmp_path}", USUAL, GivenAudio())
    with pytest.raises(ModelError, match=r"weights 'large' of hf:.* are unknown; expected pretrained"):
        family.pretrained(f"hf:{hubert}", "large", {})
    (hubert / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"hubert cannot be built \(.*; expected a folder"):
        family.pretrained(f"hf:{hubert}", "pretrained", {})
    options = {"config": {"model_type": "hubert", "hidden_size": "wide"}}
    with pytest.raises(ModelError, match=r"hubert cannot be built \(.*; expected a folder"):
        family.build(f"hf:{hubert}", num_classes=2, channels=1, stem_stride=4, options=options)


def test_without_transformers_the_error_names_the_extra(hubert, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match=r"needs transformers, .* the extra transformers; run: pip"):
        AudioTransformers().pretrained(f"hf:{hubert}", "pretrained", {})
