"""Every timm model as `timm:NAME` or `timm:NAME.TAG`, with timm's weights and their preprocessing.

timm is an optional dependency; it is imported on the first use of such a name.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from torch import nn

from pipeline.core.errors import ModelError, did_you_mean
from pipeline.core.package import extra_command
from pipeline.core.progress import note
from pipeline.modalities.families import (
    OWN_WEIGHTS,
    Family,
    Pretrained,
    call_builder,
    require_no_weights,
    require_own_stem,
    unknown_weights,
)
from pipeline.modalities.images.models.torchvision import STEMS
from pipeline.modalities.images.preprocessing import Preprocessing

_PREFIX = "timm:"
_CONFIGURATIONS = ("pretrained_cfg", "pretrained_cfg_overlay")
_PLACES = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load")


class Timm(Family):
    """The models of the package timm."""

    own_options = True

    described = "timm:NAME"

    def knows(self, name: str) -> bool:
        """Whether a name begins with `timm:`."""
        return name.startswith(_PREFIX)

    def require_name(self, name: str) -> None:
        """Refuse a name that timm does not have; on a machine without timm, every name passes.

        Raises:
            ModelError: timm has no such model, or no such weights.
        """
        if find_spec("timm") is not None:
            _known(name)

    def weight_names(self, name: str) -> Sequence[str]:
        """Return the tags of timm's weights of a model."""
        timm, model = _known(name)
        return _tags(timm, model.partition(".")[0])

    def smallest_size(self, name: str) -> int | None:
        """Return timm's minimum side in pixels, or None."""
        smallest = _settings(name).min_input_size
        return None if smallest is None else int(smallest[1])

    def size_options(self, name: str, image_size: int) -> dict[str, Any]:
        """Return the size option of networks whose parameters depend on the images' side."""
        settings = _settings(name)
        fixed = settings.fixed_input_size and settings.input_size[1] != image_size
        return {"img_size": image_size} if fixed else {}

    def resize(self, network: nn.Module, image_size: int) -> None:
        """Let a network of fixed size adapt to a different side."""
        resize: Any = getattr(network, "set_input_size", None)
        if callable(resize):
            resize(img_size=image_size)

    def build(
        self, name: str, *, num_classes: int, channels: int, stem_stride: int, options: Mapping[str, Any]
    ) -> nn.Module:
        """Build a network with fresh weights.

        Raises:
            ModelError: timm is missing or does not know the name, or its builder rejects an option.
        """
        require_own_stem(name, stem_stride, STEMS)
        timm, model = _known(name)
        given = {"model_name": model, "num_classes": num_classes, "in_chans": channels}
        return call_builder(name, timm.create_model, _without_places(options), **given)

    def pretrained(self, name: str, weights: str, options: Mapping[str, Any]) -> Pretrained:
        """Return a network with timm's weights, downloaded if needed.

        Args:
            name: name of the model.
            weights: `pretrained` for the tag in the name or timm's default, or a different tag.
            options: keyword arguments of timm's builder.

        Raises:
            ModelError: timm is missing, or the weights do not exist or cannot be loaded.
        """
        timm, model = _known(name)
        require_no_weights(name, options)
        if "num_classes" in options:
            raise ModelError(
                f"model {name} with options {dict(options)}: num_classes comes from the weights or the "
                "data; remove it"
            )
        tagged = _tagged(timm, name, model, weights)
        try:
            network = timm.create_model(tagged, pretrained=True, **options).eval()
        except Exception as error:  # the client of timm's hub raises errors of any type
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ModelError(
                f"weights {weights} of {name} could not be downloaded: {reason}; try again with access to "
                "the hub, or set a checkpoint path"
            ) from error
        return Pretrained(
            network=network,
            name=f"{_PREFIX}{tagged}",
            options=options,
            preprocessing=_preprocessing(name, network.pretrained_cfg),
            classes=_classes(network),
        )


def _without_places(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options without file names and addresses of weights, which fresh networks do not need."""
    kept = {name: value for name, value in options.items() if name != "cache_dir"}
    for name in _CONFIGURATIONS:
        if isinstance(kept.get(name), Mapping):
            kept[name] = {key: value for key, value in kept[name].items() if key not in _PLACES}
    return kept


def _timm(name: str) -> Any:
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError:
        raise ModelError(
            f"model {name} needs timm, which is not installed; run: {extra_command('timm')}"
        ) from None


def _known(name: str) -> tuple[Any, str]:
    """Return the module timm, and a model's name in it."""
    timm, model = _timm(name), name.removeprefix(_PREFIX)
    base, _, tag = model.partition(".")
    if not timm.is_model(base):
        hint = did_you_mean(name, [f"{_PREFIX}{known}" for known in timm.list_models()])
        raise ModelError(f"model {name!r} is unknown; expected a timm model (see timm.list_models()){hint}")
    if tag and tag not in _tags(timm, base):
        raise unknown_weights(f"{_PREFIX}{base}", tag, _tags(timm, base))
    return timm, model


def _tags(timm: Any, base: str) -> list[str]:
    return [tagged.partition(".")[2] for tagged in timm.list_models(f"{base}.*", pretrained=True)]


def _tagged(timm: Any, name: str, model: str, weights: str) -> str:
    """Return a model's name with the tag of its weights."""
    base, _, tag = model.partition(".")
    if weights not in (OWN_WEIGHTS, *_tags(timm, base)) or (tag and weights not in (OWN_WEIGHTS, tag)):
        raise unknown_weights(name, weights, [OWN_WEIGHTS, *([tag] if tag else _tags(timm, base))])
    return model if weights == OWN_WEIGHTS else f"{base}.{weights}"


def _settings(name: str) -> Any:
    """Return timm's settings of a model: sizes and normalisation of its weights."""
    timm, model = _known(name)
    return timm.get_pretrained_cfg(model)


def _preprocessing(name: str, settings: Mapping[str, Any]) -> Preprocessing:
    _, height, width = settings["input_size"]
    if height != width:
        raise ModelError(
            f"model {name} takes images of {height}x{width} pixels; expected a square; choose a different "
            "model"
        )
    if settings["crop_mode"] != "center":
        note(
            f"{name} was evaluated with crop mode {settings['crop_mode']}; here it gets a centred square "
            "crop"
        )
    return Preprocessing(
        size=height,
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        crop_fraction=settings["crop_pct"],
        interpolation=settings["interpolation"],
    )


def _classes(network: Any) -> tuple[str, ...] | None:
    """Return the WordNet names of ImageNet's classes if the network has these classes, else None."""
    data = importlib.import_module("timm.data")
    subset = data.infer_imagenet_subset(network)
    names = () if subset is None else tuple(data.ImageNetInfo(subset).label_names())
    return names if names and len(names) == network.num_classes else None
