"""The public interface: names to import, and the command line."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import click
import pytest

import pipeline
from stages.cli import COMMANDS, cli
from tests import patience

PACKAGE = Path(pipeline.__file__)
NAMES = [
    *("Feed", "Loader", "LogitStore", "PreparedData", "ReplayDataset", "Targets", "ViewSpec"),
    *("losses", "render", "view_parameters"),
]
OPTIONS = {
    "init": {"FOLDER", "--logits"},
    "preset": {"NAME", "--out", "--dvc"},
    "prepare": {"--params", "--set", "--workers", "--look", "--on"},
    "train-teacher": {"TEACHER", "--params", "--set", "--device", "--workers", "--render", "--on"},
    "cache-logits": {"DUMP", "--params", "--set", "--device", "--workers", "--render"}
    | {"--out", "--shards", "--by-view", "--on"},
    "rehead": {"DUMP", "--head", "--out", "--penalty", "--max-kl", "--max-error", "--params", "--set"}
    | {"--device", "--workers", "--render"},
    "plan": {"DUMP", "--params", "--set", "--device", "--workers", "--render"}
    | {"--out", "--samples", "--json"},
    "train-student": {
        "STUDENT",
        "RECIPE",
        "SEED",
        "--dump",
        "--allow-drift",
        "--params",
        "--set",
        "--device",
    }
    | {"--workers", "--render", "--on", "--follow", "--follow-timeout"},
    "sweep": {"--params", "--set", "--device", "--workers", "--render", "--on"},
    "report": {"--params", "--set", "--workers", "--on"},
    "inspect": {"STORE", "--json"},
    "verify": {
        "STORE",
        "--replay",
        "--data",
        "--repair",
        "--upgrade",
        "--trust-code",
        "--allow-drift",
        "--json",
        "--device",
        "--workers",
        "--render",
        "--on",
    },
    "export-logits": {"DUMP", "--format", "--out", "--fp16", "--shard-rows", "--like", "--trust-code"}
    | {"--params", "--set"},
    "export": {
        "CHECKPOINT",
        "--format",
        "--out",
        "--with-normalise",
        "--trust-code",
        "--images",
        "--samples",
        "--threshold",
    },
}


def test_public_names_are_these():
    assert pipeline.__all__ == NAMES
    assert dir(pipeline) == NAMES
    for name in NAMES:
        assert getattr(pipeline, name).__doc__


def test_type_checkers_are_told_of_the_same_homes():
    """Both lists of public names are equal; test_wheel.py checks their types with mypy."""
    (block,) = (node for node in ast.parse(PACKAGE.read_text()).body if isinstance(node, ast.If))
    told = {
        name.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    assert told == pipeline._HOMES


def test_importing_the_package_imports_no_torch():
    code = "import pipeline, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Stroe'"):
        pipeline.Stroe  # noqa: B018


def test_commands_are_these():
    assert list(COMMANDS) == list(OPTIONS)


@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_these(name):
    command = cli.get_command(click.Context(cli), name)
    found = {
        p.human_readable_name.upper() if isinstance(p, click.Argument) else p.opts[0]
        for p in command.params
    }
    assert found - {"--debug"} == OPTIONS[name]


def test_the_library_is_imported_by_a_user_without_a_name():
    """E.g. under `docker run -u 1001`: torch asks for the user's name when torchvision imports it."""
    code = (
        "import os, pwd, sys\n"
        "for name in ('LOGNAME', 'USER', 'LNAME', 'USERNAME'): os.environ.pop(name, None)\n"
        "pwd.getpwuid = {}.__getitem__\n"
        "from pipeline import LogitStore, ReplayDataset\n"
        "import torchvision\n"
    )
    done = patience.call([sys.executable, "-c", code], cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
