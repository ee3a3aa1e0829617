"""What a teacher gives: logits, and the features that they are made of; compiled, it says the same."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.core.errors import ModelError
from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.models.architecture import Architecture, build
from pipeline.models.embedder import Embedder
from pipeline.models.teacher import CompiledTeacher, Teacher

CPU = torch.device("cpu")
SIZE = 8


@pytest.fixture
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 1, 12, 12, generator=torch.Generator().manual_seed(0))


def of(teacher: Teacher, network: nn.Module) -> Teacher:
    return replace(teacher, network=network.eval())


@pytest.mark.usefixtures("without_gradients")
def test_logits_are_the_networks_own(teacher, images):
    assert torch.equal(teacher.logits(images), teacher.network(images))


@pytest.mark.usefixtures("without_gradients")
def test_features_times_the_head_are_the_logits(teacher, images):
    output = teacher.output(images)
    assert output.features is not None
    again = F.linear(output.features, teacher.head.weight, teacher.head.bias)
    assert torch.equal(again, output.logits)


@pytest.mark.parametrize(
    ("name", "width"),
    [("resnet18", 512), ("mobilenet_v3_small", 1024), ("efficientnet_b0", 1280), ("vit_b_16", 768)],
)
@pytest.mark.usefixtures("without_gradients")
def test_torchvisions_classifiers_have_features(teacher, name, width):
    options = {"image_size": 32} if name.startswith("vit") else {}
    network = build(Architecture(name=name, num_classes=3, options=options))
    output = of(teacher, network).output(torch.randn(2, 3, 32, 32))
    assert output.features is not None
    assert output.features.shape == (2, width)


@pytest.mark.parametrize("after", [nn.LogSoftmax(1), nn.Sequential(nn.ReLU())])
@pytest.mark.usefixtures("without_gradients")
def test_what_follows_the_last_layer_leaves_no_features(teacher, images, after):
    network = nn.Sequential(nn.Flatten(), nn.Linear(144, 3), after)
    output = of(teacher, network).output(images)
    assert output.features is None
    assert torch.equal(output.logits, network(images))


@pytest.mark.usefixtures("without_gradients")
def test_a_network_without_a_linear_layer_has_no_features(teacher, images):
    network = nn.Sequential(nn.Conv2d(1, 3, 12), nn.Flatten())
    assert of(teacher, network).output(images).features is None


class Waiting(nn.Module):
    """Let a second thread come in between, as a slow layer does."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        time.sleep(0.05)
        return inputs


@pytest.mark.parametrize("kind", ["features", "layer"])
def test_threads_get_outputs_of_their_own(teacher, kind):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(144, 6), Waiting(), nn.Linear(6, 3), Waiting())
    network = layers if kind == "features" else Embedder(layers, "layer:1", "none")
    shared = of(teacher, network)
    batches = [torch.randn(count, 1, 12, 12) for count in (2, 2, 3, 5)]
    alone = [shared.output(batch) for batch in batches]
    assert (alone[0].features is None) == (kind == "layer")
    with ThreadPoolExecutor(len(batches)) as pool:
        for output, expected in zip(pool.map(shared.output, batches), alone, strict=True):
            assert torch.equal(output.logits, expected.logits)
            assert expected.features is None or torch.equal(output.features, expected.features)


@pytest.mark.usefixtures("without_gradients")
def test_under_autocast_logits_keep_their_precision(teacher, images):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(144, 64), nn.ReLU(), nn.Linear(64, 3))
    output = replace(of(teacher, network), precision="bf16").output(images)
    assert output.logits.dtype == torch.float32
    assert not torch.equal(output.logits, output.logits.bfloat16().float())
    assert torch.equal(F.linear(output.features, network[3].weight, network[3].bias), output.logits)


# Compiled


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> None:
    """What is compiled is kept by the code of its layers, whosever they are, and up to a limit."""
    torch.compiler.reset()


@pytest.fixture
def graphs(monkeypatch) -> list[torch.fx.GraphModule]:
    """Let networks be traced and not made into kernels, which takes minutes; gather what was traced."""
    found, compile_it = [], torch.compile

    def backend(graph, examples):
        found.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda network: compile_it(network, backend=backend))
    return found


@pytest.fixture
def make(teacher):
    """Return a function from a network of three classes, and a precision, to a teacher."""

    def make(network: nn.Module, precision: str = "fp32") -> Teacher:
        preprocessing = Preprocessing(size=32, mean=(0.5,) * 3, std=(0.2,) * 3)
        card = replace(teacher.card, preprocessing=preprocessing)
        return replace(teacher, network=network.eval(), card=card, precision=precision)

    return make


def _images(count: int, seed: int = 1) -> torch.Tensor:
    images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return images.to(memory_format=torch.channels_last)


def _network(*after: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    body = (nn.Conv2d(3, 8, 5, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(800, 16), nn.ReLU())
    return nn.Sequential(*body, nn.Linear(16, 3), *after)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_logits_and_features_are_those_of_the_network(make, graphs, precision):
    plain = make(_network(), precision)
    teacher = CompiledTeacher(plain, SIZE, CPU)
    said, expected = teacher.output(_images(SIZE)), plain.output(_images(SIZE))
    assert torch.equal(said.logits, expected.logits)
    assert torch.equal(said.features, expected.features)
    assert said.logits.dtype == said.features.dtype == torch.float32
    # The last layer is outside, in float32.
    (graph,) = graphs
    (value,) = next(iter(node.args[0] for node in graph.graph.nodes if node.op == "output"))
    assert value.meta["example_value"].shape == (SIZE, 16)


def test_smaller_batches_are_filled_up_and_not_compiled_again(make, graphs):
    plain = make(_network())
    teacher = CompiledTeacher(plain, SIZE, CPU)
    traced = len(graphs)
    assert traced > 0
    for count in (SIZE, 3, 1, SIZE, SIZE - 1):
        said = teacher.output(_images(count))
        torch.testing.assert_close(said.logits, plain.logits(_images(count)))
        assert len(said.logits) == len(said.features) == count
    assert len(graphs) == traced


@pytest.mark.parametrize("after", [nn.LogSoftmax(1), nn.Sequential(nn.ReLU())])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_follows_the_last_layer_is_kept_and_leaves_no_features(make, graphs, after, precision):
    plain = make(_network(after), precision)
    said, expected = CompiledTeacher(plain, SIZE, CPU).output(_images(5)), plain.output(_images(5))
    assert said.features is None
    torch.testing.assert_close(said.logits, expected.logits, rtol=1e-6, atol=1e-6)


def test_a_network_without_a_linear_layer(make, graphs):
    torch.manual_seed(0)
    plain = make(nn.Sequential(nn.Conv2d(3, 3, 32), nn.Flatten()))
    said = CompiledTeacher(plain, SIZE, CPU).output(_images(SIZE))
    assert said.features is None
    assert torch.equal(said.logits, plain.logits(_images(SIZE)))


def test_a_classifier_of_torchvisions(make, graphs):
    torch.manual_seed(0)
    plain = make(build(Architecture(name="resnet18", num_classes=3)))
    said, expected = CompiledTeacher(plain, 2, CPU).output(_images(2)), plain.output(_images(2))
    torch.testing.assert_close(said.logits, expected.logits)
    torch.testing.assert_close(said.features, expected.features)


def test_weights_are_shared_and_the_teacher_stays_as_it_was(make, graphs):
    plain = make(_network())
    before, digest = plain.logits(_images(SIZE)), plain.digest()
    teacher = CompiledTeacher(plain, SIZE, CPU)
    assert plain.digest() == digest
    assert torch.equal(plain.logits(_images(SIZE)), before)
    with torch.no_grad():
        plain.network[0].weight.mul_(2)
    assert torch.equal(teacher.output(_images(SIZE)).logits, plain.logits(_images(SIZE)))


def test_what_cannot_be_compiled_is_said_in_one_line(make, monkeypatch):
    compile_it = torch.compile

    def no_compiler(graph, examples):
        raise RuntimeError("No working C++ compiler found\nin many lines")

    monkeypatch.setattr(torch, "compile", lambda network: compile_it(network, backend=no_compiler))
    with pytest.raises(
        ModelError, match=r"teacher 't' .* here \(.*No working C\+\+ .*compile: false$"
    ) as error:
        CompiledTeacher(make(_network()), SIZE, CPU)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's, about torch
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_kernels_say_what_the_network_says(make, precision):
    plain = make(_network(), precision)
    said, expected = CompiledTeacher(plain, SIZE, CPU).output(_images(5)), plain.output(_images(5))
    tolerance = 1e-5 if precision == "fp32" else 1e-2
    torch.testing.assert_close(said.features, expected.features, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(said.logits, expected.logits, rtol=tolerance, atol=tolerance)
