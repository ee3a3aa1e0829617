"""Published results by GPU model, and their table for tests/benchmarks/README.md.

    python -m tests.benchmarks.gpu.kept FOLDER

Copies the results of a check into tests/benchmarks/results/gpu/CARD/, a card's newer ones in place of older
ones, step by step, and prints the table. `python -m tests.benchmarks.gallery` writes it to the document.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

from tests.benchmarks.gpu.findings import write
from tests.benchmarks.gpu.steps import AIMS
from tests.benchmarks.gpu.table import Result, read_results

KEPT = Path(__file__).parents[1] / "results" / "gpu"
NOT_RUN = "not run"


def keep(folder: Path, kept: Path = KEPT) -> list[Path]:
    """Copy the results of a check on a GPU and return the files.

    Raises:
        ValueError: the folder has no results, or they are from a small run or a CPU.
    """
    results = [result for result in read_results(folder) if "environment" in result]
    if not results or any(result["small"] or result["device"] == "cpu" for result in results):
        raise ValueError(f"{folder}: expected the results of a full check on a GPU")
    files = []
    for result in results:
        file = kept / card_folder(result["environment"]["device"]) / f"{result['step']}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        write(file, result)
        files.append(file)
    return files


def card_folder(card: str) -> str:
    """Return the folder name of a GPU model."""
    return re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")


def cards(kept: Path = KEPT) -> dict[str, list[Result]]:
    """Return the results by GPU model."""
    folders = sorted(folder for folder in kept.iterdir() if folder.is_dir()) if kept.exists() else []
    found = [results for folder in folders if (results := read_results(folder))]
    return {results[0]["environment"]["device"]: results for results in found}


def readme_table(measured: Mapping[str, list[Result]]) -> str:
    """Return one row per aim and one column per GPU model; one empty column if there are no results."""
    columns = [_found(results) for results in measured.values()] or [{}]
    names = list(measured) or ["GPU"]
    lines = [f"| measure | aim | {' | '.join(names)} |", f"|---|---|{'---|' * len(names)}"]
    for aim, wanted in AIMS.items():
        cells = [column.get(aim, NOT_RUN) for column in columns]
        lines.append(f"| {wanted.measure} | {wanted.wanted} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _found(results: list[Result]) -> dict[str, str]:
    return {
        row["aim"]: row["found"].replace("|", "/") for result in results for row in result.get("rows", [])
    }


def main() -> None:
    """Keep results and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of a check")
    for file in keep(parser.parse_args().folder):
        print(file)
    print(f"\n{readme_table(cards())}\n\npython -m tests.benchmarks.gallery writes it to the document.")


if __name__ == "__main__":
    main()
