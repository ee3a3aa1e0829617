"""Weights that were trained elsewhere: state dicts without a card, and how others wrap them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import ModelError
from pipeline.models.architecture import Architecture, build
from pipeline.models.checkpoint import state_digest
from pipeline.models.preprocessing import GivenPreprocessing
from pipeline.models.weights import load_pretrained

EYES = GivenPreprocessing(size=32, mean=(0.5,) * 3, std=(0.2,) * 3, crop_fraction=0.875)
NAME = "shufflenet_v2_x0_5"


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Of a network that was trained elsewhere on seven classes."""
    torch.manual_seed(0)
    return build(Architecture(name=NAME, num_classes=7)).state_dict()


@pytest.fixture
def load(tmp_path) -> Callable[..., Any]:
    """Return a function from a file's content to the network and card that it is loaded as."""

    def run(content: object, name: str = NAME, eyes: GivenPreprocessing = EYES, **form: Any) -> Any:
        torch.save(content, tmp_path / "x.pth")
        return load_pretrained(name, str(tmp_path / "x.pth"), preprocessing=eyes, **form)

    return run


def _prefixed(state: dict[str, torch.Tensor], *prefixes: str) -> dict[str, torch.Tensor]:
    return {"".join(prefixes) + name: tensor for name, tensor in state.items()}


def test_a_state_dict_without_a_card_has_the_users_preprocessing_and_numbered_classes(load, state):
    network, card = load(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert not network.training
    assert card.preprocessing == EYES.alone("")
    assert card.classes == tuple("0123456")
    assert card.architecture == Architecture(name=NAME, num_classes=7)


def test_safetensors_are_read_as_well(state, tmp_path):
    save_file(state, tmp_path / "x.safetensors")
    network, _ = load_pretrained(NAME, str(tmp_path / "x.safetensors"), preprocessing=EYES)
    assert torch.equal(network.fc.weight, state["fc.weight"])


def test_without_a_card_the_preprocessing_is_asked_for(load, state):
    message = r"x.pth has no card x.json beside it, and does not say how .*lacks mean, std; add it"
    with pytest.raises(ModelError, match=message):
        load(state, eyes=GivenPreprocessing(size=32))


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "network", "net"])
def test_what_training_scripts_wrap_a_state_dict_in_is_opened(load, state, key):
    content = {"epoch": 3, key: state, "optimizer": {"lr": 0.1, "state": {}}, "args": {"name": "x"}}
    assert state_digest(load(content)[0]) == state_digest(load(state)[0])


def test_a_wrapper_in_a_wrapper_is_opened(load, state):
    content = {"state_dict": {"model": state, "step": 3}, "epoch": 1}
    assert torch.equal(load(content)[0].fc.weight, state["fc.weight"])


@pytest.mark.parametrize(
    "prefixes",
    [("module.",), ("_orig_mod.",), ("module.", "_orig_mod."), ("model.", "_orig_mod.", "module.")],
)
def test_prefixes_of_wrappers_are_taken_off(load, state, prefixes):
    assert torch.equal(load(_prefixed(state, *prefixes))[0].fc.weight, state["fc.weight"])


def test_the_form_of_a_network_may_be_said(load):
    options = {"width_mult": 0.5}
    architecture = Architecture(name="mobilenet_v2", num_classes=4, stem_stride=2, options=options)
    eyes = GivenPreprocessing(size=32, mean=(0.5,), std=(0.2,))
    state = build(Architecture(**{**architecture.to_dict(), "channels": 1})).state_dict()
    _, card = load(state, "mobilenet_v2", eyes, stem_stride=2, options=options)
    assert card.architecture == Architecture(**{**architecture.to_dict(), "channels": 1})


def test_a_literatures_net_needs_no_stem_said(load):
    state = build(Architecture(name="resnet20", num_classes=4, stem_stride=1)).state_dict()
    assert load(state, "resnet20")[1].architecture.stem_stride == 1


def test_auxiliary_heads_are_left_out(load):
    options = {"init_weights": False}
    state = build(Architecture(name="googlenet", num_classes=4, options=options)).state_dict()
    network, card = load(_prefixed(state, "module."), "googlenet", options=options)
    assert network.aux1 is None
    assert len(card.classes) == 4


# What does not fit


def test_other_names_are_listed_with_what_they_are_likely_of(load, state):
    message = (
        r"x.pth: does not fit the network: missing .*'bn1.bias'.* and \d+ more, .*another architecture"
    )
    with pytest.raises(ModelError, match=message):
        load({f"encoder.{name}": tensor for name, tensor in state.items()}, "resnet18")


def test_some_other_names_are_listed(load, state):
    some = {("conv9" + name.removeprefix("conv5") if name.startswith("conv5") else name): tensor
            for name, tensor in state.items()}  # fmt: skip
    message = r"missing \['conv5.0.weight', .*unexpected \['conv9.0.weight', .*of the same architecture"
    with pytest.raises(ModelError, match=message) as caught:
        load(some)
    assert "\n" not in str(caught.value)


def test_other_shapes_are_listed(load, state):
    with pytest.raises(ModelError, match=r"other shapes \['conv1.0.weight \(24, 3, 3, 3\) \(expected"):
        load(state, "shufflenet_v2_x0_5", GivenPreprocessing(size=32, mean=(0.5,), std=(0.2,)))


def test_a_last_layer_alone_that_is_missing_is_told_apart(load, state):
    body = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    with pytest.raises(
        ModelError, match=r"missing \['fc.bias', 'fc.weight'\].*only the last layer differs"
    ):
        load(body)


class _Danger:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_wrapper_is_refused_and_not_executed(load, state, tmp_path):
    with pytest.raises(ModelError, match=r"x.pth: not a checkpoint of tensors alone"):
        load({"state_dict": state, "args": _Danger(tmp_path / "executed")})
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [{"state_dict": 3}, {"epoch": 1}, [1, 2]])
def test_a_file_without_a_state_dict_is_refused(load, content):
    with pytest.raises(ModelError, match=r"holds more than tensors; expected a plain state dict, or one"):
        load(content)
