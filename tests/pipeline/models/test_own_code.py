"""Models of the user's own code: found, called, and what is said when that goes wrong."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.core.errors import ModelError
from pipeline.core.trust import Trust
from pipeline.modalities.images.preprocessing import GivenPreprocessing
from pipeline.models.architecture import Architecture, build
from pipeline.models.checkpoint import load_checkpoint, save_checkpoint
from pipeline.models.pretrained import Start, initial_network, load_pretrained, pretrained_network

CODE = '''
import torch
from torch import nn

calls = []

def network(num_classes=7, width=4):
    calls.append(num_classes)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, num_classes))

def teacher(scale=1.0):
    """Of five classes, with weights of its own."""
    torch.manual_seed(4)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    with torch.no_grad():
        net[1].weight.mul_(scale)
    return net

class Colour(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.layer = nn.Linear(3, num_classes)
    def forward(self, x):
        return self.layer(x.mean((2, 3)))

class Odd(Colour):
    """Its last layer in order is not the one that makes its logits."""
    def __init__(self):
        super().__init__(5)
        self.unused = nn.Linear(3, 2)

def talkative():
    print("loading")
    return teacher()

def broken():
    raise ValueError("no such\\nfile")

def table():
    return {"a": 1}

def pair(num_classes):
    class Pair(Colour):
        def forward(self, x):
            return super().forward(x), 1
    return Pair(num_classes)

constant = 3
'''
MINE = Trust(code=frozenset({"mine.nets"}))
EYES = GivenPreprocessing(size=8, mean=(0.5,), std=(0.25,))


@pytest.fixture(autouse=True)
def code(tmp_path, monkeypatch) -> Path:
    """A working folder with a package of the user's, fresh for each test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("mine").mkdir()
    Path("mine/nets.py").write_text(CODE)
    Path("mine/bad.py").write_text("import torch\n\n1 / 0\n")
    Path("mine/needs.py").write_text("import what_nobody_has\n")
    importlib.invalidate_caches()
    yield tmp_path
    for name in [name for name in sys.modules if name == "mine" or name.startswith("mine.")]:
        del sys.modules[name]


def _calls() -> list[int]:
    return sys.modules["mine.nets"].calls


# Found and called


def test_the_working_folder_is_importable():
    network = build(Architecture(name="mine.nets:network", num_classes=3, options={"width": 6}))
    assert (network[1].out_features, network[3].out_features) == (6, 3)


def test_num_classes_of_the_options_stands_over_the_datas():
    build(Architecture(name="mine.nets:network", num_classes=3, options={"num_classes": 4}))
    assert _calls() == [4]


def test_a_callable_that_does_not_take_num_classes_is_not_given_it():
    assert build(Architecture(name="mine.nets:teacher", num_classes=3))[1].out_features == 5


def test_a_class_is_a_callable_and_installed_packages_are_found():
    assert build(Architecture(name="mine.nets:Colour", num_classes=3)).layer.out_features == 3
    network = build(Architecture(name="torchvision.models:squeezenet1_1", num_classes=3))
    assert type(network).__name__ == "SqueezeNet"


def test_a_fresh_network_sees_the_data_with_its_moments(tiny_data):
    network, card = initial_network(tiny_data, Start(model="mine.nets:network", weights=None), 0)
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    assert tiny_data.statistics == {"mean": card.preprocessing.mean, "std": card.preprocessing.std}
    again, _ = initial_network(tiny_data, Start(model="mine.nets:network", weights=None), 0)
    assert torch.equal(network[3].weight, again[3].weight)


def test_a_network_of_other_classes_gets_a_fresh_last_layer(tiny_data, tmp_path):
    network, card = initial_network(tiny_data, Start(model="mine.nets:teacher", weights=None), 0)
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    save_checkpoint(tmp_path / "x.pt", network.state_dict(), card)
    loaded, _ = load_checkpoint(tmp_path / "x.pt", trust=MINE)
    assert torch.equal(loaded[1].weight, network[1].weight)


def test_what_it_prints_is_progress(capsys):
    """Some commands print JSON on stdout."""
    build(Architecture(name="mine.nets:talkative", num_classes=3))
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "loading\n")


# With weights of its own


def test_a_teacher_that_brings_its_weights_is_used_as_it_is(tiny_data, tmp_path):
    start = Start(model="mine.nets:teacher", weights="pretrained", preprocessing=EYES, options={"scale": 2})
    network, card = pretrained_network(tiny_data, start)
    assert card.classes == ("0", "1", "2", "3", "4")
    assert card.preprocessing == EYES.alone("")
    save_checkpoint(tmp_path / "x.pt", network.state_dict(), card)
    loaded, loaded_card = load_checkpoint(tmp_path / "x.pt", trust=MINE)
    assert loaded_card == card
    assert torch.equal(loaded[1].weight, network[1].weight)


def test_it_is_called_with_its_own_number_of_classes_also_when_fine_tuned(tiny_data, tmp_path):
    start = Start(model="mine.nets:network", weights="pretrained", preprocessing=EYES)
    network, card = initial_network(tiny_data, start, 0)
    assert card.architecture.num_classes == 3
    save_checkpoint(tmp_path / "x.pt", network.state_dict(), card)
    loaded, _ = load_checkpoint(tmp_path / "x.pt", trust=MINE)
    assert torch.equal(loaded[3].weight, network[3].weight)
    assert _calls() == [7, 7]


def test_what_brings_its_weights_must_say_how_it_wants_its_images(tiny_data):
    start = Start(model="mine.nets:teacher", weights="pretrained")
    with pytest.raises(
        ModelError, match=r"model mine.nets:teacher does not specify its .*size, mean, std; add"
    ):
        pretrained_network(tiny_data, start)


def test_weights_by_another_name_are_unknown():
    with pytest.raises(ModelError, match=r"model mine.nets:teacher has no weights 'best'; .*pretrained"):
        load_pretrained("mine.nets:teacher", "best")


def test_a_state_dict_fills_a_network_of_ones_own(tmp_path):
    state = build(Architecture(name="mine.nets:network", num_classes=9)).state_dict()
    torch.save(state, "weights.pth")
    network, card = load_pretrained("mine.nets:network", "weights.pth", preprocessing=EYES)
    assert torch.equal(network[3].weight, state["3.weight"])
    assert len(card.classes) == 9


def test_a_card_of_another_model_runs_nothing(tmp_path, tiny_data):
    """Before a card's own code is called, its name must be the one of params.yaml."""
    network, card = initial_network(tiny_data, Start(model="mine.nets:network", weights=None), 0)
    save_checkpoint(tmp_path / "x.pt", network.state_dict(), card)
    before = len(_calls())
    with pytest.raises(ModelError, match=r"weights are for mine.nets:network; expected resnet18"):
        load_pretrained("resnet18", str(tmp_path / "x.pt"))
    assert len(_calls()) == before


# Whose code runs


def _saved(name: str, options: dict[str, Any] | None = None) -> Path:
    """Write a checkpoint whose card names a model, as somebody else would."""
    card = {
        "architecture": {"name": name, "num_classes": 3, "channels": 1, "options": options or {}},
        "preprocessing": {"size": 8, "mean": [0.5], "std": [0.25]},
        "classes": ["a", "b", "c"],
    }
    Path("theirs.json").write_text(json.dumps(card))
    torch.save(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 3)).state_dict(), "theirs.pt"
    )
    return Path("theirs.pt")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("subprocess:getoutput", {"cmd": "touch executed"}),
        ("os:system", {"command": "touch executed"}),
        ("builtins:exec", {"source": "open('executed', 'w')"}),
        ("pathlib:Path.touch", {}),
        ("runpy:run_path", {"path_name": "evil.py"}),
        ("evil:network", {}),
        ("mine.nets:network", {}),
        ("torch.hub:load", {"repo_or_dir": "somebody/evil", "model": "x"}),
    ],
)
def test_a_card_alone_runs_nothing_not_even_an_import(name, options):
    Path("evil.py").write_text("open('executed', 'w')\n\ndef network():\n    pass\n")
    with pytest.raises(ModelError, match=rf"theirs.json: asks to run code, '{name}'; a card alone"):
        load_checkpoint(_saved(name, options))
    assert not Path("executed").exists()
    assert name.partition(":")[0] not in {"evil", "mine.nets"} & set(sys.modules)


@pytest.mark.parametrize("name", ["mine.nets", "mine.nets:network"])
def test_code_that_the_user_named_runs(name):
    trust = Trust(code=frozenset({name}))
    network, _ = load_checkpoint(_saved("mine.nets:network", {"width": 4}), trust=trust)
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 3)


@pytest.mark.parametrize("name", ["mine", "mine.nets:net", "mine.nets:network2", "network"])
def test_other_code_than_the_user_named_does_not_run(name):
    with pytest.raises(ModelError, match="a card alone runs no code"):
        load_checkpoint(_saved("mine.nets:network"), trust=Trust(code=frozenset({name})))


@pytest.mark.parametrize("name", ["subprocess:getoutput", "builtins:exec", "os:system", "posix:system"])
def test_the_standard_library_is_not_called_whoever_names_it(name):
    options = {"cmd": "touch executed", "command": "touch executed"}
    with pytest.raises(ModelError, match="is part of the standard library, which has no networks"):
        load_checkpoint(_saved(name, options), trust=Trust(code=frozenset({name})))
    with pytest.raises(ModelError, match="is part of the standard library, which has no networks"):
        build(Architecture(name=name, num_classes=3, options=options))
    assert not Path("executed").exists()


def test_names_that_a_module_imported_from_the_standard_library_are_not_called():
    Path("mine/shell.py").write_text("from subprocess import getoutput\n")
    trust = Trust(code=frozenset({"mine.shell"}))
    with pytest.raises(ModelError, match="subprocess is part of the standard library"):
        load_checkpoint(_saved("mine.shell:getoutput", {"cmd": "touch executed"}), trust=trust)
    assert not Path("executed").exists()


def test_a_module_of_the_working_folder_may_be_called_as_one_of_the_standard_library():
    """Where that one is not loaded already."""
    sys.modules.pop("antigravity", None)
    Path("antigravity.py").write_text((Path("mine/nets.py")).read_text())
    try:
        assert build(Architecture(name="antigravity:network", num_classes=3))[3].out_features == 3
    finally:
        sys.modules.pop("antigravity", None)


def test_a_card_of_the_users_model_adds_no_paths_to_its_options():
    path = _saved("mine.nets:network", {"width": "../evil.pt"})
    with pytest.raises(
        ModelError, match=r"sets option 'width' of mine.nets:network to '../evil.pt', which"
    ):
        load_pretrained("mine.nets:network", str(path))
    given = Trust(models={"mine.nets:network": {"width": "../evil.pt"}})
    with pytest.raises(ModelError, match="the code raises TypeError"):  # it was called
        load_checkpoint(path, trust=given)


def test_a_card_of_the_users_model_may_say_its_numbers():
    network, _ = load_pretrained("mine.nets:network", str(_saved("mine.nets:network", {"width": 4})))
    assert network[1].out_features == 4


# What goes wrong


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("yours.nets:network", r"no module 'yours' in .*run in the project folder"),
        ("mine.net:network", r"no module 'mine.net' in "),
        ("mine.nets:netwerk", r"mine.nets has no 'netwerk'; expected a callable.*did you mean 'network'"),
        ("mine.nets:constant", r"is not callable \(int\); expected a callable that"),
        ("mine.nets:broken", r"the code raises ValueError: no such file; fix it \(--debug"),
        ("mine.nets:table", r"returns a dict; expected a torch.nn.Module"),
        ("mine.bad:network", r"the code raises ZeroDivisionError: division by zero; fix it"),
        ("mine.needs:network", r"raises ModuleNotFoundError: No module named 'what_nobody_has'"),
        (":network", r"the code raises ValueError: Empty module name"),
    ],
)
def test_code_that_cannot_be_used_is_one_line(name, message):
    with pytest.raises(ModelError, match=rf"model {name}.*{message}") as caught:
        build(Architecture(name=name, num_classes=3))
    assert "\n" not in str(caught.value)


def test_the_users_own_traceback_is_kept_for_debugging():
    with pytest.raises(ModelError) as caught:
        build(Architecture(name="mine.nets:broken", num_classes=3))
    assert isinstance(caught.value.__cause__, ValueError)


def test_options_it_does_not_take_are_one_line():
    with pytest.raises(ModelError, match=r"raises TypeError: .*unexpected keyword argument 'depth'"):
        build(Architecture(name="mine.nets:network", num_classes=3, options={"depth": 3}))


def test_images_it_cannot_take_are_named(tiny_data):
    with pytest.raises(ModelError, match=r"Colour cannot take images of 8x8 pixels and 1 channels"):
        initial_network(tiny_data, Start(model="mine.nets:Colour", weights=None), 0)


def test_outputs_that_are_no_logits_are_named(tiny_data):
    start = Start(model="mine.nets:pair", weights=None, channels=3)
    with pytest.raises(
        ModelError, match=r"pair returns a tuple in evaluation; expected a tensor of logits \(B, C\)"
    ):
        initial_network(tiny_data, start, 0)


def test_a_last_layer_that_does_not_make_the_logits_is_named(tiny_data):
    start = Start(model="mine.nets:Odd", weights=None, channels=3)
    with pytest.raises(
        ModelError, match=r"Odd always returns 5 logits, whatever its last linear layer; expected 3"
    ):
        initial_network(tiny_data, start, 0)
