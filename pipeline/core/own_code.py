"""Find, import and call user code, `package.module:NAME`; the working folder is importable.

Each extensible table (models, losses, sources, …) describes its objects and its error by a `Kind`. Finding
code imports it and so runs it: `core/trust.py` decides which names may get here. Callables of the standard
library are refused, since none of them makes such an object.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from pipeline.core.errors import ConfigError, PipelineError, did_you_mean, is_out_of_memory
from pipeline.core.prints import prints_to_stderr


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """The kind of object that a table expects from user code.

    Args:
        noun: of one object, also its key in params.yaml, e.g. "model".
        returns: the result of its callable, e.g. "a network".
        plural: of the results, e.g. "networks".
        error: class of the errors that are raised.
    """

    noun: str
    returns: str
    plural: str
    error: type[PipelineError] = ConfigError


def is_own(name: str) -> bool:
    """Whether a name has the form `package.module:NAME`; a table checks its own prefixes first.

    >>> is_own("mine.nets:network"), is_own("folder:photos/2024"), is_own("resnet18")
    (True, False, False)
    """
    module, _, attribute = name.partition(":")
    return attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))


def has_module(name: str) -> bool:
    """Whether the working folder or an installed package has the module of `package.module:NAME`.

    >>> has_module("pipeline.cli:main"), has_module("foldr:photos")
    (True, False)
    """
    outermost = name.partition(":")[0].partition(".")[0]
    if outermost in sys.stdlib_module_names:
        return PathFinder.find_spec(outermost, [str(Path.cwd())]) is not None
    return any(PathFinder.find_spec(outermost, path) for path in ([str(Path.cwd())], None))


def find_callable(name: str, kind: Kind) -> Callable[..., object]:
    """Import a user's module and return one of its callables.

    Args:
        name: `package.module:NAME`.
        kind: of the callable's result.

    Raises:
        PipelineError: the kind's; the module or name is missing, belongs to the standard library or is not
            callable, or the module's code raises.
    """
    found = _find(name, kind, f"a callable that returns {kind.returns}")
    if not callable(found):
        raise kind.error(
            f"{kind.noun} {name} is not callable ({type(found).__name__}); expected a callable that "
            f"returns {kind.returns}"
        )
    return found  # type: ignore[no-any-return]


def find_object(name: str, kind: Kind) -> Any:
    """Import a user's module and return one of its objects, callable or not.

    Args:
        name: `package.module:NAME`.
        kind: of the object; `returns` describes it.

    Raises:
        PipelineError: the kind's; the module or name is missing or belongs to the standard library, or the
            module's code raises.
    """
    return _find(name, kind, kind.returns)


def parameters_of(function: Callable[..., object]) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a callable by name; none if unknown, e.g. for some written in C."""
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}


@contextmanager
def running(name: str, kind: Kind) -> Iterator[None]:
    """Run user code in a `with` block; its prints go to stderr, since stdout is for programs.

    Args:
        name: `package.module:NAME`, for errors.
        kind: of its result.

    Raises:
        PipelineError: the kind's; the code raises. Out-of-memory errors pass unchanged.
    """
    try:
        with prints_to_stderr():
            yield
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise failed(name, kind, error) from error


def call(name: str, kind: Kind, function: Callable[..., object], arguments: Mapping[str, Any]) -> object:
    """Call user code with keyword arguments and return its result; see `running`."""
    with running(name, kind):
        return function(**arguments)


def failed(name: str, kind: Kind, error: Exception) -> PipelineError:
    """Return a one-line error for an exception of user code; raise it `from` that exception."""
    reason = " ".join(str(error).split())
    return kind.error(
        f"{kind.noun} {name}: the code raises {type(error).__name__}: {reason}; fix it (--debug shows the "
        "traceback)"
    )


def _find(name: str, kind: Kind, expected: str) -> Any:
    module_name, _, attribute = name.partition(":")
    _require_foreign(name, kind, module_name)
    module = _import(name, kind, module_name)
    try:
        found = getattr(module, attribute)
    except AttributeError:
        hint = did_you_mean(attribute, [known for known in dir(module) if not known.startswith("_")])
        raise kind.error(
            f"{kind.noun} {name}: {module_name} has no {attribute!r}; expected {expected}{hint}"
        ) from None
    if inspect.isroutine(found) or inspect.isclass(found):
        # A module exposes its imports too, e.g. `from subprocess import run`.
        _require_foreign(name, kind, getattr(found, "__module__", None) or "")
    return found


def _require_foreign(name: str, kind: Kind, module_name: str) -> None:
    """Refuse a module of the standard library, unless the working folder has one of the same name."""
    outermost = module_name.partition(".")[0]
    if outermost in sys.stdlib_module_names and PathFinder.find_spec(outermost, [str(Path.cwd())]) is None:
        raise kind.error(
            f"{kind.noun} {name}: {outermost} is part of the standard library, which has no "
            f"{kind.plural}; expected your own code or an installed package; correct {kind.noun!r}"
        )


def _import(name: str, kind: Kind, module_name: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        # First, as with `python -m`: a console script has only its own folder on sys.path.
        sys.path.insert(0, here)
    try:
        with prints_to_stderr():
            return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise failed(name, kind, error) from error
        raise kind.error(
            f"{kind.noun} {name}: no module {error.name!r} in {here} or in the installed packages; "
            "expected package.module:callable; run in the project folder, or install the package"
        ) from None
    except Exception as error:
        raise failed(name, kind, error) from error
