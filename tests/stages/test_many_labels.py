"""Tags and numbers in tables of texts and clips, from params.yaml alone to the report."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline import LogitStore, PreparedData
from tests.pipeline.modalities.audio.clips import noise, tone, write
from tests.stages.conftest import run
from tests.stages.test_text import TOPICS

RATE = 8_000
TEXT_VIEWS = {"seed": 1, "random_deletion": {}}
CLIP_VIEWS = {"seed": 1, "crop": "random"}
BASE: dict[str, Any] = {
    "training": {"epochs": 2, "batch_size": 16, "optimizer": "adamw", "learning_rate": 0.01},
    "sweep": {"dumps": ["main"], "students": ["pupil"], "recipes": ["taught"], "seeds": [0]},
}


def sentences(count: int) -> list[tuple[str, list[str]]]:
    """Texts about one to three topics, and the topics."""
    rng, found = np.random.default_rng(count), []
    for _ in range(count):
        topics = [topic for topic in TOPICS if rng.random() < 0.5] or ["sea"]
        words = [rng.choice(TOPICS[topic].split()) for topic in topics for _ in range(3)]
        found.append((f"The {' and the '.join(words)}.", topics))
    return found


def write_params(views: dict[str, Any], **params: Any) -> None:
    training = {**BASE["training"], "views": views}
    dump = {"teacher": "tutor", "codec": "auto", "batch_size": 16, "allow_poor_teacher": True}
    dumps = {"main": {**dump, **params.pop("dump", {}), "views": {"count": 1, **views}}}
    Path("params.yaml").write_text(yaml.safe_dump({**BASE, "training": training, "dumps": dumps, **params}))


def text_tags() -> str:
    """A CSV table with a column per tag; the last tag of some rows is unknown."""
    with Path("notes.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", *TOPICS])
        for number, (text, topics) in enumerate(sentences(120)):
            known = [int(topic in topics) for topic in TOPICS]
            table.writerow([text, *known[:-1], "" if number % 7 == 0 else known[-1]])
    write_params(
        TEXT_VIEWS,
        data={"modality": "text", "source": "csv:notes.csv", "task": "multilabel", "label": [*TOPICS]}
        | {"validation": 0.25, "max_length": 16},
        teachers={"tutor": {"model": "kim_cnn", "options": {"dim": 16, "filters": 8}}},
        students={"pupil": {"model": "kim_cnn", "options": {"dim": 8, "filters": 4}}},
        recipes={"taught": {"loss": "binary_kd"}},
    )
    return "map"


def text_scores() -> str:
    """JSON lines with two numbers: length and share of the sea; some rows have none."""
    lines = []
    for number, (text, topics) in enumerate(sentences(120)):
        values = {"length": len(text) / 50, "sea": ("sea" in topics) / len(topics)}
        lines.append(json.dumps({"text": text, **(values if number % 9 else {})}))
    Path("notes.jsonl").write_text("\n".join(lines))
    write_params(
        TEXT_VIEWS,
        data={"modality": "text", "source": "jsonl:notes.jsonl", "task": "scores"}
        | {"label": ["length", "sea"], "validation": 0.25, "max_length": 16},
        teachers={"tutor": {"model": "kim_cnn", "options": {"dim": 16, "filters": 8}}},
        students={"pupil": {"model": "kim_cnn", "options": {"dim": 8, "filters": 4}}},
        recipes={"taught": {"loss": "l2", "label_weight": 0.2}},
    )
    return "spearman"


def clip_tags() -> str:
    """AudioFolder with lists of tags: tones that sound together."""
    tones, rng = {"low": 300, "middle": 800, "high": 2000}, np.random.default_rng(0)
    for split, count in (("train", 48), ("test", 16)):
        rows = []
        for number in range(count):
            tags = [name for name in tones if rng.random() < 0.5]
            parts = [tone(tones[name], 1600) // 4 for name in tags]
            clip = sum(parts, noise(1600, number) // 10)
            write(Path(f"sounds/{split}/{number}.wav"), clip.astype(np.int16))
            rows.append((f"{number}.wav", ";".join(tags)))
        with Path(f"sounds/{split}/metadata.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("file_name", "tags"), *rows])
    net = {
        "model": "wavenet",
        "options": {"channels": 8, "skips": 16, "layers": 4, "stacks": 1, "frame": 10},
    }
    write_params(
        CLIP_VIEWS,
        data={"modality": "audio", "source": "folder:sounds", "task": "multilabel", "label": ["tags"]}
        | {"validation": 0.25, "sample_rate": RATE, "clip_seconds": 0.2},
        teachers={"tutor": net},
        students={"pupil": net},
        recipes={"taught": {"loss": "binary_kd"}},
    )
    return "map"


@pytest.mark.parametrize("make", [text_tags, text_scores, clip_tags])
def test_a_table_goes_from_its_rows_to_a_report(make: Callable[[], str], tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    main = make()
    for command in ("prepare", "train-teacher tutor", "cache-logits main"):
        assert run(*command.split()) == 0, capsys.readouterr().err
    assert run("train-student", "pupil", "taught", 0, "--dump", "main") == 0, capsys.readouterr().err
    assert run("report") == 0, capsys.readouterr().err
    (student,) = json.loads(Path("reports/results.json").read_text())["students"]
    assert student[main] is not None
    assert math.isfinite(student[main])
    store = LogitStore.open("data/logits/main.zarr")
    budget = store.manifest.header.codec_spec.budget
    assert store.manifest.fidelity().within(1.5 * budget)
    kinds = {"tags": np.int8, "scores": np.float32}
    labels = PreparedData.open(Path("data/prepared")).train.labels
    assert (labels.ndim, labels.dtype) == (2, kinds["scores" if make is text_scores else "tags"])
