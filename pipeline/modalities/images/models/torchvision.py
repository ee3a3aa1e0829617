"""Every torchvision classifier by its own name, with torchvision's weights.

First layers are fitted to the data: its number of channels, and the stride of the stem.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from pipeline.core.errors import ModelError
from pipeline.modalities.families import (
    IMAGENET_STEM_STRIDE,
    OWN_WEIGHTS,
    Family,
    Installed,
    Pretrained,
    call_builder,
    require_own_stem,
    unknown_weights,
)
from pipeline.modalities.images.preprocessing import Preprocessing

# Set explicitly: by default, these two builders warn.
_INITIALISED = {"inception_v3": {"init_weights": True}, "googlenet": {"init_weights": True}}
# The training options of torchvision's weights of these two; their auxiliary heads are left out.
_AS_TRAINED = {
    "inception_v3": {"transform_input": True, "aux_logits": False},
    "googlenet": {"transform_input": True, "aux_logits": False},
}


def fit_channels(network: nn.Module, channels: int) -> None:
    """Replace the first convolution, of three channels, by one of a different number."""
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
    """Return the stem stride for images of this side: 1 up to 48 pixels, 2 up to 96, else 4.

    Architectures without a stem for small images keep their stride of 4.
    """
    if _family(name) is None:
        return IMAGENET_STEM_STRIDE
    return 1 if image_size <= 48 else 2 if image_size <= 96 else IMAGENET_STEM_STRIDE


def fit_stem(network: nn.Module, name: str, stride: int) -> None:
    """Change the stride of a torchvision network's stem.

    Raises:
        ModelError: the architecture has no stem for small images.
    """
    family = _family(name)
    if family is None:
        require_own_stem(name, stride, STEMS)
    elif stride != IMAGENET_STEM_STRIDE:
        STEMS[family](network, stride)


def _family(name: str) -> str | None:
    return next((family for family in STEMS if name.startswith(family)), None)


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


STEMS: Mapping[str, Callable[[Any, int], None]] = {
    "resnet": _resnet_stem,
    "resnext": _resnet_stem,
    "wide_resnet": _resnet_stem,
    "shufflenet_v2": _shufflenet_stem,
    "mobilenet_v2": _mobilenet_v2_stem,
    "mobilenet_v3_small": _mobilenet_v3_small_stem,
    "mobilenet_v3_large": _mobilenet_v3_large_stem,
}


class Torchvision(Family):
    """The classifiers of `torchvision.models`."""

    described = "a torchvision classifier"

    def knows(self, name: str) -> bool:
        """Whether a name is a torchvision classifier."""
        return name in self.names()

    def names(self) -> list[str]:
        """Return all names."""
        return list(torchvision.models.list_models(torchvision.models))

    def weight_names(self, name: str) -> Sequence[str]:
        """Return torchvision's weight names of a classifier, with and without their class."""
        entries = torchvision.models.get_model_weights(name)
        return [*entries.__members__, *(f"{entries.__name__}.{member}" for member in entries.__members__)]

    def installed(self) -> Sequence[Installed]:
        """Return networks with weights in torch's hub folder that take images of any side."""
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        there = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
        return [
            Installed(
                model=name,
                weights=entry.name,
                top1=entry.meta["_metrics"]["ImageNet-1K"]["acc@1"] / 100,
                forward_flops=2e9 * entry.meta["_ops"],  # the entry counts multiply-adds, in billions
            )
            for name in (self.names() if there else ())
            if self.image_size(name) is None and not self.size_options(name, 0)
            for entry in torchvision.models.get_model_weights(name)
            if entry.url.rpartition("/")[2] in there and entry.meta["categories"]
        ]

    def image_size(self, name: str) -> int | None:
        """Return 299 for Inception, and None for all others."""
        return 299 if name == "inception_v3" else None

    def smallest_size(self, name: str) -> int | None:
        """Return torchvision's minimum side in pixels; None if the size is an option of the builder."""
        if self.size_options(name, 0):
            return None
        entry = next(iter(torchvision.models.get_model_weights(name)))
        return int(entry.meta["min_size"][0])

    def stem_stride(self, name: str, image_size: int) -> int:
        """Return the stem stride for images of this side."""
        return suited_stride(name, image_size)

    def size_options(self, name: str, image_size: int) -> dict[str, Any]:
        """Return the size option of networks whose parameters depend on the images' side."""
        if name.startswith("vit_"):
            return {"image_size": image_size}
        if name.startswith("maxvit_"):
            return {"input_size": [image_size, image_size]}
        return {}

    def resize(self, network: nn.Module, image_size: int) -> None:
        """Interpolate the position embeddings of a vision transformer.

        Raises:
            ModelError: the side is not a multiple of the patch size.
        """
        if not isinstance(network, VisionTransformer):
            return
        if image_size % network.patch_size:
            raise ModelError(
                f"the transformer's patches have {network.patch_size} pixels, but images have "
                f"{image_size}; expected a multiple; set data.image_size, or size in its preprocessing, "
                "to a multiple"
            )
        state = interpolate_embeddings(image_size, network.patch_size, network.state_dict())
        embedding = nn.Parameter(state["encoder.pos_embedding"].clone())
        network.image_size, network.seq_length = image_size, embedding.shape[1]
        network.encoder.pos_embedding = embedding

    def build(
        self, name: str, *, num_classes: int, channels: int, stem_stride: int, options: Mapping[str, Any]
    ) -> nn.Module:
        """Build a network with fresh weights.

        Raises:
            ModelError: an option that the builder rejects, or a stem that cannot be fitted.
        """
        builder = torchvision.models.get_model_builder(name)
        options = {**_INITIALISED.get(name, {}), **options}
        network = call_builder(name, builder, options, num_classes=num_classes)
        fit_stem(network, name, stem_stride)
        fit_channels(network, channels)
        return network

    def pretrained(self, name: str, weights: str, options: Mapping[str, Any]) -> Pretrained:
        """Return a network with torchvision's weights, downloaded if needed.

        Args:
            name: name of the model.
            weights: a name such as IMAGENET1K_V2 or DEFAULT, with or without its class
                (ResNet50_Weights.IMAGENET1K_V2), or `pretrained` for the default.
            options: must be empty; these weights fix the architecture.

        Raises:
            ModelError: the weights do not exist or cannot be loaded.
        """
        entry = _entry(name, weights)
        try:
            network = torchvision.models.get_model(name, weights=entry, progress=False)
        except (URLError, OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ModelError(
                f"weights {weights} of {name} could not be downloaded from {entry.url}: {reason}; put the "
                "file into torch's hub folder, or set a checkpoint path"
            ) from None
        if name == "inception_v3":
            network.aux_logits, network.AuxLogits = False, None
        preprocessing = preprocessing_of(entry)
        return Pretrained(
            network=network.eval(),
            name=name,
            options={**self.size_options(name, preprocessing.size), **_AS_TRAINED.get(name, {})},
            preprocessing=preprocessing,
            classes=tuple(entry.meta["categories"]),
        )


def preprocessing_of(entry: Any) -> Preprocessing:
    """Return the preprocessing of torchvision's weights, from torchvision's evaluation transforms."""
    transforms = entry.transforms()
    size, resized = transforms.crop_size[0], transforms.resize_size[0]
    return Preprocessing(
        size=size,
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        crop_fraction=size / resized,
        interpolation=transforms.interpolation.value,
    )


def _entry(name: str, weights: str) -> Any:
    """Return torchvision's entry of named weights."""
    entries = torchvision.models.get_model_weights(name)
    family, _, member = weights.rpartition(".")
    chosen = "DEFAULT" if weights == OWN_WEIGHTS else member
    known = {key: entry for key, entry in entries.__members__.items() if entry.meta["categories"]}
    if family not in ("", entries.__name__) or chosen not in known:
        raise unknown_weights(name, weights, [key for key in known if key != "DEFAULT"])
    return known[chosen]
