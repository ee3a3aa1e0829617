"""Classes of the data as some of a teacher's: the same logits, in the data's order."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.core.errors import ConfigError, ModelError
from pipeline.core.trust import Trust
from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.models.architecture import Architecture, build
from pipeline.models.checkpoint import ModelCard, load_checkpoint, save_checkpoint
from pipeline.models.class_map import chosen_classes, read_class_map, with_classes
from pipeline.models.heads import SelectedLogits
from pipeline.models.teacher import Teacher

THEIRS = ("tench", "crane", "tabby", "Persian", "crane", "lorry")
OURS = ("truck", "cat", "fish")
MAP = {"cat": "tabby", "fish": 0, "truck": "lorry"}
EYES = Preprocessing(size=16, mean=(0.5,) * 3, std=(0.2,) * 3)


def _teacher(name: str = "resnet20", **form) -> tuple[nn.Module, ModelCard]:
    torch.manual_seed(0)
    architecture = Architecture(name=name, num_classes=6, **{"stem_stride": 1, **form})
    card = ModelCard(architecture=architecture, preprocessing=EYES, classes=THEIRS)
    return build(architecture).eval(), card


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def _as_teacher(network: nn.Module, card: ModelCard) -> Teacher:
    return Teacher(name="t", network=network, card=card, precision="fp32")


# What is chosen


def test_classes_are_chosen_by_name_and_number_in_the_datas_order():
    assert chosen_classes(MAP, THEIRS, OURS) == (5, 2, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dog": "tabby"}, r"has 'dog', which is not a class of the data"),
        ({"trucks": 1}, r"has 'trucks', .*did you mean 'truck'"),
        ({"cat": None}, r"lacks the data's class 'cat'; expected every class once"),
        ({"cat": None, "truck": None}, r"lacks the data's class 'truck' and 1 more"),
        ({"cat": "taby"}, r"maps 'cat' to 'taby', .*one of its 6 class names.*did you mean 'tabby'"),
        ({"cat": 6}, r"maps 'cat' to the teacher's class 6; expected 0 to 5, or a name"),
        ({"cat": -1}, r"maps 'cat' to the teacher's class -1"),
        ({"cat": "crane"}, r"to 'crane', but the teacher has several such classes, 1 and 4; use a number"),
        ({"cat": "tench"}, r"maps both 'cat' and 'fish' to the teacher's 'tench'"),
    ],
)
def test_a_map_that_does_not_fit_is_refused_with_the_first_name(change, message):
    mapping = {name: theirs for name, theirs in {**MAP, **change}.items() if theirs is not None}
    with pytest.raises(ModelError, match=message):
        chosen_classes(mapping, THEIRS, OURS)


# The mapped network


@pytest.mark.parametrize(
    ("name", "form", "layer"),
    [
        ("resnet20", {}, "head"),
        ("mobilenet_v3_small", {"stem_stride": 2}, "classifier.3"),
        ("squeezenet1_1", {"stem_stride": 4}, "classifier.1"),
    ],
)
def test_rows_of_the_last_layer_are_chosen(images, tmp_path, name, form, layer):
    images = F.interpolate(images, 32)
    network, card = _teacher(name, **form)
    card = replace(card, preprocessing=replace(EYES, size=32))
    mapped, mapped_card = with_classes(network, card, MAP, OURS)
    assert (mapped_card.classes, mapped_card.architecture.num_classes) == (OURS, 3)
    rows = network.get_submodule(layer).weight[[5, 2, 0]]
    assert torch.equal(mapped.get_submodule(layer).weight, rows)
    with torch.inference_mode():
        torch.testing.assert_close(mapped(images), network(images)[:, [5, 2, 0]])
    save_checkpoint(tmp_path / "x.pt", mapped.state_dict(), mapped_card)
    loaded, loaded_card = load_checkpoint(tmp_path / "x.pt")
    assert loaded_card == mapped_card
    with torch.inference_mode():
        assert torch.equal(loaded(images), mapped(images))


def test_a_mapped_teacher_still_has_the_features_that_make_its_logits(images):
    teacher = _as_teacher(*with_classes(*_teacher(), MAP, OURS))
    output = teacher.output(images)
    assert output.features is not None
    with torch.inference_mode():
        again = F.linear(output.features, teacher.head.weight, teacher.head.bias)
    assert torch.equal(again, output.logits)


def test_the_digest_of_a_mapped_teacher_is_another():
    digests = {
        _as_teacher(*with_classes(*_teacher(), mapping, OURS)).digest()
        for mapping in (MAP, {**MAP, "cat": "Persian"}, {"cat": "lorry", "fish": 0, "truck": "tabby"})
    }
    assert len(digests) == 3


def test_the_network_that_is_mapped_stays_as_it_is(images):
    network, card = _teacher()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with_classes(network, card, MAP, OURS)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


class _WithSoftmax(nn.Module):
    """Something after its last layer: its rows do not make its logits alone."""

    def __init__(self, num_classes: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, num_classes)

    def forward(self, x):
        return F.log_softmax(self.layer(x.mean((2, 3))), 1)


def test_logits_are_chosen_where_something_follows_the_last_layer(images, tmp_path):
    architecture = Architecture(name=f"{__name__}:_WithSoftmax", num_classes=6)
    card = ModelCard(architecture=architecture, preprocessing=EYES, classes=THEIRS)
    network = build(architecture).eval()
    mapped, mapped_card = with_classes(network, card, MAP, OURS)
    assert isinstance(mapped, SelectedLogits)
    assert mapped_card.architecture.selected == (5, 2, 0)
    with torch.inference_mode():
        assert torch.equal(mapped(images), network(images)[:, [5, 2, 0]])
    assert _as_teacher(mapped, mapped_card).output(images).features is None
    save_checkpoint(tmp_path / "x.pt", mapped.state_dict(), mapped_card)
    trust = Trust(code=frozenset({__name__}))
    loaded, loaded_card = load_checkpoint(tmp_path / "x.pt", trust=trust)
    assert loaded_card == mapped_card
    with torch.inference_mode():
        assert torch.equal(loaded(images), mapped(images))
    again, _ = with_classes(loaded, loaded_card, {"a": "fish", "b": "truck"}, ("a", "b"))
    with torch.inference_mode():
        assert torch.equal(again(images), network(images)[:, [0, 5]])


# Files


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_map_is_read_from_a_file(tmp_path, suffix):
    path = tmp_path / f"map.{suffix}"
    path.write_text(json.dumps(MAP) if suffix == "json" else "cat: tabby\nfish: 0\ntruck: lorry\n")
    assert read_class_map(path) == MAP


def test_names_that_are_digits_are_names(tmp_path):
    (tmp_path / "map.yaml").write_text("0: 4\n1: 5\n")
    assert read_class_map(tmp_path / "map.yaml") == {"0": 4, "1": 5}


@pytest.mark.parametrize("content", ["- a\n- b\n", "cat: [1]\n", "cat: true\n", "cat: 1.5\n", "3"])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    (tmp_path / "map.yaml").write_text(content)
    with pytest.raises(
        ConfigError, match=r"map.yaml: expected a mapping from each class of the data to a name or"
    ):
        read_class_map(tmp_path / "map.yaml")


@pytest.mark.parametrize("content", ["cat: 1\ncat: 2\n", '{"cat": 1,\n"cat": 2}'])
def test_a_class_that_stands_twice_is_refused_with_both_lines(tmp_path, content):
    (tmp_path / "map.yaml").write_text(content)
    with pytest.raises(ConfigError, match=r"map.yaml: .*'cat' appears in lines 1 and 2"):
        read_class_map(tmp_path / "map.yaml")


def test_a_file_that_is_not_there_or_no_yaml_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"map.yaml: no such file; expected a class map"):
        read_class_map(tmp_path / "map.yaml")
    (tmp_path / "map.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match=r"map.yaml: not YAML or JSON"):
        read_class_map(tmp_path / "map.yaml")
