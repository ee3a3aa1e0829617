"""Audio classifiers of the library transformers, by local folder: `hf:FOLDER` or `hf:Class:FOLDER`.

FOLDER holds config.json, and model.safetensors for pretrained weights. The configuration goes into the
card, so that a checkpoint stands alone. Only safetensors are read, and no code of a folder runs.
transformers is an extra, imported with the first such model.
"""

from __future__ import annotations

import importlib
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.core.errors import ModelError, brief, is_out_of_memory
from pipeline.core.package import extra_command
from pipeline.modalities.audio.preprocessing import AudioPreprocessing, Features, GivenAudio
from pipeline.modalities.families import (
    OWN_WEIGHTS,
    Family,
    Pretrained,
    require_config,
    require_no_weights,
    require_own_stem,
    unknown_weights,
)

_NAME = re.compile(r"hf:(?:(?P<kind>[A-Z]\w*):)?(?P<folder>[\w./@+-]+)")
_AUTO = "AutoModelForAudioClassification"
# model_type of a config.json -> its input.
_TYPES: Mapping[str, Features] = {
    **dict.fromkeys(("wav2vec2", "wav2vec2-conformer", "hubert", "wavlm", "data2vec-audio"), "waveform"),
    **dict.fromkeys(("unispeech", "unispeech-sat", "sew", "sew-d"), "waveform"),
    "audio-spectrogram-transformer": "log_mel",
}
_RATE = 16_000
_LABELS = ("id2label", "label2id", "num_labels")


class AudioClassifier(nn.Module):
    """A classifier of transformers as a map from waveforms or log-mels to logits (B, C).

    Args:
        network: the classifier.
        features: waveform, or log_mel.
        standardises: give each waveform the mean 0 and the deviation 1.
    """

    def __init__(self, network: nn.Module, features: Features, *, standardises: bool) -> None:
        super().__init__()
        self.network, self._features, self._standardises = network, features, standardises

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 1, T) or (B, 1, n_mels, frames) to logits (B, C)."""
        values = x[:, 0]
        if self._features == "log_mel":
            values = values.transpose(1, 2)
        elif self._standardises:
            spread, mean = torch.var_mean(values, 1, keepdim=True, correction=0)
            values = (values - mean) / (spread + 1e-7).sqrt()
        logits: Tensor = self.network(input_values=values).logits
        return logits


@dataclass(frozen=True, slots=True)
class _Folder:
    """The parts of a folder that are needed without its weights."""

    path: Path
    kind: str
    config: Mapping[str, Any]
    extractor: Mapping[str, Any]

    @property
    def features(self) -> Features:
        return _TYPES[str(self.config["model_type"])]

    @property
    def rate(self) -> int:
        return int(self.extractor.get("sampling_rate", _RATE))

    def preprocessing(self, size: int, rendered_rate: int) -> AudioPreprocessing:
        """Return the preprocessing of clips of this length and rate."""
        usual = AudioPreprocessing.usual(size, rendered_rate, self.rate)
        if self.features == "waveform":
            return replace(usual, features="waveform", mean=0.0, std=1.0)
        return replace(usual, n_mels=int(self.config.get("num_mel_bins", 128)))


class AudioTransformers(Family):
    """Family of the audio classifiers of transformers."""

    described = "hf:FOLDER (an audio classifier of transformers)"
    own_options = True

    def knows(self, name: str) -> bool:
        """Whether a name is of a folder with the configuration of an audio model."""
        found = _NAME.fullmatch(name)
        return found is not None and _type_of(Path(found["folder"])) in _TYPES

    def build(
        self, name: str, *, num_classes: int, channels: int, stem_stride: int, options: Mapping[str, Any]
    ) -> nn.Module:
        """Build a network with fresh weights from the configuration in `options`, or in the folder.

        Raises:
            ModelError: the configuration is not usable, or transformers is missing.
        """
        require_own_stem(name, stem_stride)
        require_no_weights(name, options)
        given = dict(options)
        config = given.pop("config", None) or _open(name).config
        standardises = bool(given.pop("standardises", False))
        changed = {key: value for key, value in {**config, **given}.items() if key not in _LABELS}
        model_type = str(changed.pop("model_type"))
        library = _library(name)
        try:
            made = library.AutoConfig.for_model(model_type, **changed, num_labels=num_classes)
            kind = getattr(library, _kind_of(name))
            network = kind.from_config(made) if hasattr(kind, "from_config") else kind(made)
        except Exception as error:  # transformers raises errors of any type on odd configurations
            raise _unusable(name, error) from error
        return AudioClassifier(network, _TYPES[model_type], standardises=standardises)

    def fitted(self, name: str, preprocessing: Any, given: Any) -> AudioPreprocessing:
        """Return the preprocessing of a network without weights: the folder's, with the user's settings."""
        folder = _open(name)
        settings: GivenAudio = given
        return settings.over(folder.preprocessing(preprocessing.size, preprocessing.rendered_rate))

    def fitted_options(self, name: str, preprocessing: Any) -> dict[str, Any]:
        """Return the configuration, of as many frames and bands as the spectrogram has."""
        folder = _open(name)
        if folder.features == "waveform":
            return {"config": dict(folder.config), "standardises": _standardises(folder)}
        frames = {"max_length": preprocessing.frame_count, "num_mel_bins": preprocessing.n_mels}
        return {"config": {**folder.config, **frames}}

    def require_alone(self, name: str, options: Mapping[str, Any]) -> None:
        """Refuse a card without the configuration; a folder that it names is not read."""
        require_config(name, options)

    def pretrained(self, name: str, weights: str, options: Mapping[str, Any]) -> Pretrained:
        """Return a network with the weights of its folder; a missing last layer is fresh.

        Its clips last one second, unless data.clip_seconds says otherwise.

        Raises:
            ModelError: the folder is not usable, or transformers is missing.
        """
        if weights != OWN_WEIGHTS:
            raise unknown_weights(name, weights, [OWN_WEIGHTS])
        folder, library = _open(name), _library(name)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                network = getattr(library, folder.kind).from_pretrained(
                    str(folder.path),
                    local_files_only=True,
                    use_safetensors=True,
                    trust_remote_code=False,
                    dtype=torch.float32,
                    **options,
                )
        except Exception as error:  # errors of any type on damaged folders
            raise _unusable(name, error) from error
        config = json.loads(network.config.to_json_string(use_diff=False))
        standardises, names = _standardises(folder), network.config.id2label
        return Pretrained(
            network=AudioClassifier(network, folder.features, standardises=standardises).eval(),
            name=name,
            options={"config": config, **({"standardises": True} if standardises else {})},
            preprocessing=_seconds(folder),
            classes=tuple(str(names[place]) for place in range(len(names))),
        )


def _seconds(folder: _Folder) -> AudioPreprocessing | None:
    """Return the preprocessing of one second, or of a spectrogram's fixed number of frames."""
    if folder.features == "waveform":
        return folder.preprocessing(folder.rate, folder.rate)
    usual = folder.preprocessing(folder.rate, folder.rate)
    size = (int(folder.config.get("max_length", 1024)) - 1) * usual.hop_length
    # The spectrograms of the original are Kaldi's, whose values are near: about this mean and deviation.
    return replace(usual.with_size(size), mean=-4.27, std=9.14)


def _standardises(folder: _Folder) -> bool:
    return bool(folder.extractor.get("do_normalize", False)) and folder.features == "waveform"


def _kind_of(name: str) -> str:
    found = _NAME.fullmatch(name)
    return _AUTO if found is None or found["kind"] is None else found["kind"]


def _open(name: str) -> _Folder:
    """Read the configurations in a model's folder.

    Raises:
        ModelError: the name or the folder is not usable.
    """
    found = _NAME.fullmatch(name)
    folder = Path("" if found is None else found["folder"])
    config = _json(folder / "config.json")
    if config.get("model_type") not in _TYPES:
        raise ModelError(
            f"model {name}: {folder / 'config.json'} is of no audio model; expected a folder of "
            f"transformers (save_pretrained) of {', '.join(_TYPES)}; correct the path"
        )
    return _Folder(folder, _kind_of(name), config, _json(folder / "preprocessor_config.json"))


def _type_of(folder: Path) -> object:
    return _json(folder / "config.json").get("model_type")


def _json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file; nothing if it is missing or damaged."""
    try:
        content = json.loads(path.read_text()) if path.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _library(name: str) -> Any:
    try:
        return importlib.import_module("transformers")
    except ModuleNotFoundError:
        raise ModelError(
            f"model {name} needs transformers, which is not installed; expected the extra transformers; "
            f"run: {extra_command('transformers')}"
        ) from None


def _unusable(name: str, error: Exception) -> Exception:
    if is_out_of_memory(error):
        return error
    return ModelError(
        f"model {name} cannot be built ({brief(error) or type(error).__name__}); expected a folder that "
        "transformers opens; correct it or its options"
    )
