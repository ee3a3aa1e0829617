"""A table of objects by name, extensible by user code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar

from pipeline.core.errors import did_you_mean, quoted
from pipeline.core.own_code import Kind, find_object


class Named(Protocol):
    """An object that knows the name by which files refer to it."""

    @property
    def name(self) -> str:
        """A name of the table, or `module:NAME` of user code."""


T = TypeVar("T", bound=Named)


class OpenTable(Generic[T]):
    """Objects of one kind by name: built-in ones, and user code named in this process.

    Files name objects too: prepared data, cards, stores. A file alone runs no code. `find` returns user
    code only after the user named it (`use`) or trusted its module (`trust`).

    Args:
        kind: of the objects.
        known: name -> function that imports and returns a built-in object.
        base: class, or runtime-checkable protocol, of the objects.
        key: names an object in params.yaml, e.g. data.task.
        address: of this table in Python, e.g. pipeline.tasks.table.TASKS.
    """

    def __init__(
        self, kind: Kind, known: Mapping[str, Callable[[], T]], base: Any, *, key: str, address: str
    ) -> None:
        self._kind, self._base, self._key, self._address = kind, base, key, address
        self._known = known
        self._own: dict[str, T] = {}
        self._trusted: set[str] = set()

    def __iter__(self) -> Iterator[T]:
        """Yield user code, then the built-in objects whose libraries are installed."""
        yield from self._own.values()
        for load in self._known.values():
            with suppress(ModuleNotFoundError):
                yield load()

    def use(self, name: str) -> T:
        """Return an object named by the user; import user code, which files may then name too.

        Raises:
            PipelineError: the kind's; the name is unknown, or its code does not fit.
        """
        if ":" in name and name not in self._own:
            self._own[name] = self._import(name)
        return self.find(name)

    def trust(self, code: Iterable[str]) -> None:
        """Let files name user code: `module` for all its objects, or `module:NAME`."""
        self._trusted.update(code)

    def forget(self) -> None:
        """Forget all user code that was named or trusted."""
        self._own.clear()
        self._trusted.clear()

    def find(self, name: str) -> T:
        """Return an object named by a file.

        Raises:
            PipelineError: the kind's; the name is unknown, the user did not name this code, or a library
                that a built-in object needs is not installed.
        """
        noun = self._kind.noun
        if name in self._known:
            return self._built_in(name)
        if name in self._own:
            return self._own[name]
        if ":" not in name:
            raise self._kind.error(
                f"{noun} {quoted(name)} is unknown; expected {', '.join(self._known)}, or module:NAME of "
                f"your own{did_you_mean(name, self._known)}"
            )
        if self._trusted.isdisjoint({name, name.partition(":")[0]}):
            shown = quoted(name)
            raise self._kind.error(
                f"{noun} {shown} is user code, which a file alone does not run; if this code is "
                f"yours: name it as {self._key} in params.yaml, or in Python call {self._address}.use"
                f"({shown}), or add --trust-code {shown[1:-1]}"
            )
        return self.use(name)

    def _built_in(self, name: str) -> T:
        try:
            return self._known[name]()
        except ModuleNotFoundError as error:
            raise self._kind.error(
                f"{self._kind.noun} {name} needs {error.name}, which is not installed; run: pip install "
                f"{error.name}"
            ) from None

    def _import(self, name: str) -> T:
        found, noun, base = find_object(name, self._kind), self._kind.noun, self._base
        if not isinstance(found, base):
            problem = f"is a {type(found).__name__}; expected a {base.__module__}.{base.__qualname__}"
        elif found.name != name:
            problem = f"is called {quoted(found.name)} by itself; expected its own name, which files keep"
        else:
            own: T = found
            return own
        raise self._kind.error(f"{noun} {name} {problem}; correct it")
