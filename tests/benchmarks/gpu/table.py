"""Results as Markdown: one line per figure and per step."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.gpu.steps import STEPS, Step

Result = dict[str, Any]


def read_results(folder: Path, steps: Sequence[Step] = STEPS) -> list[Result]:
    """Return the existing results in the order of the steps."""
    files = [folder / f"{step.name}.json" for step in steps]
    return [json.loads(file.read_text()) for file in files if file.exists()]


def markdown(results: Iterable[Result]) -> str:
    """Return the table of a check, and the reasons for incomplete steps."""
    results = list(results)
    lines = ["| step | figure | found | aim | holds |", "|---|---|---|---|---|"]
    for result in results:
        took = f", {result['seconds']:.0f} s" if "seconds" in result else ""
        lines.append(f"| **{result['step']}** | {result.get('status', 'running')}{took} | | | |")
        lines += [_line(row) for row in result.get("rows", [])]
    machines = dict.fromkeys(_machine(result) for result in results if "environment" in result)
    return "\n".join([*lines, "", *machines, *_reasons(results)]) + "\n"


def _line(row: Result) -> str:
    cells = ("", row["measure"], row["found"], row["wanted"], "yes" if row["holds"] else "**no**")
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _machine(result: Result) -> str:
    """Return the hardware and versions of the run."""
    small = " In small: figures mean nothing." if result.get("small") else ""
    return ", ".join(f"{name} {value}" for name, value in result["environment"].items()) + f".{small}"


def _reasons(results: Iterable[Result]) -> list[str]:
    lines = []
    for result in results:
        said = result.get("last_lines") or [result[key] for key in ("reason",) if key in result]
        if said:
            lines += ["", f"{result['step']}, {result['status']}:", "", *(f"    {line}" for line in said)]
    return lines
