"""Whether a network takes the images that it will be given, tried on two of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.core.errors import ModelError
from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.models.architecture import source_of


def count_logits(network: nn.Module, name: str, eyes: Preprocessing) -> int:
    """Return how many logits a network, on the CPU, gives for an image.

    Args:
        network: its mode is restored afterwards.
        name: of the model.
        eyes: the images that it will be given.

    Raises:
        ModelError: it cannot take them, or what it gives are no logits (B, C).
    """
    outputs = try_out(network, name, torch.zeros(2, eyes.channels, eyes.size, eyes.size))
    if outputs.ndim != 2 or len(outputs) != 2:
        raise ModelError(
            f"model {name} gives {tuple(outputs.shape)} for two images; expected logits (2, C); choose "
            "another model"
        )
    return outputs.shape[1]


@torch.inference_mode()
def try_out(network: nn.Module, name: str, images: Tensor) -> Tensor:
    """Return what a network gives in evaluation for images (B, channels, S, S).

    Raises:
        ModelError: it cannot take them, or gives no tensor.
    """
    was_training = network.training
    network.eval()
    try:
        outputs = network(images)
    except Exception as error:  # whatever a network raises on images it cannot take
        _, channels, size, _ = images.shape
        smallest = source_of(name).smallest_size(name)
        need = f"at least {smallest} pixels" if smallest and size < smallest else "a size that it takes"
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(
            f"model {name} cannot take images of {size}x{size} pixels and {channels} channels ({reason}); "
            f"expected {need}; set data.image_size, or size under the model's preprocessing"
        ) from error
    finally:
        network.train(was_training)
    if not isinstance(outputs, Tensor):
        raise ModelError(
            f"model {name} gives a {type(outputs).__name__} in evaluation; expected logits (B, C), a tensor"
        )
    return outputs
