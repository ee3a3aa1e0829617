"""First layers fitted to the data: the number of channels, and how far they shrink the image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from pipeline.core.errors import ModelError
from pipeline.models.source import IMAGENET_STEM_STRIDE


def fit_channels(network: nn.Module, channels: int) -> None:
    """Replace the first convolution, of three channels, by one for another number of them."""
    if channels == 3:
        return
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


def suited_stride(name: str, image_size: int) -> int:
    """Return the stem stride that suits images of this side: 1 up to 48 pixels, 2 up to 96, else 4.

    Architectures without a stem for small images keep their own, 4.
    """
    if _family(name) is None:
        return IMAGENET_STEM_STRIDE
    return 1 if image_size <= 48 else 2 if image_size <= 96 else IMAGENET_STEM_STRIDE


def fit_stem(network: nn.Module, name: str, stride: int) -> None:
    """Let the stem of a torchvision network shrink images by another factor.

    Raises:
        ModelError: it has no stem for small images.
    """
    family = _family(name)
    if family is None:
        require_own_stem(name, stride)
    elif stride != IMAGENET_STEM_STRIDE:
        _STEMS[family](network, stride)


def require_own_stem(name: str, stride: int) -> None:
    """Refuse another stem for a model whose first layers cannot be fitted to small images."""
    if stride != IMAGENET_STEM_STRIDE:
        raise ModelError(
            f"model {name} has stem_stride {stride}; expected 4: only "
            f"{', '.join(_STEMS)} have a stem for small images; enlarge data.image_size or choose one "
            "of these"
        )


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
