"""What training leaves on disk: metrics.json, history.csv and checkpoints."""

from __future__ import annotations

import csv
import io
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

from pipeline.files import write_bytes, write_json
from pipeline.models.checkpoint import ModelCard, save_checkpoint
from pipeline.training.history import EpochRecord, TrainingResult


def write_run(folder: Path, metrics: dict[str, Any], history: list[EpochRecord]) -> None:
    """Write a run's metrics.json and history.csv; the metrics come last."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(field.name for field in fields(EpochRecord))
    table.writerows(map(astuple, history))
    write_bytes(folder / "history.csv", text.getvalue().encode())
    write_json(folder / "metrics.json", metrics)


def write_checkpoints(path: Path, result: TrainingResult, card: ModelCard) -> None:
    """Write the best epoch's weights to `path` and the last epoch's to NAME.last.pt."""
    save_checkpoint(path, result.best, card)
    save_checkpoint(path.with_suffix(".last.pt"), result.last, card)
