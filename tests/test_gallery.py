"""The figures of the documents are those of the result files."""

from __future__ import annotations

import doctest
import json
import re

import pytest

from tests.benchmarks import embeddings
from tests.benchmarks.gallery import claims, marks, results, size
from tests.benchmarks.gallery.contents import EXCEPTIONS, FIGURES, TABLES, used_files
from tests.benchmarks.gallery.marks import FIGURE, names, rewritten, unmarked_tables
from tests.benchmarks.gallery.results import NOT_RUN, RESULTS, Shown, gain, read
from tests.documents import FRONT, READMES, blocks

BENCHMARKS = READMES["tests/benchmarks/README.md"]
COMMAND = "python -m tests.benchmarks.gallery"
MARKED = [name for name, path in READMES.items() if any(names(path.read_text()))]


@pytest.mark.parametrize("name", MARKED)
def test_tables_and_figures_of_a_document_are_those_of_the_results(name):
    text = READMES[name].read_text()
    assert rewritten(text, TABLES, FIGURES) == text, f"run: {COMMAND}"


def test_every_entry_stands_in_a_document():
    tables, figures = zip(*(names(READMES[name].read_text()) for name in MARKED), strict=True)
    assert set().union(*tables) == set(TABLES)
    assert set().union(*figures) == set(FIGURES)


def test_every_result_file_is_shown():
    """Pictures are linked; results of GPUs are found by folder."""
    files = [path.relative_to(RESULTS) for path in RESULTS.rglob("*") if path.is_file()]
    shown = {file for file in files if file.parts[0] == "gpu" or str(file) in used_files()}
    linked = {file for file in files if f"(results/{file})" in BENCHMARKS.read_text()}
    assert {file for file in files if file.suffix != ".svg"} <= shown
    assert {file for file in files if file.suffix == ".svg"} <= linked


@pytest.mark.parametrize("path", [FRONT, BENCHMARKS], ids=["front", "benchmarks"])
def test_tables_of_figures_are_marked_or_have_a_reason(path):
    assert [head for head in unmarked_tables(path.read_text()) if head not in EXCEPTIONS] == []


def test_exceptions_are_tables_of_the_benchmarks():
    assert set(EXCEPTIONS) <= set(unmarked_tables(BENCHMARKS.read_text()))


def test_the_command_of_each_claim_stands_in_a_shell_block():
    shell = "\n".join(block.code for path in READMES.values() for block in blocks(path, "sh"))
    assert [claim.command for claim in claims.CLAIMS if claim.command not in shell] == []


def test_figures_have_the_form_that_the_marks_find():
    assert {
        name: shown.text() for name, shown in FIGURES.items() if not FIGURE.fullmatch(shown.text())
    } == {}


@pytest.mark.parametrize("module", [marks, results, size], ids=lambda module: module.__name__)
def test_the_examples_of_the_gallery_run(module):
    found = doctest.testmod(module)
    assert (found.failed, found.attempted > 0) == (0, True)


# Marks.


def constant(text: str) -> Shown:
    return Shown(make=lambda: text)


def test_a_table_is_rewritten_between_its_marks_alone():
    before = "Before.\n\n<!-- table: a -->\n| old |\n\n<!-- /table -->\nAfter."
    after = "Before.\n\n<!-- table: a -->\n| new |\n|---|\n<!-- /table -->\nAfter."
    assert rewritten(before, {"a": constant("| new |\n|---|")}, {}) == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("at 9.3e-3{} in", "at 9.4e-4{} in"),
        ("of 1,024 at 17{}.", "of 1,024 at 9.4e-4{}."),
        ("(−0.5 ± 0.1{})", "(9.4e-4{})"),
        ("0.96 [0.95, 0.97]{}", "9.4e-4{}"),
        ("8 ± 2 and 5 ±\n3{}", "8 ± 2 and 9.4e-4{}"),
    ],
)
def test_the_figure_right_before_a_mark_is_rewritten(before, after):
    mark = "<!-- figure: kl -->"
    assert rewritten(before.format(mark), {}, {"kl": constant("9.4e-4")}) == after.format(mark)


def test_a_figure_over_two_lines_stays_while_it_is_true():
    text = "They reach 64.48 ±\n0.14<!-- figure: a --> %."
    assert rewritten(text, {}, {"a": constant("64.48 ± 0.14")}) == text


def test_a_mark_without_a_figure_or_an_entry_is_refused():
    with pytest.raises(ValueError, match="expected a figure right before '<!-- figure: a -->'"):
        rewritten("none<!-- figure: a -->", {}, {"a": constant("1")})
    with pytest.raises(ValueError, match="unknown name 'b'"):
        rewritten("1<!-- figure: b -->", {}, {"a": constant("1")})
    with pytest.raises(ValueError, match="unknown name 'b'"):
        rewritten("<!-- table: b -->\n<!-- /table -->", {"a": constant("1")}, {})


def test_unmarked_tables_are_found_outside_code():
    fenced = "```text\n| c |\n|---|\n| 1 |\n```\n"
    marked = "<!-- table: a -->\n| a |\n|---|\n| 1 |\n<!-- /table -->\n"
    assert list(unmarked_tables(f"{fenced}{marked}\n| b |\n|---|\n| word |\n| 2 |\n")) == ["| b |"]


# Results that are not there yet.

PENDING = {
    "tutorial.json": [
        {"images": images, "recipe": recipe, "seed": seed, "top1": 0.7 + gained + seed / 100}
        for images in ("plain", "views")
        for recipe, gained in {"teacher": 0.1, "scratch": 0, "tutorial": 0, "kd": 0.02 + 0.01}.items()
        for seed in range(2)
    ],
    "unlabelled_class.json": [
        {"student": "small", "recipe": recipe, "seed": seed, "recall": recall, "top1": 0.8}
        for recipe, recalls in {"scratch": (0, 0), "kd": (0.8, 0.9)}.items()
        for seed, recall in enumerate(recalls)
    ],
    "early_guidance.json": [
        {"student": "small", "recipe": recipe, "seed": seed, "top1": 0.8, "validation_top1": curve}
        for recipe, curve in {"scratch": [0.5, 0.6, 0.8], "guided": [0.8] * 3, "kd": [0.5] * 3}.items()
        for seed in range(2)
    ],
    "many_labels.json": [
        {"arm": arm, "seed": seed, "map": found + seed / 100, "teacher_map": 0.9}
        for arm, found in {"labels": 0.7, "exact": 0.8, "exact V=1": 0.78, "clean": 0.75}.items()
        for seed in range(2)
    ],
    "embeddings.json": [
        {
            "arm": arm,
            "seed": seed,
            "knn": 0.5 + (seed + (arm == "pq-16")) / 100,
            "probe": 0.6,
            "cka": 0.7,
            "retrieval": 0.8,
        }
        | ({} if arm in ("teacher", "untrained") else {"bytes": 16.0, "cosine_distance": 0.1})
        for arm in ("teacher", *embeddings.ARMS)
        for seed in range(1 if arm == "teacher" else 2)
    ],
}
FOUND = {
    "many_labels.json": (
        "mAP 80.50 ± 0.50 % and 75.50 ± 0.50 %, +5.00 ± 0.00 points",
        "| teacher | 90.00 |",
    ),
    "embeddings.json": (
        "kNN 51.50 ± 0.50 % and 50.50 ± 0.50 % from 16 and 16 bytes, +1.00 ± 0.00 points",
        "| teacher |  |  | 50.00 |",
    ),
    "tutorial.json": ("70.50 ± 0.50 % and 73.50 ± 0.50 %, +3.00 ± 0.00 points", "| teacher | 75.60 |"),
    "unlabelled_class.json": ("recall of Bag 85.00 ± 5.00 %", "| small | `kd` | 85.00 ± 5.00 |"),
    "early_guidance.json": ("3.0 times fewer epochs", "| small | `guided` | 1.0 ± 0.0 |"),
}


@pytest.mark.parametrize("name", PENDING)
def test_a_claim_is_not_run_until_its_results_are_there(name, tmp_path):
    (claim,) = (claim for claim in claims.CLAIMS if claim.files == (name,))
    (shown,) = (shown for shown in TABLES.values() if shown.files == (name,))
    assert claim.row(tmp_path)[2:] == (NOT_RUN, "–", f"`{claim.command}`")
    assert shown.text(tmp_path) == NOT_RUN
    environment = {"device": "a processor", "threads": 2}
    runs = [{**run, "minutes": 1.5} for run in PENDING[name]]
    (tmp_path / name).write_text(json.dumps({"environment": environment, "runs": runs}))
    *_, here, holds, run = claim.row(tmp_path)
    told, row = FOUND[name]
    assert (here, holds) == (told, "yes")
    minutes = f"{1.5 * len(runs):.0f} minutes"
    assert run == f"`{claim.command}`; a processor, 2 threads, {minutes}; [{name}](results/{name})"
    assert row in shown.text(tmp_path)


def test_a_claim_that_results_contradict_does_not_hold(tmp_path):
    (claim,) = (claim for claim in claims.CLAIMS if "train as well as online" in claim.sentence)
    parity = read(RESULTS / "parity.json")
    parity["table"]["cached"] |= {"difference": -0.5, "difference_standard_error": 0.2}
    (tmp_path / "parity.json").write_text(json.dumps(parity))
    assert claim.row()[3] == "yes"
    assert claim.row(tmp_path)[2:4] == ("64.48 ± 0.14 %; −0.50 ± 0.20 points to online", "**no**")


def test_a_failed_campaign_is_no_figure(tmp_path):
    campaigns = read(RESULTS / "campaigns.json")
    name = next(name for name in campaigns["tests"] if re.search("no_kill", name))
    campaigns["tests"][name]["passed"] = False
    (tmp_path / "campaigns.json").write_text(json.dumps(campaigns))
    with pytest.raises(ValueError, match="expected a passed campaign"):
        FIGURES["kills"].text(tmp_path)


def test_a_paired_difference_has_a_true_minus():
    assert gain({"difference": -0.123, "difference_standard_error": 0.2}) == "−0.12 ± 0.20"
    assert gain({"difference": 0.0, "difference_standard_error": 0.0}) == ""
