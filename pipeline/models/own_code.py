"""Models of the user's own code, as `package.module:callable`; the working folder is importable.

The callable is given `options` as keyword arguments, and `num_classes` if it takes it, and returns an
`nn.Module` that maps images (B, channels, S, S) to logits (B, C). Naming it runs it: only names of
params.yaml, and those of checkpoints that `core/trust.py` lets through, come here. The standard library
makes no networks: its callables are never called.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.core.errors import ModelError, did_you_mean
from pipeline.modalities.families import OWN_WEIGHTS, Pretrained, Source, require_own_stem, unknown_weights


class OwnCode(Source):
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
        function = _find(name)
        given = {"num_classes": num_classes} if "num_classes" in _parameters(function) else {}
        return _call(name, function, {**given, **options})

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
        function = _find(name)
        own = _parameters(function).get("num_classes")
        if own is not None and own.default is not own.empty:
            # Said, so that a fine-tuned copy with another last layer is built by the same call.
            options = {"num_classes": own.default, **options}
        network = _call(name, function, options).eval()
        return Pretrained(network=network, name=name, options=options, preprocessing=None, classes=None)


def _find(name: str) -> Callable[..., object]:
    module_name, _, attribute = name.partition(":")
    _require_foreign(name, module_name)
    module = _import(name, module_name)
    try:
        function = getattr(module, attribute)
    except AttributeError:
        hint = did_you_mean(attribute, [known for known in dir(module) if not known.startswith("_")])
        raise ModelError(
            f"model {name}: {module_name} has no {attribute!r}; expected a callable that returns a "
            f"network{hint}"
        ) from None
    if not callable(function):
        raise ModelError(
            f"model {name} is no callable ({type(function).__name__}); expected one that returns a network"
        )
    if inspect.isroutine(function) or inspect.isclass(function):
        # A module may have names that it imported itself, e.g. `from subprocess import run`.
        _require_foreign(name, getattr(function, "__module__", None) or "")
    return function  # type: ignore[no-any-return]


def _require_foreign(name: str, module_name: str) -> None:
    """Refuse a module of the standard library, unless the working folder has one of that name."""
    outermost = module_name.partition(".")[0]
    if outermost in sys.stdlib_module_names and PathFinder.find_spec(outermost, [str(Path.cwd())]) is None:
        raise ModelError(
            f"model {name}: {outermost} is the standard library's, which makes no networks; expected code "
            "of your own or of an installed package; correct 'model'"
        )


def _import(name: str, module_name: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        # First, as `python -m` has it: the console script knows its own folder only.
        sys.path.insert(0, here)
    try:
        with redirect_stdout(sys.stderr):
            return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _failed(name, error) from error
        raise ModelError(
            f"model {name}: no module {error.name!r} in {here} or among the installed packages; expected "
            "package.module:callable; run in the project's folder, or install the package"
        ) from None
    except Exception as error:
        raise _failed(name, error) from error


def _parameters(function: Callable[..., object]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # of some functions in C
        return {}


def _call(name: str, function: Callable[..., object], arguments: Mapping[str, Any]) -> nn.Module:
    try:
        # What a command prints on stdout is for programs.
        with redirect_stdout(sys.stderr):
            network = function(**arguments)
    except Exception as error:
        raise _failed(name, error) from error
    if not isinstance(network, nn.Module):
        raise ModelError(f"model {name} returns a {type(network).__name__}; expected a torch.nn.Module")
    return network


def _failed(name: str, error: Exception) -> ModelError:
    reason = " ".join(str(error).split())
    return ModelError(
        f"model {name}: the code raises {type(error).__name__}: {reason}; mend it (--debug shows where)"
    )
