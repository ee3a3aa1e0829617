"""A table of objects by name, which the user's own code may add to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic, Protocol, TypeVar

from pipeline.core.errors import did_you_mean, quoted
from pipeline.core.own_code import Kind, find_object


class Named(Protocol):
    """An object that says by which name files find it."""

    @property
    def name(self) -> str:
        """One of a table, or `module:NAME` of the user's own code."""


T = TypeVar("T", bound=Named)


class OpenTable(Generic[T]):
    """Objects of one kind by name: the library's, and those that the user named in this process.

    Files name objects, too: prepared data, cards, stores. A file alone runs no code: `find` returns own
    code only after the user named it (`use`), or trusted its module (`trust`).

    Args:
        kind: of the objects; params.yaml names one as `data.NOUN`.
        known: the library's own.
        base: class, or runtime-checkable protocol, of the objects.
    """

    def __init__(self, kind: Kind, known: Iterable[T], base: Any) -> None:
        self._kind, self._base = kind, base
        self._known: Mapping[str, T] = {one.name: one for one in known}
        self._own: dict[str, T] = {}
        self._trusted: set[str] = set()

    def __iter__(self) -> Iterator[T]:
        yield from self._own.values()
        yield from self._known.values()

    def use(self, name: str) -> T:
        """Return an object that the user names; own code is imported, and files may name it from now on.

        Raises:
            PipelineError: the kind's; there is none of this name, or its code does not do.
        """
        if ":" in name and name not in self._own:
            self._own[name] = self._import(name)
        return self.find(name)

    def trust(self, code: Iterable[str]) -> None:
        """Let files name objects of these modules, or `module:NAME`: the user trusts their code."""
        self._trusted.update(code)

    def forget(self) -> None:
        """Forget all code that the user named or trusted."""
        self._own.clear()
        self._trusted.clear()

    def find(self, name: str) -> T:
        """Return an object that a file names.

        Raises:
            PipelineError: the kind's; there is none of this name, or nobody named this code.
        """
        found = self._known.get(name) or self._own.get(name)
        if found is not None:
            return found
        noun = self._kind.noun
        if ":" not in name:
            raise self._kind.error(
                f"{noun} {quoted(name)} is unknown; expected {', '.join(self._known)}, or module:NAME of "
                f"your own{did_you_mean(name, self._known)}"
            )
        if self._trusted.isdisjoint({name, name.partition(":")[0]}):
            shown = quoted(name)
            raise self._kind.error(
                f"{noun} {shown} is code of one's own, which a file alone does not run; if this code is "
                f"yours: name it as data.{noun} in params.yaml, or add --trust-code {shown[1:-1]}"
            )
        return self.use(name)

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
