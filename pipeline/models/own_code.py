"""Models from the user's own code, named `package.module:callable`.

The callable receives `options` as keyword arguments, plus `num_classes` and `vocabulary` if it accepts
these arguments. It returns an `nn.Module` that maps images (B, channels, S, S), or token ids (B, L) below
`vocabulary`, to logits (B, C). Naming the callable runs it.
Names come from params.yaml, or from a card that passed `core/trust.py`. `core/own_code.py` finds and calls
the code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from pipeline.core.errors import ModelError
from pipeline.core.own_code import Kind, call, find_callable, parameters_of
from pipeline.modalities.families import OWN_WEIGHTS, Family, Pretrained, require_own_stem, unknown_weights

MODEL = Kind(noun="model", returns="a network", plural="networks", error=ModelError)


class OwnCode(Family):
    """Family of all importable callables."""

    own_options = True

    described = "your own module:callable"

    def knows(self, name: str) -> bool:
        """Whether a name has the form `module:callable`."""
        return ":" in name

    def build(
        self, name: str, *, num_classes: int, channels: int, stem_stride: int, options: Mapping[str, Any]
    ) -> nn.Module:
        """Build a network with the user's code; `num_classes` in the options overrides the data's.

        Raises:
            ModelError: the callable cannot be imported, raises, or returns no module.
        """
        require_own_stem(name, stem_stride)
        function = find_callable(name, MODEL)
        known = {"num_classes": num_classes, "vocabulary": channels}
        given = {name: value for name, value in known.items() if name in parameters_of(function)}
        return _network(name, function, {**given, **options})

    def pretrained(self, name: str, weights: str, options: Mapping[str, Any]) -> Pretrained:
        """Build a network with the user's code, which loads the weights and receives the options only.

        Args:
            name: name of the callable.
            weights: must be `pretrained`.
            options: keyword arguments.

        Raises:
            ModelError: the callable cannot be imported, raises, or returns no module.
        """
        if weights != OWN_WEIGHTS:
            raise unknown_weights(name, weights, [OWN_WEIGHTS])
        function = find_callable(name, MODEL)
        own = parameters_of(function).get("num_classes")
        if own is not None and own.default is not own.empty:
            # Made explicit, so that the same call rebuilds a fine-tuned copy with a different last layer.
            options = {"num_classes": own.default, **options}
        network = _network(name, function, options).eval()
        return Pretrained(network=network, name=name, options=options, preprocessing=None, classes=None)


def _network(name: str, function: Callable[..., object], arguments: Mapping[str, Any]) -> nn.Module:
    network = call(name, MODEL, function, arguments)
    if not isinstance(network, nn.Module):
        raise ModelError(f"model {name} returns a {type(network).__name__}; expected a torch.nn.Module")
    return network
