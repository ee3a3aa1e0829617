"""Sequence classifiers of transformers from a local folder; `make heavy` runs these with the library "
"installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipeline.core.errors import ModelError
from pipeline.modalities.table import find_modality
from pipeline.modalities.text.models.transformers import SequenceClassifier
from pipeline.modalities.text.preprocessing import GivenText, TextPreprocessing
from pipeline.modalities.text.tokenizers import WordList
from pipeline.models.architecture import Architecture, build, source_of
from pipeline.models.checkpoint import load_checkpoint, save_checkpoint
from pipeline.models.pretrained import load_pretrained
from tests.pipeline.modalities.text import texts

transformers = pytest.importorskip("transformers")
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
TEXT = find_modality("text")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> str:
    """A small BERT with weights and three classes, as save_pretrained writes it."""
    monkeypatch.chdir(tmp_path)
    tokenizer = texts.bert()
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=tokenizer.size + 3, max_position_embeddings=40, num_labels=3, **SIZES
    )
    config.id2label = {0: "no", 1: "perhaps", 2: "yes"}
    transformers.BertForSequenceClassification(config).save_pretrained("bert")
    Path("bert/tokenizer.json").write_bytes(tokenizer.content)
    return "bert"


def loaded(name: str, **options):
    return load_pretrained(name, "pretrained", options=options, modality=TEXT)


def test_pretrained_weights_give_the_librarys_logits(folder):
    network, card = loaded(f"hf:{folder}")
    assert card.classes == ("no", "perhaps", "yes")
    assert (card.preprocessing.max_length, card.preprocessing.tokenizer.kind) == (40, "file")
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    frame = card.preprocessing.tokenizer.frame(2)
    ids = torch.tensor([[*frame.before, 9, 12, *frame.between, 11, *frame.after, 0, 0]])
    types = torch.tensor([[0, 0, 0, 0, 1, 1, 0, 0]])
    with torch.inference_mode():
        expected = plain(input_ids=ids, attention_mask=(ids != 0).long(), token_type_ids=types).logits
        torch.testing.assert_close(network(ids), expected)
        torch.testing.assert_close(network(ids[:, :6]), expected, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_stands_alone(folder):
    network, card = loaded(f"hf:BertForSequenceClassification:{folder}")
    save_checkpoint(Path("saved.pt"), network.state_dict(), card)
    Path(folder).rename("gone")
    again, known = load_checkpoint(Path("saved.pt"))
    assert known == card
    assert known.preprocessing.tokenizer.encode(["the dog"]) == card.preprocessing.tokenizer.encode(
        ["the dog"]
    )
    ids = torch.tensor([[2, 9, 10, 3]])
    torch.testing.assert_close(again(ids), network(ids))


def test_fresh_weights_take_the_configuration_and_the_folders_tokenizer(folder):
    family = source_of(f"hf:{folder}")
    own = TextPreprocessing(tokenizer=WordList(("a", "b")), max_length=24, words=("a", "b"))
    fitted = family.fitted(f"hf:{folder}", own, GivenText())
    assert (fitted.tokenizer.kind, fitted.max_length) == ("file", 24)
    words = family.fitted(f"hf:{folder}", own, GivenText(tokenizer="words"))
    for preprocessing, size in ((fitted, fitted.channels + 3), (words, 6)):
        options = family.fitted_options(f"hf:{folder}", preprocessing)
        built = build(
            Architecture(
                name=f"hf:{folder}", num_classes=5, channels=preprocessing.channels, options=options
            )
        )
        assert isinstance(built, SequenceClassifier)
        assert built.network.config.vocab_size == size
        assert built(torch.tensor([[1, 2, 3]])).shape == (1, 5)


def test_an_encoder_without_a_classifier_gets_a_fresh_one(folder):
    transformers.BertModel(transformers.BertConfig.from_pretrained(folder)).save_pretrained("encoder")
    Path("encoder/tokenizer.json").write_bytes(Path(folder, "tokenizer.json").read_bytes())
    network, card = loaded("hf:encoder")
    assert network(torch.tensor([[2, 9, 3]])).shape == (1, len(card.classes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: Path("bert/config.json").unlink(), "has no config.json"),
        (lambda: Path("bert/config.json").write_text("{"), "not JSON"),
        (lambda: Path("bert/config.json").write_text("{}"), "no model_type"),
        (lambda: _config(auto_map={"AutoModel": "code.Net"}), "names code of its own"),
        (lambda: _config(model_type="nothing"), "expected a sequence classifier"),
        (lambda: Path("bert/tokenizer.json").unlink(), "expected a tokenizer.json"),
        (lambda: Path("bert/model.safetensors").rename("bert/x"), "expected a sequence classifier"),
    ],
)
def test_folders_that_are_not_usable_are_one_line(folder, change, message):
    change()
    with pytest.raises(ModelError, match=message):
        loaded(f"hf:{folder}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:BertModel:bert", "has no sequence classifier BertModel"),
        ("hf:Nothing:bert", "has no sequence classifier Nothing"),
        ("hf:my folder", "expected hf:FOLDER or hf:Class:FOLDER"),
        ("hf:elsewhere", "elsewhere has no config.json"),
    ],
)
def test_names_that_are_no_model_are_one_line(folder, name, message):
    with pytest.raises(ModelError, match=message):
        loaded(name)


def _config(**changes) -> None:
    path = Path("bert/config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
