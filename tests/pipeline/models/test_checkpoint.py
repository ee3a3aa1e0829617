"""Models on disk: tensors alone and a card; nothing is ever executed."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.core.errors import ModelError
from pipeline.core.hashing import spec_digest
from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.models.architecture import Architecture, build
from pipeline.models.checkpoint import (
    ModelCard,
    load_checkpoint,
    load_state,
    read_tensors,
    save_checkpoint,
    state_digest,
    tensors_digest,
)
from pipeline.models.teacher import Teacher

CARD = ModelCard(
    architecture=Architecture(
        name="shufflenet_v2_x0_5", num_classes=3, channels=1, stem_stride=2, options={}
    ),
    preprocessing=Preprocessing(size=28, mean=(0.3,), std=(0.25,), crop_fraction=0.875),
    classes=("a", "b", "c"),
)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return build(CARD.architecture).eval()


@pytest.fixture
def saved(tmp_path, network) -> Path:
    path = tmp_path / "models" / "x.pt"
    save_checkpoint(path, network.state_dict(), CARD)
    return path


class _Danger:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_comes_back_with_its_card_and_the_same_logits(saved, network):
    loaded, card = load_checkpoint(saved)
    assert card == CARD
    assert not loaded.training
    images = torch.randn(2, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(loaded(images), network(images))


def test_torch_loads_a_checkpoint_with_weights_only(saved, network):
    state = torch.load(saved, weights_only=True)
    assert list(state) == list(network.state_dict())
    assert all(type(tensor) is torch.Tensor for tensor in state.values())


def test_a_checkpoint_is_two_files_and_leaves_no_other(saved):
    assert sorted(path.name for path in saved.parent.iterdir()) == ["x.json", "x.pt"]


def test_saving_again_writes_the_same_bytes(saved, network):
    before = saved.read_bytes()
    save_checkpoint(saved, network.state_dict(), CARD)
    assert saved.read_bytes() == before


def test_the_bytes_do_not_depend_on_where_a_checkpoint_is_kept(saved, tmp_path, network):
    save_checkpoint(tmp_path / "elsewhere" / "y.pt", network.state_dict(), CARD)
    assert (tmp_path / "elsewhere" / "y.pt").read_bytes() == saved.read_bytes()


def test_weights_in_channels_last_memory_are_saved_by_value(tmp_path, network):
    network.to(memory_format=torch.channels_last)
    try:
        save_checkpoint(tmp_path / "x.pt", network.state_dict(), CARD)
    finally:
        network.to(memory_format=torch.contiguous_format)
    assert state_digest(load_checkpoint(tmp_path / "x.pt")[0]) == state_digest(network)


def test_half_precision_safetensors_fill_a_network_of_single_precision(tmp_path, network):
    half = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in network.state_dict().items()
    }
    save_file(half, tmp_path / "x.safetensors")
    (tmp_path / "x.json").write_text(json.dumps(CARD.to_dict()))
    loaded, _ = load_checkpoint(tmp_path / "x.safetensors")
    for name, tensor in loaded.state_dict().items():
        expected = half[name].float() if tensor.is_floating_point() else half[name]
        assert torch.equal(tensor, expected)
        assert tensor.dtype != torch.float16


def test_a_pickle_with_code_is_refused_and_not_executed(saved):
    victim = saved.parent / "executed"
    torch.save({"weight": torch.zeros(1), "x": _Danger(victim)}, saved)
    with pytest.raises(ModelError, match=r"x.pt: not a checkpoint of tensors only"):
        load_checkpoint(saved)
    assert not victim.exists()


@pytest.mark.parametrize("protocol", [2, pickle.DEFAULT_PROTOCOL])
def test_a_plain_pickle_with_code_is_refused_and_not_executed(saved, protocol):
    victim = saved.parent / "executed"
    saved.write_bytes(pickle.dumps(_Danger(victim), protocol))
    with pytest.raises(ModelError, match=r"x.pt: not a checkpoint of tensors only"):
        load_checkpoint(saved)
    assert not victim.exists()


def test_a_whole_pickled_network_is_refused(saved, network):
    torch.save(network, saved)
    message = (
        r"only \(a whole pickled module, .*ShuffleNetV2.*torch.save\(model.state_dict\(\), 'weights.pt'\)"
    )
    with pytest.raises(ModelError, match=message):
        read_tensors(saved)


@pytest.mark.parametrize("content", [torch.zeros(3), [torch.zeros(3)], {"epoch": 3}, {1: torch.zeros(3)}])
def test_a_file_without_named_tensors_is_refused(saved, content):
    torch.save(content, saved)
    with pytest.raises(ModelError, match="contains no named tensors; expected a plain state dict"):
        read_tensors(saved)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello world", b"PK\x03\x04", bytes(100)])
def test_a_file_that_is_no_checkpoint_is_refused_by_name(tmp_path, suffix, content):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=rf"x{suffix}: not a checkpoint"):
        read_tensors(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelError, match=r"x.pt: not a checkpoint"):
        load_checkpoint(saved)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_missing_tensors_are_named(tmp_path, suffix):
    with pytest.raises(ModelError, match=rf"x{suffix}: no such file; expected a checkpoint"):
        read_tensors(tmp_path / f"x{suffix}")


def test_a_missing_card_is_named_with_what_writes_it(saved):
    saved.with_suffix(".json").unlink()
    with pytest.raises(ModelError, match=r"x.json: no such file; .*pipeline train-teacher"):
        load_checkpoint(saved)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"architecture": {"nam": "x"}}'])
def test_a_card_that_is_none_is_refused(saved, content):
    saved.with_suffix(".json").write_text(content)
    with pytest.raises(ModelError, match=r"x.json: not a model card"):
        load_checkpoint(saved)


def test_missing_unexpected_and_misshapen_tensors_are_listed(network):
    state = dict(network.state_dict())
    state["strange"] = state.pop("fc.bias")
    state["fc.weight"] = torch.zeros(5, 1024)
    message = (
        r"old.pt: .*missing \['fc.bias'\], unexpected \['strange'\].*"
        r"'fc.weight \(5, 1024\) \(expected \(3, 1024\)\)'"
    )
    with pytest.raises(ModelError, match=message):
        load_state(network, state, "old.pt")


def _card(saved: Path, **changed: object) -> None:
    """Change a card; a dotted name is a field of a part of it."""
    path = saved.with_suffix(".json")
    card = json.loads(path.read_text())
    for name, value in changed.items():
        part, _, field = name.rpartition("__")
        (card[part] if part else card)[field] = value
    path.write_text(json.dumps(card))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("architecture__num_classes", "3"),
        ("architecture__num_classes", 0),
        ("architecture__num_classes", True),
        ("architecture__num_classes", 10**12),
        ("architecture__channels", 2),
        ("architecture__stem_stride", 3.5),
        ("architecture__options", ["a"]),
        ("architecture__selected", [-1]),
        ("architecture__surprise", 1),
        ("architecture__name", 7),
        ("architecture__name", "a:b\x1b[2J"),
        ("architecture__name", "a:b\n"),
        ("preprocessing__size", 0),
        ("preprocessing__size", 10**9),
        ("preprocessing__mean", 0.5),
        ("preprocessing__mean", ["0.5"]),
        ("preprocessing__std", [0.0]),
        ("preprocessing__std", [0.1, 0.1]),
        ("preprocessing__crop_fraction", 2),
        ("preprocessing__interpolation", "lanczos"),
        ("classes", []),
        ("classes", "abc"),
        ("classes", [1, 2, 3]),
        ("orientation", "as stored"),
        ("weights_sha256", "abc"),
    ],
)
def test_a_card_with_a_wrong_value_is_one_line_that_names_it(saved, name, value):
    _card(saved, **{name: value})
    with pytest.raises(ModelError, match=r"x.json: not a model card \(.*; write it again") as caught:
        load_checkpoint(saved)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff\xfe", b'{"a": ' * 5000])
def test_a_card_that_is_nonsense_is_one_line(saved, content):
    saved.with_suffix(".json").write_bytes(content)
    with pytest.raises(ModelError, match=r"x.json: not a model card"):
        load_checkpoint(saved)


def test_a_card_that_is_a_folder_or_a_pipe_is_one_line(saved):
    card = saved.with_suffix(".json")
    card.unlink()
    os.mkfifo(card)
    with pytest.raises(ModelError, match=r"x.json: not a file; expected a model card"):
        load_checkpoint(saved)
    card.unlink()
    card.mkdir()
    with pytest.raises(ModelError, match=r"x.json: not a file; expected a model card"):
        load_checkpoint(saved)


# What a card says of the weights


def test_a_card_says_the_orientation_of_images_and_the_weights_digest(saved, network):
    card = json.loads(saved.with_suffix(".json").read_text())
    assert card["orientation"] == "exif"
    assert card["weights_sha256"] == state_digest(network)
    assert {name: card[name] for name in CARD.to_dict()} == CARD.to_dict()


def test_what_a_card_says_besides_is_not_in_a_teachers_digest(saved, network):
    """So stores keep the fingerprints that they had."""
    loaded, card = load_checkpoint(saved)
    assert card.to_dict() == CARD.to_dict()
    assert not {"orientation", "weights_sha256"} & {*card.to_dict(), *card.to_dict()["preprocessing"]}
    teacher = Teacher(name="t", network=loaded, card=card, precision="fp32")
    parts = {"weights": state_digest(network), "card": CARD.to_dict(), "precision": "fp32"}
    assert teacher.digest() == spec_digest(parts)


def test_numbers_of_a_card_stay_as_they_are_written(saved):
    """1 and 1.0 have different digests, and older cards may have either."""
    _card(saved, preprocessing__crop_fraction=1)
    assert type(load_checkpoint(saved)[1].preprocessing.crop_fraction) is int


def test_a_card_without_a_digest_still_loads(saved, network):
    card = json.loads(saved.with_suffix(".json").read_text())
    del card["weights_sha256"], card["orientation"]
    saved.with_suffix(".json").write_text(json.dumps(card))
    assert state_digest(load_checkpoint(saved)[0]) == state_digest(network)


def test_a_flipped_bit_in_the_weights_is_noticed(saved, network):
    content = bytearray(saved.read_bytes())
    values = network.state_dict()["fc.weight"].numpy().tobytes()
    content[content.index(values) + 5] ^= 16
    saved.write_bytes(content)
    with pytest.raises(ModelError, match=r"x.pt: weights do not match x.json"):
        load_checkpoint(saved)


def test_weights_of_another_file_are_noticed(saved, network):
    torch.save({name: tensor * 2 for name, tensor in network.state_dict().items()}, saved)
    with pytest.raises(ModelError, match=r"x.pt: weights do not match x.json"):
        load_checkpoint(saved)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_the_digest_is_of_values_of_any_type(dtype):
    state = {"a": torch.ones(3).to(dtype), "b": torch.tensor(1.0).to(dtype)}
    other = {**state, "a": torch.tensor([1.0, 1.0, 2.0]).to(dtype)}
    assert tensors_digest(state) == tensors_digest(dict(reversed(state.items())))
    assert tensors_digest(state) != tensors_digest(other)


def test_weights_that_are_not_numbers_are_refused(saved, network):
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state["fc.weight"][0, 0] = torch.nan
    save_checkpoint(saved, state, CARD)
    with pytest.raises(
        ModelError, match=r"x.pt: weights are not finite: fc.weight; expected finite numbers"
    ):
        load_checkpoint(saved)


# What a card may not do


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {"weights": "IMAGENET1K_V1"}),
        ("resnet18", {"pretrained": True}),
        ("timm:test_resnet", {"pretrained": True}),
        ("timm:test_resnet", {"checkpoint_path": "weights"}),
        ("timm:test_resnet", {"act_layer": "../layers.py"}),
        ("timm:test_resnet", {"act_layer": "https://example.org/x"}),
        ("timm:test_resnet", {"block_args": {"path": ["a.b"]}}),
    ],
)
def test_options_of_a_card_that_lead_elsewhere_are_refused(saved, name, options):
    _card(saved, architecture__name=name, architecture__options=options)
    with pytest.raises(
        ModelError, match=rf"x.json: option '{next(iter(options))}' of '{name}' is .*remove"
    ):
        load_checkpoint(saved)


@pytest.mark.parametrize("name", ["timm:hf-hub:somebody/model", "timm:local-dir:/tmp", "timm:../x"])
def test_a_card_cannot_name_a_model_of_a_hub_or_a_folder(saved, name):
    _card(saved, architecture__name=name, architecture__stem_stride=4)
    with pytest.raises(ModelError, match="is unknown; expected a timm model"):
        load_checkpoint(saved)


@pytest.mark.parametrize("kind", ["bert", "hubert"])
def test_a_card_alone_reads_no_folder(saved, tmp_path, kind):
    (tmp_path / "config.json").write_text(f'{{"model_type": "{kind}"}}')
    name = f"hf:{tmp_path}"
    _card(saved, architecture__name=name, architecture__stem_stride=4, architecture__options={})
    with pytest.raises(ModelError, match=r"x\.json: model 'hf:.*' has no 'config' .* reads no folder"):
        load_checkpoint(saved)


def test_a_card_gives_timm_no_place_of_weights(saved, monkeypatch):
    """Cards of teachers that timm's file was named for have such an option, which nothing needs."""
    given = {}

    def create(model_name: str, **arguments: object) -> nn.Module:
        given.update(arguments)
        raise ValueError("stop here")

    monkeypatch.setattr("timm.create_model", create)
    overlay = {"file": "/etc/passwd", "url": "https://example.org", "num_classes": 3}
    options = {"pretrained_cfg_overlay": overlay, "cache_dir": "/tmp"}
    form = {"name": "timm:test_resnet", "num_classes": 3, "options": options}
    _card(saved, architecture=form)
    with pytest.raises(ModelError, match="stop here"):
        load_checkpoint(saved)
    assert given["pretrained_cfg_overlay"] == {"num_classes": 3}
    assert "cache_dir" not in given


def test_weights_of_another_number_of_classes_do_not_fit_the_card(saved):
    card = json.loads(saved.with_suffix(".json").read_text())
    card["architecture"]["num_classes"] = 4
    saved.with_suffix(".json").write_text(json.dumps(card))
    with pytest.raises(ModelError, match=r"x.pt: does not fit the network"):
        load_checkpoint(saved)


def test_a_refused_state_leaves_the_network_as_it_was(network):
    before = state_digest(network)
    state = {**network.state_dict(), "fc.extra": torch.zeros(1)}
    with pytest.raises(ModelError):
        load_state(network, state, "old.pt")
    assert state_digest(network) == before


@pytest.mark.parametrize("name", ["fc.bias", "conv1.1.running_mean", "conv1.1.num_batches_tracked"])
def test_the_state_digest_sees_weights_and_buffers(network, name):
    digest, tensor = state_digest(network), network.state_dict()[name]
    before = tensor.clone()
    tensor += 1
    assert state_digest(network) != digest
    tensor.copy_(before)
    assert state_digest(network) == digest


def test_the_state_digest_does_not_depend_on_memory_format(network):
    digest = state_digest(network)
    network.to(memory_format=torch.channels_last)
    try:
        assert state_digest(network) == digest
    finally:
        network.to(memory_format=torch.contiguous_format)
