"""Sequence classifiers of the library transformers, by local folder: `hf:FOLDER` or `hf:Class:FOLDER`.

FOLDER holds config.json, tokenizer.json, and model.safetensors for pretrained weights. The configuration
goes into the card, so that a checkpoint stands alone. Only safetensors are read, and no code of a folder
runs.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.core.errors import ConfigError, ModelError, is_out_of_memory
from pipeline.core.package import extra_command
from pipeline.core.trust import is_plain
from pipeline.modalities.families import (
    OWN_WEIGHTS,
    Family,
    Pretrained,
    require_config,
    require_no_weights,
    require_own_stem,
    unknown_weights,
)
from pipeline.modalities.text.preprocessing import LONGEST, SHORTEST, GivenText, TextPreprocessing
from pipeline.modalities.text.tokenizer_files import TokenizerFile, read_tokenizer

_PREFIX, _AUTO = "hf:", "AutoModelForSequenceClassification"
_NAME = re.compile(r"hf:(?:(?P<kind>[A-Z]\w*):)?(?P<folder>[\w./@+-]+)")
# Keys of a configuration that do not shape the network, or could lead to code or files.
_LEFT_OUT = (
    *("id2label", "label2id", "num_labels", "architectures", "transformers_version", "auto_map"),
    *("attn_implementation", "quantization_config", "dtype", "torch_dtype", "custom_pipelines"),
)


class SequenceClassifier(nn.Module):
    """A classifier of transformers as a map from token ids (B, L) to logits (B, C).

    Args:
        network: the classifier.
        pad: id of padding, from which the attention mask is made.
        separator: id after which token types are 1, for models that tell two texts apart; None for none.
    """

    def __init__(self, network: nn.Module, *, pad: int, separator: int | None) -> None:
        super().__init__()
        self.network, self.pad, self.separator = network, pad, separator

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits (B, C) of token ids (B, L)."""
        first = torch.arange(ids.shape[1], device=ids.device) == 0
        there = (ids != self.pad) | first
        given: dict[str, Tensor] = {"input_ids": ids, "attention_mask": there.long()}
        if self.separator is not None:
            ends = (ids == self.separator).long()
            given["token_type_ids"] = (ends.cumsum(1) - ends).clamp(max=1) * there
        logits: Tensor = self.network(**given).logits
        return logits


class Transformers(Family):
    """Family of all sequence classifiers of transformers."""

    described = "hf:FOLDER or hf:Class:FOLDER (transformers)"
    own_options = True

    def knows(self, name: str) -> bool:
        """Whether a name begins with hf:."""
        return name.startswith(_PREFIX)

    def build(
        self, name: str, *, num_classes: int, channels: int, stem_stride: int, options: Mapping[str, Any]
    ) -> nn.Module:
        """Build a network with fresh weights from the configuration in `options`, or in the folder.

        Raises:
            ModelError: the folder or its configuration is not usable.
        """
        require_own_stem(name, stem_stride)
        require_no_weights(name, options)
        given = dict(options)
        config = _portable(given.pop("config", None) or _config(name))
        separator, pad = given.pop("separator", None), given.pop("pad", config.get("pad_token_id") or 0)
        changed = {**config, **given, "num_labels": num_classes, "pad_token_id": pad}
        changed.pop("model_type", None)
        with _quiet(name) as library:
            made = library.AutoConfig.for_model(config.get("model_type"), **changed)
            kind = _class_of(library, name)
            network = kind.from_config(made) if hasattr(kind, "from_config") else kind(made)
        return SequenceClassifier(network, pad=pad, separator=separator)

    def require_alone(self, name: str, options: Mapping[str, Any]) -> None:
        """Refuse a card without the configuration; a folder that it names is not read."""
        require_config(name, options)

    def pretrained(self, name: str, weights: str, options: Mapping[str, Any]) -> Pretrained:
        """Return a network with the weights of its folder; a missing last layer is fresh.

        Raises:
            ModelError: the folder is not usable.
        """
        if weights != OWN_WEIGHTS:
            raise unknown_weights(name, weights, [OWN_WEIGHTS])
        folder, config = _folder(name), _config(name)
        with _quiet(name) as library:
            network = _class_of(library, name).from_pretrained(
                str(folder),
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                **options,
            )
        preprocessing = _preprocessing(folder, config)
        found = json.loads(network.config.to_json_string(use_diff=False))
        names = network.config.id2label
        fitted = self.fitted_options(name, preprocessing)
        return Pretrained(
            network=SequenceClassifier(network, pad=fitted["pad"], separator=fitted["separator"]).eval(),
            name=name,
            options={**fitted, "config": _portable(found)},
            preprocessing=preprocessing,
            classes=tuple(str(names[place]) for place in range(len(names))),
        )

    def fitted(self, name: str, preprocessing: TextPreprocessing, given: GivenText) -> TextPreprocessing:
        """Return the preprocessing of a network without weights: the folder's tokenizer, if no other is "
        "said.
        """
        if given.tokenizer is not None:
            return given.over(preprocessing)
        own = _preprocessing(_folder(name), _config(name))
        return given.over(own.with_size(min(own.max_length, preprocessing.max_length)))

    def fitted_options(self, name: str, preprocessing: TextPreprocessing) -> dict[str, Any]:
        """Return configuration, pad id, and the separator of a model with token types."""
        config = _config(name)
        typed = preprocessing.tokenizer.frame(2)
        has_types = int(config.get("type_vocab_size", 0)) > 1 and typed.typed
        # A vocabulary may have unused places, e.g. to be a multiple of 64.
        size = max(preprocessing.channels, int(config.get("vocab_size", 0)) if typed.before else 0)
        return {
            "config": {**_portable(config), "vocab_size": size},
            "pad": preprocessing.pad,
            "separator": typed.between[0] if has_types and typed.between else None,
        }


def _parts(name: str) -> tuple[str, Path]:
    found = _NAME.fullmatch(name)
    if found is None:
        raise ModelError(
            f"model {name!r}: expected hf:FOLDER or hf:Class:FOLDER, a folder of letters, digits and "
            f"./@+-_; rename it"
        )
    return found["kind"] or _AUTO, Path(found["folder"])


def _folder(name: str) -> Path:
    folder = _parts(name)[1]
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"model {name}: {folder} has no config.json; expected a folder of transformers "
            "(save_pretrained); correct the path"
        )
    return folder


def _config(name: str) -> dict[str, Any]:
    path = _folder(name) / "config.json"
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path}: not JSON ({error}); expected that of save_pretrained; write it again"
        ) from None
    if not isinstance(found, dict) or "model_type" not in found:
        raise ModelError(f"{path}: no model_type; expected that of save_pretrained; write it again")
    if "auto_map" in found:
        raise ModelError(
            f"{path}: names code of its own (auto_map), which is never run; expected a class of "
            "transformers; name one: hf:Class:FOLDER, and remove auto_map"
        )
    return found


def _preprocessing(folder: Path, config: Mapping[str, Any]) -> TextPreprocessing:
    try:
        tokenizer: TokenizerFile = read_tokenizer(folder)
    except ConfigError as error:
        raise ModelError(str(error)) from None
    positions = config.get("max_position_embeddings", LONGEST)
    # RoBERTa counts positions from pad + 1, so that two of its 514 are not for tokens.
    room = int(positions) - (
        2 if config.get("model_type") in ("roberta", "xlm-roberta", "camembert") else 0
    )
    return TextPreprocessing(tokenizer=tokenizer, max_length=max(SHORTEST, room))


def _portable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a configuration that shapes the network: numbers and words, no path, no "
    "address.
    """
    return {
        key: value
        for key, value in config.items()
        if not key.startswith("_") and key not in _LEFT_OUT and is_plain(value)
    }


def _class_of(library: Any, name: str) -> Any:
    kind = _parts(name)[0]
    found = getattr(library, kind, None)
    if found is None or not kind.endswith("ForSequenceClassification"):
        raise ModelError(
            f"model {name}: transformers {library.__version__} has no sequence classifier {kind}; expected "
            "e.g. BertForSequenceClassification; correct it"
        )
    return found


@contextmanager
def _quiet(name: str) -> Iterator[Any]:
    """Import transformers, silence its progress bars and notes, and reword its errors.

    Raises:
        ModelError: naming the model.
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ModelError(
            f"model {name} needs transformers, and {error.name} is not installed; run: "
            f"{extra_command('transformers')}"
        ) from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield transformers
    except ModelError:
        raise
    except Exception as error:  # the library raises many kinds
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(
            f"model {name}: {reason}; expected a sequence classifier and its safetensors"
        ) from None
