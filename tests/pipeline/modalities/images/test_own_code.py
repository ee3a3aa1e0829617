"""An augmentation of the user's own code: drawn by key, exact, and run where the user named it alone."""

from __future__ import annotations

import importlib
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.core.errors import ConfigError, MismatchError
from pipeline.loading.feed import Feed
from pipeline.modalities.images import augmentations, own_code
from pipeline.modalities.images.augmentations import Cutmix, OwnAugmentation, RandomErasing
from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.modalities.images.spec import ViewSpec

CODE = """
import pathlib
pathlib.Path("executed").touch()

def shifted(pixels, words, *, by=1):
    assert len(words) == 4 and all(0 <= word < 1 << 32 for word in words)
    return (pixels + by + words[0] % 7).astype("uint8")

def mirrored(pixels, words):
    return pixels[:, ::-1]

def wide(pixels, words):
    return pixels.astype("int32")

def nothing(pixels, words):
    pass

def broken(pixels, words):
    raise ValueError("no\\nsuch thing")

def full(pixels, words):
    raise MemoryError

for function in (shifted, mirrored, wide, nothing, broken, full):
    function.version = 1
"""
EYES = Preprocessing(size=8, mean=(0.5,), std=(0.5,))
CPU = torch.device("cpu")
ROWS = np.arange(12)


@pytest.fixture(autouse=True)
def code(tmp_path, monkeypatch):
    """A working folder with a module of the user's, which nobody named."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(augmentations, "_NAMED", {})
    Path("mine.py").write_text(CODE)
    importlib.invalidate_caches()
    own_code._found.cache_clear()
    yield
    own_code._found.cache_clear()
    sys.modules.pop("mine", None)


def own(name: str = "shifted", version: int = 1, probability: float = 1.0, **settings) -> ViewSpec:
    augmentation = OwnAugmentation(
        code=f"mine:{name}", version=version, probability=probability, settings=settings
    )
    return ViewSpec(seed=3, own=augmentation)


def pixels(data, spec: ViewSpec | None, rows=ROWS, view: int = 0, **options) -> torch.Tensor:
    return Feed(data.train, spec, EYES, device=CPU, **options).pixels(view, rows)


def test_pixels_are_the_functions_of_those_that_were_rendered(tiny_data):
    plain, made = pixels(tiny_data, ViewSpec(seed=3)), pixels(tiny_data, own(by=20))
    shifts = (made.int() - plain.int()) % 256
    assert torch.equal(shifts.amin((1, 2, 3)), shifts.amax((1, 2, 3)))
    assert set(shifts.flatten().tolist()) <= set(range(20, 27))
    assert len(shifts.unique()) > 2


def test_a_view_is_the_same_whatever_the_batch(tiny_data):
    whole = pixels(tiny_data, own())
    for rows in (ROWS[::-1].copy(), ROWS[3:5], ROWS[7:8]):
        assert torch.equal(pixels(tiny_data, own(), rows), whole[rows])
    assert not torch.equal(pixels(tiny_data, own(), view=1), whole)


def test_its_probability_is_drawn_by_key(tiny_data):
    plain, always = pixels(tiny_data, None), pixels(tiny_data, own(by=9))
    some = pixels(tiny_data, own(by=9, probability=0.5))
    done = (some != plain).flatten(1).any(1)
    assert 0 < int(done.sum()) < len(ROWS)
    assert torch.equal(some, torch.where(done[:, None, None, None], always, plain))


def test_nobody_elses_draws_depend_on_it(tiny_data):
    erased = ViewSpec(seed=3, random_erasing=RandomErasing(value=255), cutmix=Cutmix())
    both = ViewSpec(
        seed=3, random_erasing=RandomErasing(value=255), cutmix=Cutmix(), own=own("mirrored").own
    )
    feed = Feed(tiny_data.train, both, EYES, device=CPU)
    plain = Feed(tiny_data.train, erased, EYES, device=CPU)
    for mine, theirs in zip(feed.shares(0, ROWS), plain.shares(0, ROWS), strict=True):
        assert np.array_equal(mine, theirs)


def test_the_digest_has_its_version_and_settings_and_others_have_none_of_it():
    specs = [own(), own(by=2), own(version=2), own(probability=0.5), own("mirrored"), ViewSpec(seed=3)]
    assert len({spec.digest() for spec in specs}) == len(specs)
    assert "own" not in ViewSpec(seed=3).canonical()
    assert ViewSpec.from_canonical(own(by=2).canonical()) == own(by=2)


# Whose code runs


def test_a_header_alone_runs_nothing_not_even_an_import(tiny_data, monkeypatch):
    canonical = own(by=2).canonical()
    monkeypatch.setattr(augmentations, "_NAMED", {})
    spec = ViewSpec.from_canonical(canonical)
    assert spec.canonical() == canonical  # which is looked at, as by `verify` and `inspect`
    for again in (spec, pickle.loads(pickle.dumps(spec))):
        with pytest.raises(ConfigError, match="'mine:shifted' is user code, which a store alone"):
            pixels(tiny_data, again)
    assert not Path("executed").exists()
    own("mirrored")
    with pytest.raises(ConfigError, match="which a store alone may not run"):
        pixels(tiny_data, spec)
    own(by=5)  # the user named the code, and a header may say its numbers
    assert pixels(tiny_data, spec).shape == (12, 8, 8, 1)


def test_a_header_gives_code_that_was_named_no_paths(tiny_data):
    canonical = own().canonical()
    canonical["own"]["settings"] = {"by": "../evil.pt"}
    with pytest.raises(ConfigError, match="which a store alone may not run"):
        pixels(tiny_data, ViewSpec.from_canonical(canonical))


def test_what_was_named_is_named_in_other_processes_too(monkeypatch):
    sent = pickle.dumps(own(by=2))
    monkeypatch.setattr(augmentations, "_NAMED", {})
    assert pickle.loads(sent).own.may_run


@pytest.mark.parametrize(
    "change",
    [
        {"code": 3},
        {"version": "1"},
        {"version": True},
        {"settings": [1]},
        {"probability": 2.0},
        {"code": "x"},
    ],
)
def test_a_header_that_describes_no_code_is_refused(change):
    canonical = own().canonical()
    with pytest.raises(ConfigError, match=rf"own.{next(iter(change))} is .*; expected"):
        ViewSpec.from_canonical({**canonical, "own": {**canonical["own"], **change}})
    with pytest.raises(MismatchError, match=r"operation own\.colour"):
        ViewSpec.from_canonical({**canonical, "own": {**canonical["own"], "colour": 1}})


# What goes wrong


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", r"mine has no 'missing'; expected a callable that returns the pixels of an image"),
        (
            "wide",
            r"mine:wide returns int32 \(8, 8, 1\); expected pixels like its input, uint8 \(8, 8, 1\)",
        ),
        ("nothing", r"mine:nothing returns a NoneType; expected pixels"),
        ("broken", r"mine:broken: the code raises ValueError: no such thing; fix it"),
    ],
)
def test_code_that_cannot_be_used_is_one_line(tiny_data, name, message):
    with pytest.raises(ConfigError, match=rf"augmentation .*{message}") as caught:
        pixels(tiny_data, own(name))
    assert "\n" not in str(caught.value)


def test_want_of_memory_is_not_the_codes_fault(tiny_data):
    with pytest.raises(MemoryError):
        pixels(tiny_data, own("full"))


def test_code_of_another_version_is_refused(tiny_data):
    with pytest.raises(ConfigError, match=r"mine:shifted has version 1, but the views use version 2"):
        pixels(tiny_data, own(version=2))


def test_it_renders_on_the_cpu(tiny_data):
    with pytest.raises(ConfigError, match=r"the views run user code, mine:shifted, .*--render cpu"):
        Feed(tiny_data.train, own(), EYES, device=CPU, on_device=True)


@pytest.mark.parametrize("settings", [{"by": float("nan")}, {"by": {1}}, {"by": (1, 2)}])
def test_settings_that_json_cannot_hold_are_refused(settings):
    with pytest.raises(ConfigError, match=r"own.settings is .*; expected plain, finite values"):
        own(**settings)
