"""Models of the user's own code, as `package.module:callable`.

The callable is given `options` as keyword arguments, and `num_classes` if it takes it, and returns an
`nn.Module` that maps images (B, channels, S, S) to logits (B, C). Naming it runs it: only names of
params.yaml, and those of checkpoints that `core/trust.py` lets through, come here. Finding and calling code
is left to `core/own_code.py`.
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
    """Whatever can be imported."""

    own_options = True

    described = "module:callable of your own"

    def knows(self, name: str) -> bool:
        """Whether a name is of the form `module:callable`."""
        return ":" in name

    def build(
        self, name: str, *, num_classes: int, channels: int, stem_stride: int, options: Mapping[str, Any]
    ) -> nn.Module:
        """Call the user's code for a network; `num_classes` among the options stands over the data's.

        Raises:
            ModelError: it cannot be imported, raises, or returns no module.
        """
        require_own_stem(name, stem_stride)
        function = find_callable(name, MODEL)
        given = {"num_classes": num_classes} if "num_classes" in parameters_of(function) else {}
        return _network(name, function, {**given, **options})

    def pretrained(self, name: str, weights: str, options: Mapping[str, Any]) -> Pretrained:
        """Call the user's code for a network that brings its weights; it is given the options alone.

        Args:
            name: of the callable.
            weights: `pretrained`.
            options: keyword arguments.

        Raises:
            ModelError: it cannot be imported, raises, or returns no module.
        """
        if weights != OWN_WEIGHTS:
            raise unknown_weights(name, weights, [OWN_WEIGHTS])
        function = find_callable(name, MODEL)
        own = parameters_of(function).get("num_classes")
        if own is not None and own.default is not own.empty:
            # Said, so that a fine-tuned copy with another last layer is built by the same call.
            options = {"num_classes": own.default, **options}
        network = _network(name, function, options).eval()
        return Pretrained(network=network, name=name, options=options, preprocessing=None, classes=None)


def _network(name: str, function: Callable[..., object], arguments: Mapping[str, Any]) -> nn.Module:
    network = call(name, MODEL, function, arguments)
    if not isinstance(network, nn.Module):
        raise ModelError(f"model {name} returns a {type(network).__name__}; expected a torch.nn.Module")
    return network
