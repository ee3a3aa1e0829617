"""A classifier of transformers is fine-tuned, dumped, taught from and exported; run by `make heavy`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tests.pipeline.modalities.text import texts
from tests.stages.conftest import run
from tests.stages.test_text import write_table

transformers = pytest.importorskip("transformers")
PARAMS = {
    "data": {"modality": "text", "source": "csv:table", "max_length": 48, "validation": 0.25},
    "training": {"epochs": 12, "batch_size": 16, "optimizer": "adamw", "learning_rate": 0.005}
    | {"views": {"seed": 1, "random_deletion": {}}},
    "teachers": {"teacher": {"model": "hf:bert", "weights": "pretrained", "fine_tune": True}},
    "dumps": {"main": {"teacher": "teacher", "views": {"count": 2, "seed": 1, "mask": {}}}},
    "students": {
        "tiny": {"model": "bert_tiny", "options": {"dim": 32}, "preprocessing": {"tokenizer": "bert"}},
        "other": {"model": "kim_cnn", "options": {"dim": 16}, "preprocessing": {"tokenizer": "words"}},
    },
    "recipes": {"kd": {"loss": "kd"}},
}


def write_bert(folder: Path) -> None:
    """Write a small BERT with random weights and three classes."""
    tokenizer, sizes = texts.bert(), {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=tokenizer.size, max_position_embeddings=64, num_labels=3, intermediate_size=64, **sizes
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(tokenizer.content)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_classifier_of_transformers_teaches_students_with_other_tokenizers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_table(Path("table"))
    write_bert(Path("bert"))
    Path("params.yaml").write_text(yaml.safe_dump(PARAMS))
    for command in ("prepare", "train-teacher teacher", "cache-logits main"):
        assert run(*command.split()) == 0
    for student in ("tiny", "other"):
        assert run("train-student", student, "kd", "0", "--dump", "main") == 0
    # Checkpoints stand alone: the folder is needed no more.
    Path("bert").rename("gone")
    assert run("verify", "data/logits/main.zarr", "--replay", "16") == 0
    onnxruntime = pytest.importorskip("onnxruntime")
    assert run("export", "models/teachers/teacher.pt", "--format", "onnx", "--out", "x.onnx") == 0
    assert Path("x.tokenizer.json").read_bytes() == Path("gone/tokenizer.json").read_bytes()
    session = onnxruntime.InferenceSession("x.onnx")
    assert session.run(None, {"tokens": np.array([[2, 9, 10, 3]])})[0].shape == (1, 3)
    header = json.loads(Path("data/logits/main.zarr/zarr.json").read_text())
    described = header["attributes"]["teacher"]["preprocessing"]["tokenizer"]
    assert (described["kind"], set(described)) == ("file", {"kind", "size", "digest"})


def test_another_tokenizer_file_is_another_teacher(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_table(Path("table"))
    write_bert(Path("bert"))
    params = {**PARAMS, "teachers": {"teacher": PARAMS["students"]["tiny"]}}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    for command in ("prepare", "train-teacher teacher", "cache-logits main"):
        assert run(*command.split()) == 0
    Path("bert/tokenizer.json").write_bytes(texts.bert(vocabulary=200).content)
    capsys.readouterr()
    assert run("cache-logits", "main") == 1
    said = capsys.readouterr().err
    assert "teachers.teacher.preprocessing.tokenizer was file " in said
    assert "run: pipeline train-teacher teacher" in said
