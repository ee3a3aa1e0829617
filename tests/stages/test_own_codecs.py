"""A codec of user code goes through the commands, and a store alone runs none of it."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from pipeline import LogitStore, ReplayDataset
from pipeline.codecs import OWN_CODECS
from pipeline.core.errors import ConfigError, MismatchError
from tests.stages.conftest import run, write_images

CODE = """
import dataclasses, pathlib
import torch
from pipeline.codecs import ArraySpec, Codec
from pipeline.codecs.base import FeatureDecoder

def logs(steps, n_classes):
    "Log-probabilities in steps of 1 / steps nats, in int16."
    def encode(output, rule):
        logs = rule.kept(output.logits).log_softmax(1)
        return {"codes": (logs * steps).round().clamp(min=-32768).to(torch.int16)}

    def decode(arrays):
        codes = arrays["codes"].float()
        return (codes - codes.amax(1, keepdim=True)) / steps

    arrays = {"codes": ArraySpec("int16", (n_classes,))}
    return Codec(name=f"mine:logs-{steps}", version=1, arrays=arrays, encode=encode, decode=decode)

def seen(dim, n_classes):
    "The same in steps of 1 / 64, and the features."
    plain = logs(64, n_classes)
    return dataclasses.replace(
        plain, name=f"mine:seen-{dim}", arrays={**plain.arrays, "features": ArraySpec("float16", (dim,))},
        encode=lambda output, rule: {**plain.encode(output, rule), "features": output.features.half()},
        features=FeatureDecoder(dim, lambda arrays: arrays["features"].float()),
    )

def lost(n_classes):
    plain = logs(64, n_classes)
    return dataclasses.replace(plain, name="mine:lost", decode=lambda a: plain.decode(a) * torch.nan)

def flat(n_classes):
    plain = logs(64, n_classes)
    return dataclasses.replace(plain, name="mine:flat", decode=lambda a: plain.decode(a)[:, 1:])
"""
STORE = Path("data/logits/main.zarr")
Edit = Callable[..., None]


def forget() -> None:
    """Forget the user's codecs, as a new process would."""
    OWN_CODECS.forget()
    sys.modules.pop("mine", None)


def write(code: str) -> None:
    """Write the user's module, to be imported again."""
    Path("mine.py").write_text(code)
    shutil.rmtree("__pycache__", ignore_errors=True)
    importlib.invalidate_caches()
    forget()


@pytest.fixture
def mine(project, monkeypatch, edit) -> Iterator[Path]:
    """The project with a codec of its own for its dump."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    write(CODE)
    edit(
        {
            "dumps": {"main": {"codec": "mine:logs-64"}},
            "training": {"epochs": 1},
            "sweep": {"baselines": []},
        }
    )
    yield project
    forget()


def test_it_goes_through_the_commands(mine, capsys, edit):
    assert run("plan", "main", "--json") == 0
    foreseen = json.loads(capsys.readouterr().out)
    assert (foreseen["codec"], foreseen["kl_t1_mean"] < 1e-3) == ("mine:logs-64", True)
    assert run("cache-logits", "main") == 0
    assert run("train-student", "pupil", "kd", 0, "--dump", "main") == 0
    assert run("report") == 0

    # More views and images, in a new process.
    forget()
    write_images(mine, 120)
    edit({"dumps": {"main": {"views": {"count": 4}}}})
    assert run("prepare") == 0
    assert run("cache-logits", "main") == 0
    capsys.readouterr()
    assert run("verify", STORE, "--replay", 20, "--json", "--trust-code", "mine:logs") == 0
    audit = json.loads(capsys.readouterr().out)
    assert (audit["ok"], audit["replayed"], audit["replay_max_abs_diff"] < 0.02) == (True, 20, True)

    OWN_CODECS.use("mine:logs")
    store = LogitStore.open(STORE)
    assert (store.codec.name, store.n_views) == ("mine:logs-64", 4)
    codes = store.encoded_view(3)["codes"]
    relative = codes - codes.max(1, keepdims=True)
    assert torch.equal(store.view(3), torch.from_numpy(relative).float() / 64)
    dataset = ReplayDataset(STORE, "data/prepared")
    spawned = DataLoader(dataset, 64, num_workers=1, multiprocessing_context="spawn")
    assert torch.equal(
        torch.cat([logits for _, _, logits in spawned]), torch.stack([d[2] for d in dataset])
    )


def test_a_store_alone_runs_none_of_it(mine, capsys, edit):
    assert run("cache-logits", "main") == 0
    forget()
    edit({"dumps": {"main": {"codec": "affine8"}}})  # so params.yaml names it no more
    capsys.readouterr()
    assert run("inspect", STORE) == 0
    assert "codec           mine:logs-64, " in capsys.readouterr().out
    assert run("verify", STORE) == 0
    printed = capsys.readouterr()
    assert "its logits are not decoded: codec 'mine:logs' is user code" in printed.err
    assert printed.out.endswith(", 0 bad\n")
    for command in (
        ["verify", STORE, "--replay", 8],
        ["train-student", "pupil", "kd", 0, "--dump", "main"],
    ):
        assert run(*command) == 1
        told = capsys.readouterr().err.splitlines()[-1]
        assert "codec 'mine:logs' is user code, which a file alone does not run" in told
        assert "as dumps.NAME.codec in params.yaml" in told
        assert told.endswith("--trust-code mine:logs")
    with pytest.raises(ConfigError, match=r"call pipeline.codecs.OWN_CODECS.use\('mine:logs'\)"):
        LogitStore.open(STORE)
    assert "mine" not in sys.modules
    assert run("verify", STORE, "--trust-code", "mine") == 0
    assert "not decoded" not in capsys.readouterr().err


def test_a_damaged_store_is_mended_if_its_code_is_trusted(mine, capsys):
    assert run("cache-logits", "main") == 0
    forget()
    shard = next((STORE / "train/codes/c").rglob("0/0/0"))
    before = shard.read_bytes()
    shard.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert run("verify", STORE, "--repair") == 1
    assert "--trust-code mine:logs" in capsys.readouterr().err
    assert run("verify", STORE, "--repair", "--trust-code", "mine") == 0
    assert shard.read_bytes() == before


def test_other_code_of_one_name_is_noticed(mine, capsys):
    assert run("cache-logits", "main") == 0
    for change, message in (
        (
            ("version=1", "version=2"),
            r"written with codec mine:logs-64\.1, but this program has mine:logs-64\.2;",
        ),
        (
            ('"codes"', '"codes_"'),
            "written with different arrays than codec mine:logs-64 has now; use the code that wrote it",
        ),
    ):
        write(CODE.replace(*change))
        OWN_CODECS.use("mine:logs")
        with pytest.raises(MismatchError, match=message):
            LogitStore.open(STORE)
        assert run("cache-logits", "main") == 1


def test_a_student_may_compare_the_features_that_it_keeps(mine, capsys, edit):
    edit({"dumps": {"main": {"codec": "mine:seen-64"}}, "recipes": {"kd": {"loss": "rkd"}}})
    assert run("cache-logits", "main") == 0
    assert run("train-student", "pupil", "kd", 0, "--dump", "main") == 0
    edit({"dumps": {"main": {"codec": "mine:logs-64"}}})
    shutil.rmtree(STORE)
    assert run("cache-logits", "main") == 0
    capsys.readouterr()
    assert run("train-student", "pupil", "kd", 1, "--dump", "main") == 1
    assert (
        "needs teacher features, but the store was written with codec 'mine:logs-64'"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("codec", "message"),
    [
        ("mine:lost", "codec mine:lost does not decode"),
        ("mine:flat", "codec mine:flat gives decoded logits as float32 ("),
        ("mine:logs", "codec mine:logs: the code raises TypeError: logs() missing"),
        ("mine:nobody", "codec mine:nobody: mine has no 'nobody'"),
        ("nobody:logs", "codec nobody:logs: no module 'nobody'"),
        ("nobody", "dumps.main: codec is 'nobody'; expected one of auto, fp16"),
    ],
)
def test_a_codec_that_fails_is_one_line_and_leaves_no_store(mine, capsys, codec, message):
    for command in ("plan", "cache-logits"):
        assert run(command, "main", "--set", f"dumps.main.codec={codec}") == 1
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert not STORE.exists()
    assert run("cache-logits", "main") == 0


def test_a_budget_is_kept_to_or_refused_on_the_pilot(mine, capsys, edit):
    edit({"dumps": {"main": {"codec": "mine:logs-1", "max_kl": 1e-3}}})
    assert run("cache-logits", "main") == 1
    assert (
        "codec mine:logs-1 (max_kl 0.001): exceeds its error budget on the pilot" in capsys.readouterr().err
    )
    assert run("cache-logits", "main", "--set", "dumps.main.codec=mine:logs-64") == 0
