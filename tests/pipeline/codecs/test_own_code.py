"""Codecs of user code: found by name, checked in every batch, and run only if the user named them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline.codecs import OWN_CODECS, TeacherOutput, codec_fingerprint, find_codec, trust_codec
from pipeline.codecs.spec import CodecSpec
from pipeline.core.errors import ConfigError
from pipeline.losses import require_kept
from pipeline.store.layout import INDEX_ARRAYS
from pipeline.tasks.classes import CLASSES

CODE = """
import dataclasses, pathlib
import torch
from pipeline.codecs import ArraySpec, Codec, find_codec
from pipeline.codecs.base import FeatureDecoder

pathlib.Path("executed").touch()
FP16 = find_codec("fp16", 5)

def half(n_classes):
    print("made")
    return dataclasses.replace(find_codec("fp16", n_classes), name="mine:half", version=3)

def steps(number, n_classes):
    def encode(output, rule):
        return {"codes": (rule.kept(output.logits) * number).round().clamp(min=-32768).to(torch.int16)}
    def decode(arrays):
        return arrays["codes"].float() / number
    arrays = {"codes": ArraySpec("int16", (n_classes,))}
    return Codec(name=f"mine:steps-{number}", version=1, arrays=arrays, encode=encode, decode=decode)

def both(dim, n_classes):
    arrays = {"logits": ArraySpec("float16", (n_classes,)), "features": ArraySpec("float16", (dim,))}
    return Codec(
        name=f"mine:both-{dim}", version=1, arrays=arrays,
        encode=lambda output, rule: FP16.encode(output, rule) | {"features": output.features.half()},
        decode=FP16.decode,
        features=FeatureDecoder(dim, lambda arrays: arrays["features"].float()),
        is_valid=lambda arrays: 1 / 0,
    )

def changed(name, **changes):
    return lambda n_classes: dataclasses.replace(half(n_classes), name=f"mine:{name}", **changes)

def raises(*_):
    raise ValueError("no\\nsuch thing")

unnamed, number, broken = changed("other"), lambda n_classes: 3, raises
stateful = changed("stateful", state={"weight": torch.ones(3)})
capital = changed("capital", arrays={"Codes": ArraySpec("uint8", ())})
taken = changed("taken", arrays={"keys": ArraySpec("uint8", ())})
double = changed("double", arrays={"logits": ArraySpec("float64", ())})
listed = changed("listed", arrays={"logits": ArraySpec("uint8", [3])})
empty = changed("empty", arrays={})
crushed = changed("crushed", arrays={"logits": ArraySpec("uint8", (), level=23)})

encodes_nothing = changed("encodes_nothing", encode=lambda output, rule: None)
encodes_less = changed("encodes_less", encode=lambda output, rule: {})
encodes_more = changed("encodes_more", encode=lambda o, r: {**FP16.encode(o, r), "x": o.logits})
encodes_floats = changed("encodes_floats", encode=lambda output, rule: {"logits": output.logits})
encodes_flat = changed("encodes_flat", encode=lambda output, rule: {"logits": output.logits[0].half()})
encode_raises = changed("encode_raises", encode=raises)
decodes_half = changed("decodes_half", decode=lambda arrays: arrays["logits"])
decodes_flat = changed("decodes_flat", decode=lambda arrays: arrays["logits"].float().amax(1))
decodes_nothing = changed("decodes_nothing", decode=lambda arrays: None)
decode_raises = changed("decode_raises", decode=raises)
"""
OUTPUT = TeacherOutput(
    torch.randn(20, 5, generator=torch.Generator().manual_seed(0)) * 3, torch.arange(60.0).reshape(20, 3)
)


@pytest.fixture(autouse=True)
def _code(tmp_path, monkeypatch) -> Iterator[None]:
    """A working folder with a module of the user's, which nobody named."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("mine.py").write_text(CODE)
    importlib.invalidate_caches()
    yield
    OWN_CODECS.forget()
    sys.modules.pop("mine", None)


def test_a_function_that_the_user_names_is_a_codec(capsys):
    OWN_CODECS.use("mine:half")
    codec, fp16 = find_codec("mine:half", 5), find_codec("fp16", 5)
    assert (codec.name, codec.arrays, codec_fingerprint(codec)) == ("mine:half", fp16.arrays, "mine:half.3")
    encoded, expected = codec.encode(OUTPUT, CLASSES), fp16.encode(OUTPUT, CLASSES)
    assert torch.equal(encoded["logits"], expected["logits"])
    assert torch.equal(codec.decode(encoded), fp16.decode(expected))
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "made\n")


def test_a_number_in_its_name_goes_to_the_function():
    OWN_CODECS.trust(["mine"])
    errors = [
        (codec.decode(codec.encode(OUTPUT, CLASSES)) - CLASSES.kept(OUTPUT.logits)).abs().max()
        for codec in (find_codec(f"mine:steps-{number}", 5) for number in (2, 64))
    ]
    assert 1 / 8 < errors[0] <= 1 / 4
    assert errors[1] <= 1 / 128


def test_it_may_keep_features():
    OWN_CODECS.trust(["mine:both"])
    codec = find_codec("mine:both-3", 5)
    assert codec.features is not None
    assert codec.features.dim == 3
    encoded = codec.encode(OUTPUT, CLASSES)
    assert torch.equal(codec.features.decode(encoded), OUTPUT.require_features())
    require_kept("rkd", ["mine:both-3"], "dump main")
    with pytest.raises(ConfigError, match=r"^codec mine:both-3: the code raises ZeroDivisionError"):
        codec.is_valid(encoded)
    wrong = find_codec("mine:both-4", 5)
    with pytest.raises(
        ConfigError, match=r"gives features as float16 \(20, 3\) on cpu; .* \(20, 4\) on cpu"
    ):
        wrong.encode(OUTPUT, CLASSES)
    with pytest.raises(ConfigError, match=r"gives decoded features as float32 \(20, 3\) on cpu; expected"):
        wrong.features.decode(encoded)


def test_a_name_in_a_file_runs_nothing():
    assert CodecSpec(name="mine:half").needs_pilot is False
    trust_codec("fp16")
    for name in ("mine:half", "mine:steps-16", "fp16:half"):
        with pytest.raises(ConfigError, match=f"codec '{name.partition('-')[0]}' is user code") as told:
            find_codec(name, 5)
        assert "dumps.NAME.codec in params.yaml" in str(told.value)
        assert "pipeline.codecs.OWN_CODECS.use('" in str(told.value)
        assert f"--trust-code {name.partition('-')[0]}" in str(told.value)
    assert not Path("executed").exists()
    trust_codec("mine:half")
    find_codec("mine:half", 5)
    with pytest.raises(ConfigError, match="is user code"):
        find_codec("mine:steps-16", 5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("yours:half", r": no module 'yours' in "),
        (
            "mine:halve",
            r": mine has no 'halve'; expected a callable that returns a codec; did you mean 'half'",
        ),
        ("mine:FP16", r" is not callable \(Codec\)"),
        ("subprocess:run", r": subprocess is part of the standard library, which has no codecs"),
        ("mine:half-3", r": the code raises TypeError: half\(\) takes 1 positional argument"),
        ("mine:steps", r": the code raises TypeError: steps\(\) missing 1 required positional"),
        ("mine:broken", r": the code raises ValueError: no such thing; fix it"),
        ("mine:number", r" returns a int; expected a pipeline.codecs.Codec; correct it"),
        ("mine:unnamed", r" is called 'mine:other' by itself; expected its own name"),
        ("mine:stateful", r" has the state weight; expected none"),
        ("mine:capital", r" declares an array 'Codes'; expected a-z, 0-9 and _"),
        ("mine:taken", rf" declares an array 'keys'; .* neither {' nor '.join(INDEX_ARRAYS)}, which"),
        (
            "mine:double",
            r" declares logits as .*'float64'.*; expected an ArraySpec of uint8, uint16, int16",
        ),
        ("mine:listed", r" declares logits of shape \[3\]; expected a tuple of at most 3 lengths"),
        ("mine:empty", r" declares 0 arrays; expected 1 to 16"),
        ("mine:crushed", r" declares logits of level 23; expected 1 to 22"),
    ],
)
def test_code_that_makes_no_codec_is_one_line(name, message):
    trust_codec(name)
    with pytest.raises(ConfigError, match=f"^codec {name}{message}") as told:
        find_codec(name, 5)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("encodes_nothing", r" encodes to a NoneType; expected the arrays \['logits'\]"),
        ("encodes_less", r" encodes to \[\]; expected the arrays \['logits'\]"),
        ("encodes_more", r" encodes to \['logits', 'x'\]; expected the arrays \['logits'\]"),
        ("encodes_floats", r" gives logits as float32 \(20, 5\) on cpu; expected float16 \(20, 5\) on cpu"),
        ("encodes_flat", r" gives logits as float16 \(5,\) on cpu; expected float16 \(20, 5\) on cpu"),
        ("encode_raises", r": the code raises ValueError: no such thing; fix it"),
        ("decodes_half", r" gives decoded logits as float16 \(20, 5\) on cpu; expected float32"),
        ("decodes_flat", r" gives decoded logits as float32 \(20,\) on cpu; expected .* \(20, 5\)"),
        ("decodes_nothing", r" gives decoded logits as a NoneType; expected float32 \(20, 5\) on cpu"),
        ("decode_raises", r": the code raises ValueError: no such thing; fix it"),
    ],
)
def test_a_batch_that_is_not_as_declared_is_one_line(name, message):
    trust_codec(f"mine:{name}")
    codec = find_codec(f"mine:{name}", 5)
    with pytest.raises(ConfigError, match=f"^codec mine:{name}{message}") as told:
        codec.decode(codec.encode(OUTPUT, CLASSES))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["mine half", "mine:", ":half", "mine:half-0", "mine:half-x", "halve"])
def test_a_name_that_can_be_no_codecs_is_refused_where_it_is_written(name):
    with pytest.raises(ConfigError, match=f"codec is '{name}'; expected one of .*, or module:NAME of your"):
        CodecSpec(name=name)
