"""The family of the literature's small networks for clips, under the names of their papers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from pipeline.core.errors import ModelError
from pipeline.modalities.audio.models.spectrograms import BcResNet, DsCnn
from pipeline.modalities.audio.models.waveforms import M5, WaveNet
from pipeline.modalities.audio.preprocessing import AudioPreprocessing, Features
from pipeline.modalities.families import (
    IMAGENET_STEM_STRIDE,
    Family,
    Pretrained,
    call_builder,
    unknown_weights,
)
from pipeline.modalities.preprocessing import Preprocessing


@dataclass(frozen=True, slots=True)
class Net:
    """A network and the features that it takes."""

    build: Callable[..., nn.Module]
    features: Features


NETS: Mapping[str, Net] = {
    "wavenet": Net(WaveNet, "waveform"),
    "m5": Net(M5, "waveform"),
    "ds_cnn": Net(DsCnn, "log_mel"),
    "bc_resnet": Net(BcResNet, "log_mel"),
}


class AudioLiterature(Family):
    """The networks of the table above."""

    described = ", ".join(NETS)

    def knows(self, name: str) -> bool:
        """Whether a name is in the table."""
        return name in NETS

    def names(self) -> list[str]:
        """Return all names."""
        return list(NETS)

    def fitted(self, name: str, preprocessing: Preprocessing, given: Any) -> Preprocessing:
        """Return the user's preprocessing, with the features that the network takes.

        Raises:
            ModelError: the data are no clips, or the user asks for other features.
        """
        if not isinstance(preprocessing, AudioPreprocessing):
            raise ModelError(
                f"model {name} is for clips; expected data.modality: audio; choose another model"
            )
        features = NETS[name].features
        fitted: AudioPreprocessing = given.over(replace(preprocessing, features=features))
        if fitted.features != features:
            raise ModelError(
                f"model {name} takes features: {features}, and its preprocessing says {fitted.features}; "
                "expected the same; remove it"
            )
        return fitted

    def build(
        self, name: str, *, num_classes: int, channels: int, stem_stride: int, options: Mapping[str, Any]
    ) -> nn.Module:
        """Build a network with fresh weights.

        Raises:
            ModelError: an option that the network does not have, or a stem stride.
        """
        if stem_stride != IMAGENET_STEM_STRIDE:
            raise ModelError(f"model {name} has stem_stride {stem_stride}; expected none; remove it")
        return call_builder(name, NETS[name].build, options, num_classes=num_classes)

    def pretrained(self, name: str, weights: str, options: Mapping[str, Any]) -> Pretrained:
        """Refuse: weights of these networks are checkpoints, by path."""
        raise unknown_weights(name, weights, [])
