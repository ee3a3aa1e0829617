"""Examples in docstrings run as they stand there, in the folder of a small project."""

from __future__ import annotations

import doctest
import importlib
import shutil
from pathlib import Path
from types import ModuleType

import pytest

import pipeline
from pipeline.dump.run import cache_logits

ROOT = Path(__file__).parents[2]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for folder in ("pipeline", "stages")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if ">>>" in path.read_text()
]


@pytest.fixture(scope="session")
def project(tiny_folder, context, teacher, make_spec, tmp_path_factory) -> Path:
    """A folder with prepared data and a dump of it, where commands leave them."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(tiny_folder, folder / "data/prepared")
    cache_logits(context, teacher, make_spec("affine8"), folder / "data/logits/main.zarr")
    return folder


@pytest.fixture
def _in_project(project, monkeypatch):
    monkeypatch.chdir(project)


def run(examples: list[doctest.DocTest]) -> int:
    """Run examples, fail with a report where one prints something else, and return their number."""
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    said: list[str] = []
    for example in examples:
        runner.run(example, out=said.append)
    assert runner.failures == 0, "".join(said)
    return runner.tries


@pytest.mark.parametrize("name", pipeline.__all__)
@pytest.mark.usefixtures("_in_project")
def test_each_public_name_has_an_example_that_imports_all_that_it_uses(name):
    found = doctest.DocTestFinder(recurse=False).find(getattr(pipeline, name), name, globs={})
    text = "".join(example.docstring or "" for example in found)
    assert f"from pipeline import {name}" in text or f", {name}" in text
    assert "+SKIP" not in text
    assert run(found) >= 3


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.usefixtures("_in_project")
def test_examples(name):
    module: ModuleType = importlib.import_module(name)
    assert run(doctest.DocTestFinder().find(module, name)) > 0


def test_an_example_that_prints_something_else_fails():
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    with pytest.raises(AssertionError, match=r"Expected:\s+3\s+Got:\s+2"):
        run([wrong])
