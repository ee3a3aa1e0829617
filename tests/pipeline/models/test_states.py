"""Weights that were trained elsewhere: state dicts without a card, and how others wrap them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pipeline.core.errors import ModelError
from pipeline.modalities.images.preprocessing import GivenPreprocessing
from pipeline.models.architecture import Architecture, build
from pipeline.models.checkpoint import state_digest
from pipeline.models.pretrained import load_pretrained

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

    def run(
        content: object, name: str = NAME, preprocessing: GivenPreprocessing = EYES, **form: Any
    ) -> Any:
        torch.save(content, tmp_path / "x.pth")
        return load_pretrained(name, str(tmp_path / "x.pth"), preprocessing=preprocessing, **form)

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
    message = r"x.pth has no card x.json beside it, and does not specify its .*lacks mean, std; add it"
    with pytest.raises(ModelError, match=message):
        load(state, preprocessing=GivenPreprocessing(size=32))


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


@pytest.mark.parametrize(
    "prefix", ["net.", "backbone.", "encoder.", "module.student.", "what.ever.", "_forward_module.model."]
)
def test_prefixes_that_nobody_knows_are_found_and_told(load, state, prefix, capsys):
    network, _ = load({"state_dict": _prefixed(state, prefix)})
    assert torch.equal(network.fc.weight, state["fc.weight"])
    usual = prefix == "net."
    assert ("using the names under" in capsys.readouterr().err) is not usual


@pytest.mark.parametrize("inner", ["_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."])
def test_wrappers_of_parts_of_a_network_are_taken_off(load, state, inner):
    wrapped = {name.replace("stage2.", f"stage2.{inner}"): tensor for name, tensor in state.items()}
    assert state_digest(load(_prefixed(wrapped, "module."))[0]) == state_digest(load(state)[0])


def _average(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def _averaged_model(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As torch.optim.swa_utils.AveragedModel has it."""
    return {"n_averaged": torch.tensor(3), **_prefixed(state, "module.")}


WITH_AVERAGE: dict[str, Callable[..., dict[str, Any]]] = {
    "timm": lambda raw, ema: {"state_dict": raw, "arch": "x", "state_dict_ema": ema, "metric": 80.1},
    "deit": lambda raw, ema: {"model": raw, "model_ema": ema, "epoch": 1},
    "torchvision": lambda raw, ema: {"model": raw, "model_ema": _averaged_model(ema), "epoch": 1},
    "ema": lambda raw, ema: {"ema": ema, "model": raw},
    "ema_state_dict": lambda raw, ema: {"model_state_dict": raw, "ema_state_dict": ema},
    "nested": lambda raw, ema: {"model": raw, "ema": {"decay": torch.tensor(0.9), "module": ema}},
    "Lightning's callback": lambda raw, ema: {
        "state_dict": _prefixed(raw, "model."),
        "callbacks": {"EMACallback{'decay': 0.9}": {"state_dict": _prefixed(ema, "model.")}},
    },
    "Lightning's WeightAveraging": lambda raw, ema: {
        "state_dict": _prefixed(ema, "model."),
        "current_model_state": _prefixed(raw, "model."),
        "averaging_state": {"n_averaged": torch.tensor(3)},
    },
    "one state dict": lambda raw, ema: {
        "state_dict": {**_prefixed(raw, "model."), **_prefixed(ema, "ema_model.module.")}
    },
    "swa": lambda raw, ema: {"state_dict": raw, "swa_state_dict": _averaged_model(ema)},
}


@pytest.mark.parametrize("form", WITH_AVERAGE)
def test_of_raw_and_averaged_weights_the_average_is_taken_and_told(load, state, form, capsys):
    network, _ = load(WITH_AVERAGE[form](state, _average(state)))
    assert torch.equal(network.fc.weight, state["fc.weight"] + 1)
    (line,) = capsys.readouterr().err.splitlines()
    assert "x.pth: contains raw and averaged weights (EMA); using the averaged ones, " in line


def test_lightnings_own_averaging_is_read_as_it_writes_it(load, state, tmp_path, capsys):
    """Trained for a step by Lightning itself, which moves the raw weights aside."""
    pytest.importorskip("lightning")
    from lightning.pytorch.callbacks.weight_averaging import EMAWeightAveraging

    class Around(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = build(Architecture(name=NAME, num_classes=7))

    module = Around()
    module.model.load_state_dict(_average(state))
    callback = EMAWeightAveraging()
    callback._average_model = torch.optim.swa_utils.AveragedModel(module)
    checkpoint = {"state_dict": _prefixed(state, "model."), "epoch": 1}
    callback.on_save_checkpoint(None, None, checkpoint)
    network, _ = load(checkpoint)
    assert torch.equal(network.fc.weight, state["fc.weight"] + 1)
    assert "using the averaged ones, 'state_dict/model.…'" in capsys.readouterr().err


def test_an_average_alone_is_taken(load, state, capsys):
    network, _ = load(_averaged_model(state))
    assert torch.equal(network.fc.weight, state["fc.weight"])
    assert "ignored, not part of the network: ['n_averaged']" in capsys.readouterr().err


def test_an_average_that_is_not_there_yet_is_no_matter(load, state, capsys):
    network, _ = load({"state_dict": state, "state_dict_ema": None})
    assert torch.equal(network.fc.weight, state["fc.weight"])
    assert capsys.readouterr().err == ""


def test_an_average_that_does_not_fit_is_told(load, state, capsys):
    other = {name: tensor for name, tensor in state.items() if not name.startswith("conv5")}
    network, _ = load({"state_dict": state, "ema": other})
    assert torch.equal(network.fc.weight, state["fc.weight"])
    assert "using 'state_dict'; the averaged weights 'ema' do not fit" in capsys.readouterr().err


def test_an_average_without_names_is_told(load, state, capsys):
    """As torch_ema keeps it, in the order of the parameters."""
    shadow = [tensor for name, tensor in state.items() if "running" not in name]
    load({"model": state, "ema": {"decay": 0.9, "num_updates": 3, "shadow_params": shadow}})
    assert "the averaged weights 'ema/shadow_params' do not fit" in capsys.readouterr().err


def test_what_is_not_the_networks_is_left_out_and_told(load, state, capsys):
    """As Lightning's loss and metrics, inside its prefix and beside it."""
    more = {"criterion.weight": torch.ones(3), "train_acc.tp": torch.zeros(1)}
    for content in ({**_prefixed(state, "model."), **more}, {**state, **more}):
        network, _ = load({"state_dict": content})
        assert torch.equal(network.fc.weight, state["fc.weight"])
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith(
            "x.pth: ignored, not part of the network: ['criterion.weight', 'train_acc.tp']"
        )


def test_counts_of_operations_in_every_module_are_left_out(load, state):
    modules = {name.rpartition(".")[0] for name in state}
    counts = {
        f"{module}.{name}": torch.zeros(1) for module in modules for name in ("total_ops", "total_params")
    }
    assert state_digest(load({**state, **counts})[0]) == state_digest(load(state)[0])


def test_another_pickle_protocol_is_named(state, tmp_path):
    torch.save(state, tmp_path / "x.pth", pickle_protocol=4)
    with pytest.raises(ModelError, match=r"not a checkpoint .*a pickle protocol .*without pickle_protocol"):
        load_pretrained(NAME, str(tmp_path / "x.pth"), preprocessing=EYES)


@pytest.mark.parametrize("kind", [torch.int8, torch.bool, torch.complex64])
def test_weights_that_are_no_floating_point_numbers_are_refused(load, state, kind):
    name = str(kind).removeprefix("torch.")
    with pytest.raises(ModelError, match=rf"x.pth: fc.weight is {name}; expected floating-point numbers"):
        load({**state, "fc.weight": state["fc.weight"].to(kind)})


@pytest.mark.parametrize("strange", ["conv6.0.weight", "stage2.9.branch1.0.weight", "fc.scale"])
def test_layers_of_a_deeper_network_are_not_left_out(load, state, strange):
    with pytest.raises(
        ModelError, match=rf"does not fit the network: missing \[\], unexpected \['{strange}'"
    ):
        load({**state, strange: torch.zeros(3)})


def test_two_networks_that_fit_are_refused_by_their_places(load, state):
    content = {**_prefixed(state, "student."), **_prefixed(_average(state), "teacher.")}
    with pytest.raises(ModelError, match=r"several matching networks, 'student.…' and 'teacher.…'; .*save"):
        load(content)


def test_one_network_under_two_names_is_one(load, state):
    content = {**_prefixed(state, "student."), **_prefixed(state, "alias.")}
    assert torch.equal(load(content)[0].fc.weight, state["fc.weight"])


def test_a_student_beside_its_teacher_of_another_shape_is_found(load, state):
    teacher = build(Architecture(name="shufflenet_v2_x1_0", num_classes=7)).state_dict()
    content = {"model": {**_prefixed(teacher, "module.teacher."), **_prefixed(state, "module.student.")}}
    assert torch.equal(load(content)[0].fc.weight, state["fc.weight"])


def test_counters_of_batches_that_are_missing_are_zero_as_in_torch(load, state):
    old = {name: tensor for name, tensor in state.items() if "num_batches" not in name}
    network, _ = load(old)
    assert network.state_dict()["conv1.1.num_batches_tracked"] == 0
    assert torch.equal(network.fc.weight, state["fc.weight"])


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pth.tar", ".ckpt", ".bin", ".safetensors", ""])
@pytest.mark.parametrize("save", [torch.save, save_file], ids=["torch", "safetensors"])
def test_the_content_decides_whatever_a_files_name_ends_in(state, tmp_path, monkeypatch, suffix, save):
    monkeypatch.chdir(tmp_path)
    save(state, f"theirs{suffix}")
    for stem_stride in (None, 4):
        network, _ = load_pretrained(NAME, f"theirs{suffix}", preprocessing=EYES, stem_stride=stem_stride)
        assert torch.equal(network.fc.weight, state["fc.weight"])


def test_the_oldest_files_of_torch_are_read(state, tmp_path):
    torch.save(state, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    network, _ = load_pretrained(NAME, str(tmp_path / "x.pth"), preprocessing=EYES)
    assert torch.equal(network.fc.weight, state["fc.weight"])


def test_a_name_of_weights_stands_over_a_file_of_that_name(state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(state, "IMAGENET1K_V1")
    with pytest.raises(ModelError, match="these weights fix it"):
        load_pretrained(NAME, "IMAGENET1K_V1", preprocessing=EYES, options={"a": 1})


def test_the_form_of_a_network_may_be_said(load):
    options = {"width_mult": 0.5}
    architecture = Architecture(name="mobilenet_v2", num_classes=4, stem_stride=2, options=options)
    preprocessing = GivenPreprocessing(size=32, mean=(0.5,), std=(0.2,))
    state = build(Architecture(**{**architecture.to_dict(), "channels": 1})).state_dict()
    _, card = load(state, "mobilenet_v2", preprocessing, stem_stride=2, options=options)
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
        r"x.pth: does not fit the network: missing .*'bn1.bias'.* and \d+ more, .*a different architecture"
    )
    with pytest.raises(ModelError, match=message):
        load({f"encoder.{name}": tensor for name, tensor in state.items()}, "resnet18")


def test_some_other_names_are_listed(load, state):
    some = {("conv9" + name.removeprefix("conv5") if name.startswith("conv5") else name): tensor
            for name, tensor in state.items()}  # fmt: skip
    message = r"missing \['conv5.0.weight', .*unexpected \['conv9.0.weight', .*for the same architecture"
    with pytest.raises(ModelError, match=message) as caught:
        load(some)
    assert "\n" not in str(caught.value)


def test_other_shapes_are_listed(load, state):
    with pytest.raises(ModelError, match=r"wrong shapes \['conv1.0.weight \(24, 3, 3, 3\) \(expected"):
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
    with pytest.raises(ModelError, match=r"x.pth: not a checkpoint of tensors only"):
        load({"state_dict": state, "args": _Danger(tmp_path / "executed")})
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [{"state_dict": 3}, {"epoch": 1}, [1, 2]])
def test_a_file_without_a_state_dict_is_refused(load, content):
    with pytest.raises(
        ModelError, match=r"contains no named tensors; expected a state dict, plain or under"
    ):
        load(content)
