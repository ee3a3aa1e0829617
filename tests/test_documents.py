"""The documents are linked from the front page, their links have targets, and their code runs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.codecs import OWN_CODECS
from pipeline.modalities.images import augmentations, own_code
from pipeline.modalities.table import MODALITIES
from pipeline.tasks.table import TASKS
from stages.cli import cli
from stages.params_file import load_params
from tests import parameter_reference
from tests.documents import (
    DOCUMENTS,
    FRONT,
    READMES,
    ROOT,
    Block,
    anchors,
    block_with,
    blocks,
    links,
    prose,
)
from tests.stages.conftest import run

_STUDENT = ("train-student", "shufflenet", "kd", 0, "--dump", "main")


def test_every_readme_is_linked_from_the_front_page():
    linked = {(ROOT / target.partition("#")[0]).resolve() for target in links(FRONT)}
    assert {name for name, path in READMES.items() if path != FRONT and path not in linked} == set()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_leads_somewhere(name):
    path = DOCUMENTS[name]
    broken = []
    for target in links(path):
        file, _, anchor = target.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        there = (path.parent / file).resolve() if file else path
        if not there.exists() or (anchor and there.suffix == ".md" and anchor not in anchors(there)):
            broken.append(target)
    assert broken == []


def test_the_front_page_is_short_and_begins_with_a_command():
    seen = re.sub(r"<!--.*?-->", "", FRONT.read_text(), flags=re.S)
    assert 900 <= len(seen.split()) <= 1250
    first = blocks(FRONT)[0]
    assert first.line < 40
    assert first.language == "sh"


@pytest.mark.parametrize("name", READMES)
def test_lines_of_prose_have_at_most_100_characters(name):
    long = {number: line for number, line in prose(READMES[name]) if len(line) > 100}
    assert long == {}


def test_pictures_are_small():
    pictures = {target: ROOT / target for target in links(FRONT) if target.endswith((".png", ".svg"))}
    assert pictures
    assert all(path.stat().st_size < 200_000 for path in pictures.values())


def test_the_parameter_reference_is_up_to_date():
    told = parameter_reference.reference_of(parameter_reference.DOCUMENT.read_text())
    assert told == parameter_reference.reference(), f"run: {parameter_reference.COMMAND}"


# Commands and parameters.


def _command_lines() -> list[tuple[str, str]]:
    """Return each call of `pipeline` in a shell block, with its document and line."""
    found = []
    for name, path in READMES.items():
        for block in blocks(path, "sh"):
            for number, line in enumerate(block.code.replace("\\\n", "  ").splitlines(), block.line):
                for part in re.split(r"&&|\|\||;", line.partition(" #")[0]):
                    words = shlex.split(part, comments=True)
                    if "pipeline" in words[:1] or "--no-python" in words:
                        place = words.index("pipeline")
                        found.append((f"{name}:{number}", shlex.join(words[place + 1 :])))
    return found


@pytest.mark.parametrize(("place", "line"), _command_lines())
def test_every_command_line_is_understood(place, line):
    arguments = shlex.split(line)
    context = click.Context(cli)
    command = cli.get_command(context, arguments[0])
    assert command is not None, f"{place}: no command {arguments[0]}"
    with command.make_context(arguments[0], arguments[1:], parent=context):
        pass


def _merged(base: Any, change: Any) -> Any:
    if isinstance(base, dict) and isinstance(change, dict):
        return {**base, **{key: _merged(base.get(key), value) for key, value in change.items()}}
    return change


def _yaml_blocks() -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{name}:{block.line}", yaml.safe_load(block.code))
        for name, path in READMES.items()
        for block in blocks(path, "yaml")
    ]


@pytest.mark.parametrize(("place", "change"), _yaml_blocks())
def test_params_yaml_may_say_every_block_of_yaml(place, change, tmp_path):
    preset = change.get("data", {}).get("modality", "")
    base = ROOT / "stages/presets" / f"{preset}.yaml"
    known = yaml.safe_load((base if base.is_file() else ROOT / "params.yaml").read_text())
    if not set(change) <= set(known):
        pytest.skip(f"{place}: no part of params.yaml")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(_merged(known, change)))
    load_params(tmp_path / "params.yaml")


# Code.


@pytest.fixture(scope="session")
def small_job(tmp_path_factory) -> Path:
    """The main job of params.yaml with the built-in teacher, 240 images and one epoch; run once."""
    folder = tmp_path_factory.mktemp("documents")
    with np.load(ROOT / "pipeline/modalities/images/builtin/fashion_mnist_10k.npz") as built_in:
        first = {name: array[:240] for name, array in built_in.items()}
    np.savez(folder / "small.npz", **first)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params = _merged(params, {"data": {"source": "npz:small.npz", "watch": "small.npz", "validation": 0.2}})
    params = _merged(params, {"training": {"epochs": 1, "batch_size": 32}})
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    Image.fromarray(noise).save(folder / "photo.jpg")
    before = Path.cwd()
    os.chdir(folder)
    try:
        for command in ("prepare", "train-teacher wrn_16_2", "cache-logits main"):
            assert run(*command.split()) == 0
        assert run(*_STUDENT) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def working_folder(small_job, tmp_path, monkeypatch) -> Iterator[Path]:
    """A copy of the small job, as the working folder for a document's code."""
    folder = tmp_path / "project"
    shutil.copytree(small_job, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    known = set(sys.modules)
    yield folder
    # Unload the document's modules, and undo their additions to the project's tables.
    for name, module in list(sys.modules.items()):
        if name not in known and str(getattr(module, "__file__", None)).startswith(str(folder)):
            del sys.modules[name]
    MODALITIES.forget()
    TASKS.forget()
    OWN_CODECS.forget()
    augmentations._NAMED.clear()
    own_code._found.cache_clear()


def _written(block: Block) -> None:
    """Write a block that begins with a file name to that file."""
    named = re.match(r"# ([\w/]+\.py)\n", block.code)
    if named is not None:
        Path(named[1]).write_text(block.code)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", [name for name in READMES if blocks(READMES[name], "python")])
def test_the_python_of_a_document_runs(name, working_folder):
    """Blocks of a document run in order, share names, and find the small job's files."""
    names: dict[str, Any] = {"__name__": "document", "pytest": pytest}
    for block in blocks(READMES[name], "python"):
        _written(block)
        exec(block.setup, names)
        # Empty lines before the block make errors name the right line of the document.
        padded = "\n" * (block.line - 1) + block.code
        exec(compile(padded, str(READMES[name]), "exec", dont_inherit=True), names)


def test_ones_own_code_goes_through_the_commands(working_folder, monkeypatch):
    """The example of stages/README.md: a source, a teacher, an augmentation and a loss in user code."""
    monkeypatch.setattr(augmentations, "_NAMED", {})
    own_code._found.cache_clear()
    path = READMES["stages/README.md"]
    Path("mine.py").write_text(block_with(path, "# mine.py"))
    (change,) = (yaml.safe_load(block.code) for block in blocks(path, "yaml") if "mine:" in block.code)
    known = yaml.safe_load(Path("params.yaml").read_text())
    Path("params.yaml").write_text(yaml.safe_dump(_merged(known, change)))
    shutil.rmtree("data")
    assert run("prepare") == 0
    assert run("train-teacher", "net", "--set", "training.epochs=8") == 0
    assert run("cache-logits", "foggy") == 0
    assert run("verify", "data/logits/foggy.zarr") == 0
    assert run("train-student", "tiny", "soft", 0, "--dump", "foggy") == 0
    own_code._found.cache_clear()


def test_the_heads_of_the_dump_page_go_through_the_commands(working_folder):
    path = READMES["pipeline/dump/README.md"]
    exec(block_with(path, "# groups.py"), {})
    (change,) = (yaml.safe_load(block.code) for block in blocks(path, "yaml") if "reheads:" in block.code)
    known = yaml.safe_load(Path("params.yaml").read_text())
    Path("params.yaml").write_text(yaml.safe_dump(_merged(known, change)))
    few = ("--set", "dumps.fine.views.count=1")
    for name in ("fine", "groups", "probe"):
        assert run("cache-logits", name, *few) == 0
    assert run("inspect", "data/logits/groups.zarr") == 0
    assert run("train-student", "shufflenet", "kd", 0, "--dump", "probe", *few) == 0


def test_the_codec_of_the_architecture_page_goes_through_the_commands(working_folder):
    path = READMES["pipeline/README.md"]
    Path("sixteenths.py").write_text(block_with(path, "# sixteenths.py"))
    (change,) = (yaml.safe_load(block.code) for block in blocks(path, "yaml") if "codec:" in block.code)
    known = yaml.safe_load(Path("params.yaml").read_text())
    Path("params.yaml").write_text(yaml.safe_dump(_merged(known, change)))
    assert run("plan", "rough") == 0
    assert run("cache-logits", "rough") == 0
    assert run("verify", "data/logits/rough.zarr", "--replay", 8, "--trust-code", "sixteenths") == 0
