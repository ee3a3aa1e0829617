"""The architecture: imports go one way, by the rules below."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for top in ("pipeline", "stages")
    for path in sorted((ROOT / top).rglob("*.py"))
}


def imports(module: str) -> Iterator[str]:
    """Yield the modules that a file imports, at run time or for type checking."""
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for name in node.names:
                full = f"{node.module}.{name.name}"
                yield full if full in FILES else node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


GRAPH = {module: {other for other in imports(module) if other in FILES} for module in FILES}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return groups of nodes that reach each other."""
    reached = {node: _reached(graph, node) for node in graph}
    found = {
        tuple(sorted({node} | {other for other in reached[node] if node in reached[other]}))
        for node in graph
    }
    return [list(group) for group in sorted(found) if len(group) > 1]


def _reached(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for other in graph[waiting.pop()] - seen:
            seen.add(other)
            waiting.append(other)
    return seen


def test_no_files_import_each_other_in_a_circle():
    assert circles(GRAPH) == []


# From top to bottom; a folder imports only from folders after it.
FLOORS = (
    *(
        "stages",
        "report",
        "export",
        "dump",
        "training",
        "tracking",
        "evaluation",
        "loading",
        "models",
        "modalities",
    ),
    *("tasks", "losses", "store", "codecs", "samples", "views", "places", "core"),
)


def floor(module: str) -> str | None:
    top, _, rest = module.partition(".")
    return top if top == "stages" else rest.partition(".")[0] or None


def test_imports_go_down_from_floor_to_floor():
    up = {
        f"{module} imports {other}"
        for module, others in GRAPH.items()
        for other in others
        if (here := floor(module)) and (there := floor(other)) and FLOORS.index(here) > FLOORS.index(there)
    }
    assert up == set()


@pytest.mark.parametrize(
    ("name", "public"), [("images", {"pipeline"}), ("text", set()), ("audio", set()), ("items", set())]
)
def test_a_modality_is_known_to_the_table_of_modalities_alone_and_to_the_public_names(name, public):
    folder = f"pipeline.modalities.{name}"
    known = {
        module
        for module, others in GRAPH.items()
        if not module.startswith(folder) and any(other.startswith(folder) for other in others)
    }
    assert known == {"pipeline.modalities.table", *public}


def test_the_test_for_circles_finds_one():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c"]]


@pytest.mark.parametrize(
    "folder", ["modalities", "models", "views", "tasks", "loading", "dump", "training"]
)
def test_the_store_knows_bytes_and_plain_values_alone(folder):
    known = {other for module in FILES if module.startswith("pipeline.store.") for other in GRAPH[module]}
    assert {other for other in known if other.startswith(f"pipeline.{folder}")} == set()


def test_opening_a_store_imports_no_model_no_modality_and_no_torchvision():
    code = (
        "import sys, pipeline\n"
        "pipeline.LogitStore\n"
        "others = 'torchvision', 'pipeline.models', 'pipeline.modalities', 'PIL'\n"
        "sys.exit(', '.join(name for name in sys.modules if name.startswith(others)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_library_knows_nothing_of_the_stages():
    known = {other for module in FILES if module.startswith("pipeline") for other in GRAPH[module]}
    assert {other for other in known if other.startswith("stages")} == set()
