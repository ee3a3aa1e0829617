"""A name becomes a network: the literature's small nets and every torchvision classifier.

Owns what a model is called and how its first layers are fitted to the data: number of channels, and
how far the stem shrinks the image before the first stage. Weights and preprocessing are elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torchvision
from torch import nn

from pipeline.errors import ModelError, did_you_mean
from pipeline.models.wide_resnet import wrn_16_2, wrn_40_2

SMALL_NETS: Mapping[str, Callable[..., nn.Module]] = {
    "wrn_16_2": wrn_16_2,
    "wrn_40_2": wrn_40_2,
}
IMAGENET_STEM_STRIDE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Everything needed to build an untrained network.

    Args:
        name: of `SMALL_NETS` or of a torchvision classifier.
        num_classes: C, the number of logits.
        channels: of the input images.
        stem_stride: 4 as torchvision has it, 2 or 1 for small images: how far the stem shrinks them.
        options: keyword arguments for the network's builder, such as width_mult.

    """

    name: str
    num_classes: int
    channels: int = 3
    stem_stride: int = IMAGENET_STEM_STRIDE
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return {**asdict(self), "options": dict(self.options)}


def default_stem_stride(name: str, image_size: int) -> int:
    """Return the stem stride that suits images of this side: 1 up to 48 pixels, 2 up to 96, else 4.

    Architectures without a stem for small images keep their own, 4.
    """
    if name in SMALL_NETS:
        return 1
    if _family(name) is None:
        return IMAGENET_STEM_STRIDE
    return 1 if image_size <= 48 else 2 if image_size <= 96 else IMAGENET_STEM_STRIDE


def build(architecture: Architecture) -> nn.Module:
    """Build a network with fresh weights.

    Raises:
        ModelError: unknown name, an option the builder does not take, or a stem that cannot be fitted.

    """
    name = architecture.name
    if name in SMALL_NETS:
        if architecture.stem_stride != 1:
            raise ModelError(
                f"model {name} has stem_stride {architecture.stem_stride}; expected 1: it has no other"
            )
        network = _call(SMALL_NETS[name], architecture)
    elif name in torchvision.models.list_models(torchvision.models):
        network = _call(torchvision.models.get_model_builder(name), architecture)
        _fit_stem(network, architecture)
    else:
        known = [*SMALL_NETS, *torchvision.models.list_models(torchvision.models)]
        raise ModelError(
            f"model {name!r} is unknown; expected {', '.join(SMALL_NETS)} or a torchvision "
            f"classifier{did_you_mean(name, known)}"
        )
    if architecture.channels != 3:
        _fit_channels(network, architecture.channels)
    return network


def replace_head(network: nn.Module, num_classes: int) -> None:
    """Put a fresh last linear layer, for another number of classes, into a network."""
    layers = [(name, m) for name, m in network.named_modules() if isinstance(m, nn.Linear)]
    if not layers:
        raise ModelError(
            f"{type(network).__name__} has no linear layer; expected one as its last; choose another model"
        )
    name, last = layers[-1]
    network.set_submodule(name, nn.Linear(last.in_features, num_classes, last.bias is not None))


def _call(builder: Callable[..., nn.Module], architecture: Architecture) -> nn.Module:
    try:
        return builder(num_classes=architecture.num_classes, **architecture.options)
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"model {architecture.name} with options {dict(architecture.options)}: {error}; expected "
            "what its builder takes; correct the options"
        ) from None


def _fit_channels(network: nn.Module, channels: int) -> None:
    """Replace the first convolution by one for another number of input channels."""
    name, first = next(
        (name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d)
    )
    fitted = nn.Conv2d(
        channels,
        first.out_channels,
        kernel_size=first.kernel_size,  # type: ignore[arg-type]
        stride=first.stride,  # type: ignore[arg-type]
        padding=first.padding,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )
    nn.init.kaiming_normal_(fitted.weight, mode="fan_out", nonlinearity="relu")
    network.set_submodule(name, fitted)


def _fit_stem(network: nn.Module, architecture: Architecture) -> None:
    stride = architecture.stem_stride
    if stride == IMAGENET_STEM_STRIDE:
        return
    family = _family(architecture.name)
    if family is None:
        raise ModelError(
            f"model {architecture.name} has stem_stride {stride}; expected 4: only "
            f"{', '.join(_STEMS)} have a stem for small images; enlarge data.image_size or choose one "
            "of these"
        )
    _STEMS[family](network, stride)


def _family(name: str) -> str | None:
    return next((family for family in _STEMS if name.startswith(family)), None)


def _resnet_stem(network: Any, stride: int) -> None:
    convolution = network.conv1
    network.conv1 = nn.Conv2d(3, convolution.out_channels, 3, stride, 1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()


def _shufflenet_stem(network: Any, stride: int) -> None:
    network.conv1[0].stride = (stride, stride)
    network.maxpool = nn.Identity()


def _mobilenet_v2_stem(network: Any, stride: int) -> None:
    network.features[0][0].stride = (stride, stride)
    network.features[2].conv[1][0].stride = (1, 1)


def _mobilenet_v3_small_stem(network: Any, stride: int) -> None:
    network.features[0][0].stride = (stride, stride)
    network.features[1].block[0][0].stride = (1, 1)


def _mobilenet_v3_large_stem(network: Any, stride: int) -> None:
    network.features[0][0].stride = (stride, stride)
    network.features[2].block[1][0].stride = (1, 1)


_STEMS: Mapping[str, Callable[[Any, int], None]] = {
    "resnet": _resnet_stem,
    "resnext": _resnet_stem,
    "wide_resnet": _resnet_stem,
    "shufflenet_v2": _shufflenet_stem,
    "mobilenet_v2": _mobilenet_v2_stem,
    "mobilenet_v3_small": _mobilenet_v3_small_stem,
    "mobilenet_v3_large": _mobilenet_v3_large_stem,
}
