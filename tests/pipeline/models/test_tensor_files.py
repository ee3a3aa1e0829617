"""Files of other programs: read by content, with more than tensors in them, and nothing of it is run."""

from __future__ import annotations

import argparse
import collections
import datetime
import pathlib
import pickle
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.core.errors import ModelError
from pipeline.models.tensor_files import read_content

WEIGHTS = {"weight": torch.arange(3.0)}


class _Run:
    """Unpickling it calls a function."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.called = function, arguments

    def __reduce__(self):
        return self.called


class _Mine:
    """Of somebody's own code."""


def _read(tmp_path: Path, content: object, **form: Any) -> Any:
    torch.save(content, tmp_path / "x.pth", **form)
    return read_content(tmp_path / "x.pth")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "more",
    [
        argparse.Namespace(lr=0.1, out=pathlib.Path("a/b"), tags=["x"], inner=argparse.Namespace(a=1)),
        types.SimpleNamespace(a=1),
        np.float64(72.3),
        np.float32(72.3),
        np.int64(3),
        np.arange(5),
        np.array(["a", "b"]),
        np.dtype("float32"),
        np.random.RandomState(0).get_state(),
        pathlib.Path("a/b"),
        pathlib.PureWindowsPath("a"),
        datetime.datetime(2024, 1, 1),
        datetime.timedelta(3),
        collections.defaultdict(list, {"a": [1]}),
        collections.Counter("abc"),
        collections.deque([1, 2]),
        {1, 2},
        frozenset([1]),
        slice(3),
        range(4),
        torch.float16,
        torch.device("cpu"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_training_scripts_keep_beside_tensors_is_passed_over(tmp_path, more, zipped):
    content = {"state_dict": WEIGHTS, "args": more}
    found = _read(tmp_path, content, _use_new_zipfile_serialization=zipped)
    assert torch.equal(found["state_dict"]["weight"], WEIGHTS["weight"])


def test_lightnings_hyperparameters_are_passed_over(tmp_path):
    parsing = pytest.importorskip("lightning.pytorch.utilities.parsing")
    found = _read(tmp_path, {"state_dict": WEIGHTS, "hyper_parameters": parsing.AttributeDict(lr=0.1)})
    assert torch.equal(found["state_dict"]["weight"], WEIGHTS["weight"])


def test_objects_that_are_passed_over_keep_nothing(tmp_path):
    found = _read(tmp_path, {"args": argparse.Namespace(lr=0.1)})["args"]
    assert not isinstance(found, argparse.Namespace)
    assert not hasattr(found, "lr")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (nn.Linear(2, 2), r"a whole pickled module, with .*Linear.*torch.save\(model.state_dict\(\)"),
        ({"model": nn.Linear(2, 2), "epoch": 1}, r"a whole pickled module, with .*Linear"),
        (
            {"state_dict": WEIGHTS, "args": _Mine()},
            r"it contains '.*_Mine', which could run code when loaded.*save",
        ),
        ({"state_dict": WEIGHTS, "f": print}, r"it contains 'print', which"),
    ],
    ids=["module", "module in a dictionary", "own class", "function"],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_what_cannot_be_read_is_named_with_its_cause_and_remedy(tmp_path, content, words, zipped):
    with pytest.raises(ModelError, match=rf"x.pth: not a checkpoint of tensors only \({words}") as caught:
        _read(tmp_path, content, _use_new_zipfile_serialization=zipped)
    assert "\n" not in str(caught.value)
    assert "two options" not in str(caught.value)


def test_a_torchscript_archive_is_named(tmp_path):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(str(tmp_path / "x.pth"))
    with pytest.raises(ModelError, match=r"a TorchScript archive, .*torch.jit.load\('x.pth'\).state_dict"):
        read_content(tmp_path / "x.pth")


@pytest.mark.parametrize(
    "call",
    [
        (Path.touch, Path("executed")),
        (eval, "open('executed', 'w')"),
        (exec, "open('executed', 'w')"),
        (getattr, Path("executed"), "touch"),
        (pathlib.Path.write_text, Path("executed"), "x"),
        (__import__, "antigravity"),
        (torch.load, "other.pt"),
        (torch.hub.load, "somebody/evil", "model"),
        (np.load, "other.npy"),
    ],
    ids=lambda call: getattr(call[0], "__name__", "call"),
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_calls_are_refused_and_not_made(tmp_path, monkeypatch, call, zipped):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"not a checkpoint of tensors only"):
        _read(tmp_path, {"state_dict": WEIGHTS, "x": _Run(*call)}, _use_new_zipfile_serialization=zipped)
    assert not Path("executed").exists()


def test_an_allowed_object_cannot_be_given_something_to_call(tmp_path, monkeypatch):
    """`__setstate__` in the instance's dictionary would be called with the next state."""
    monkeypatch.chdir(tmp_path)

    class Forged:
        def __reduce__(self):
            state = {"__setstate__": _Run(Path.touch, Path("executed"))}
            return argparse.Namespace, (), state

    with pytest.raises(ModelError, match="not a checkpoint of tensors only"):
        _read(tmp_path, Forged())
    pieces = [
        b"\x80\x02cargparse\nNamespace\n)\x81",  # Namespace.__new__
        b"}X\x0c\x00\x00\x00__setstate__ccollections\nOrderedDict\nsb",  # its dictionary
        b"}X\x01\x00\x00\x00aK\x01sb.",  # the state that would be passed
    ]
    Path("y.pth").write_bytes(b"".join(pieces))
    with pytest.raises(ModelError, match="not a checkpoint"):
        read_content(Path("y.pth"))  # not torch's magic number; read, and nothing called
    assert not Path("executed").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".ckpt", ""])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello world",
        b"PK\x03\x04",
        bytes(100),
        b"\x80",
        b"\x80\x02.",
        pickle.dumps({"a": 1}),
        b"\xff" * 9 + b"{}",
        (1 << 40).to_bytes(8, "little") + b"{" * 50,
    ],
)
def test_a_file_of_something_else_is_one_line(tmp_path, suffix, content):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=rf"^{path}: not a checkpoint of tensors only \(") as caught:
        read_content(path)
    assert "\n" not in str(caught.value)


def test_a_folder_is_named(tmp_path):
    with pytest.raises(ModelError, match=r": a folder; expected a checkpoint"):
        read_content(tmp_path)
