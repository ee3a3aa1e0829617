"""Exported files: run by their own runtimes, with nothing of this project, against the eager network."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from pipeline.core.errors import ConfigError, ModelError
from pipeline.export import formats
from pipeline.export.deployment import Deployment
from pipeline.export.formats import FORMATS, Parity, measure_parity
from pipeline.loading.feed import Feed
from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.models.architecture import Architecture, build
from pipeline.models.checkpoint import ModelCard
from pipeline.tasks.classes import CLASSES as TASK

CLASSES = ("cat", "dog", "größer", "bird", "fish", "hat")
NETS = {
    "resnet8": (1, 1, 28),
    "shufflenet_v2_x0_5": (1, 2, 32),
    "resnet18": (3, 4, 40),
}
# torch's reader looks at the archive's bytes through a buffer that may not be written to.
reads_pt2 = pytest.mark.filterwarnings("ignore:The given buffer is not writable")


@cache
def encoded(name: str, form: str) -> bytes:
    """Return a file of a network, made once: it takes seconds."""
    return FORMATS[form].encode(deployment_of(name))


def deployment_of(name: str, *, normalises: bool = False) -> Deployment:
    if name == "transformer":
        return _transformer()
    channels, stem_stride, size = NETS[name]
    architecture = Architecture(name=name, num_classes=6, channels=channels, stem_stride=stem_stride)
    torch.manual_seed(1)
    return _deploy(build(architecture), architecture, size, normalises=normalises)


def _transformer() -> Deployment:
    """A vision transformer that is small enough for a test; its name is a larger one's."""
    torch.manual_seed(1)
    network = VisionTransformer(32, 8, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=6)
    nn.init.normal_(network.heads[-1].weight)  # zero when it is fresh
    return _deploy(network, Architecture(name="vit_b_16", num_classes=6), 32, normalises=False)


def _deploy(network: nn.Module, architecture: Architecture, size: int, *, normalises: bool) -> Deployment:
    channels = architecture.channels
    preprocessing = Preprocessing(
        size=size, mean=(0.4, 0.5, 0.6)[:channels], std=(0.2, 0.25, 0.3)[:channels]
    )
    _settle(network, preprocessing.normalise(pixels_of(64, preprocessing, seed=9)))
    card = ModelCard(architecture=architecture, preprocessing=preprocessing, classes=CLASSES)
    return Deployment(network=network.eval(), card=card, normalises=normalises)


def _settle(network: nn.Module, images: Tensor) -> None:
    """Give batch norms the statistics of some images, as training would."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network.train()(images)


def pixels_of(count: int, preprocessing: Preprocessing, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = count, preprocessing.size, preprocessing.size, preprocessing.channels
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def run_onnx(content: bytes, inputs: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": inputs.numpy()})[0])


def run_pt2(content: bytes, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.export.load(io.BytesIO(content)).module()(inputs)


RUNTIMES: dict[str, Callable[[bytes, Tensor], Tensor]] = {"onnx": run_onnx, "pt2": run_pt2}


@reads_pt2
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", ["resnet8", "shufflenet_v2_x0_5", "transformer"])
def test_a_file_computes_the_networks_logits_in_any_batch(name, form):
    deployment, content = deployment_of(name), encoded(name, form)
    preprocessing = deployment.card.preprocessing
    for count in (1, 2, 5):
        inputs = preprocessing.normalise(pixels_of(count, preprocessing, seed=count)).contiguous()
        with torch.no_grad():
            expected = deployment.network(inputs)
        assert expected.std() > 1e-3
        found = RUNTIMES[form](content, inputs)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@reads_pt2
@pytest.mark.parametrize(("name", "form"), [("resnet8", "onnx"), ("resnet8", "pt2"), ("resnet18", "pt2")])
def test_normalisation_can_go_along(name, form):
    deployment = deployment_of(name, normalises=True)
    content = FORMATS[form].encode(deployment)
    preprocessing = deployment.card.preprocessing
    pixels = pixels_of(3, preprocessing)
    mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    with torch.no_grad():
        expected = deployment.network(((pixels / 255 - mean) / std).permute(0, 3, 1, 2))
    found = RUNTIMES[form](content, pixels)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_an_onnx_file_is_valid_and_says_what_its_user_must_know():
    onnx_file = encoded("resnet8", "onnx")
    onnx.checker.check_model(onnx.load_from_string(onnx_file), full_check=True)
    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    (images,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(float)", ["batch", 1, 28, 28])
    assert (logits.name, logits.shape) == ("logits", ["batch", 6])
    _check_description(session.get_modelmeta().custom_metadata_map)


@reads_pt2
def test_a_pt2_file_says_what_its_user_must_know():
    names = ("input", "preprocessing", "classes", "architecture")
    extra = {f"{name}.json": "" for name in names}
    torch.export.load(io.BytesIO(encoded("resnet8", "pt2")), extra_files=extra)
    _check_description({name: extra[f"{name}.json"] for name in names})


def _check_description(texts: dict[str, str]) -> None:
    found = {name: json.loads(text) for name, text in texts.items()}
    assert found["input"] == {
        "dtype": "float32",
        "layout": "NCHW",
        "colour": "grey",
        "normalised": True,
    }
    preprocessing = found["preprocessing"]
    assert (
        preprocessing["size"],
        preprocessing["mean"],
        preprocessing["std"],
        preprocessing["crop_fraction"],
    ) == (28, [0.4], [0.2], 1.0)
    assert (preprocessing["interpolation"], preprocessing["antialias"]) == ("bilinear", True)
    assert found["classes"] == list(CLASSES)
    assert found["architecture"]["name"] == "resnet8"


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_has_the_same_bytes_again_and_names_no_place(form):
    content = encoded("resnet8", form)
    assert FORMATS[form].encode(deployment_of("resnet8")) == content
    for place in (Path(__file__).parents[3], Path(torch.__file__).parent, Path.home()):
        assert str(place).encode() not in content
    assert not re.search(rb'File \\?"', content)


def test_without_the_extra_the_error_names_it(monkeypatch):
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(ConfigError, match=r"onnxscript not installed.*pip install -e '.*\[export\]', or"):
        FORMATS["onnx"].encode(deployment_of("resnet8"))


def test_an_onnxscript_that_is_older_than_torch_is_told(monkeypatch):
    def convert(traced, deployment):
        raise ModuleNotFoundError("No module named 'onnxscript._framework_apis.torch_2_99'")

    monkeypatch.setattr(formats, "_convert", convert)
    with pytest.raises(ConfigError, match=r"torch_2_99.*pip install --upgrade onnxscript"):
        FORMATS["onnx"].encode(deployment_of("resnet8"))


def test_weights_that_no_onnx_file_can_hold_are_refused(monkeypatch):
    monkeypatch.setattr(formats, "_ONNX_MOST_BYTES", 100_000)
    with pytest.raises(ModelError, match=r"2 GiB.*--format pt2"):
        FORMATS["onnx"].encode(deployment_of("resnet8"))


class _Moody(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.sum((2, 3)) if images.sum() > 0 else images.mean((2, 3))


def test_a_network_that_decides_by_values_is_refused():
    deployment = _deploy(_Moody(), Architecture(name="moody", num_classes=3), 8, normalises=False)
    with pytest.raises(ModelError, match="moody cannot be traced") as error:
        deployment.trace()
    assert "\n" not in str(error.value)


class _Exotic(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.special.bessel_j0(images).mean((2, 3))


def test_an_operation_that_onnx_does_not_have_is_named():
    deployment = _deploy(_Exotic(), Architecture(name="exotic", num_classes=3), 8, normalises=False)
    with pytest.raises(
        ModelError, match=r"exotic cannot be written as ONNX \(.*bessel_j0.*--format pt2"
    ) as error:
        FORMATS["onnx"].encode(deployment)
    assert "\n" not in str(error.value)


# Parity


@pytest.fixture
def feed(tiny_data) -> Feed:
    preprocessing = deployment_of("resnet8").card.preprocessing
    return Feed(tiny_data.test, None, preprocessing, device=torch.device("cpu"))


def test_parity_of_the_network_with_itself_is_exact(feed):
    deployment = deployment_of("resnet8")

    @torch.inference_mode()
    def run(images: Tensor) -> Tensor:
        return deployment.network(images)

    parity = measure_parity(deployment, run, feed, TASK)
    assert (parity.images, parity.batch_sizes) == (30, (1, 3, 26))
    assert (parity.max_abs_diff, parity.relative, parity.agreement) == (0, 0, 1)
    parity.require(0)


def test_parity_finds_one_wrong_logit_of_one_image(feed):
    deployment = deployment_of("resnet8")
    seen = []

    @torch.inference_mode()
    def run(images: Tensor) -> Tensor:
        logits = deployment.network(images)
        if len(images) == 3:
            logits[1, logits[1].argmin()] += 100
        seen.append(len(images))
        return logits

    parity = measure_parity(deployment, run, feed, TASK)
    assert seen == [1, 3, 26]
    assert parity.max_abs_diff == pytest.approx(100, rel=1e-5)
    assert parity.agreement == pytest.approx(29 / 30)
    with pytest.raises(ModelError, match=r"computes different logits.*at most 0\.01"):
        parity.require(0.01)


def parity_of(max_abs_diff: float, largest_logit: float) -> Parity:
    return Parity(
        images=1,
        batch_sizes=(1,),
        max_abs_diff=max_abs_diff,
        largest_logit=largest_logit,
        agreement=1.0,
        accuracy="top-1",
    )


def test_differences_count_as_shares_of_the_largest_logit():
    parity_of(0.01, 1000.0).require(1e-5)
    for difference, largest in ((0.01, 10.0), (1e-9, 0.0), (np.nan, 1.0), (np.nan, np.nan)):
        with pytest.raises(ModelError):
            parity_of(difference, largest).require(1e-4)
    parity_of(0.0, 0.0).require(0)


@pytest.mark.parametrize(("name", "channels"), [("resnet18", 1), ("resnet8", 3)])
@pytest.mark.parametrize("normalises", [True, False])
def test_images_of_other_channels_are_fed_as_the_network_sees_them(name, channels, normalises):
    deployment = deployment_of(name, normalises=normalises)
    preprocessing = deployment.card.preprocessing
    pixels = torch.arange(preprocessing.size**2 * channels * 2).to(torch.uint8)
    pixels = pixels.reshape(2, preprocessing.size, preprocessing.size, channels)
    inputs = deployment.inputs(pixels)
    assert inputs.is_contiguous()
    if normalises:
        assert inputs.shape == (2, preprocessing.size, preprocessing.size, preprocessing.channels)
        inputs = preprocessing.normalise(inputs)
    assert torch.equal(inputs, preprocessing.normalise(pixels))
