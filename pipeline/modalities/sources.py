"""The table of a modality's sources, selected by `data.source`: built-in functions, and user code.

A source is a function of the text behind the name's colon and the modality's options. User code is
`module:callable`: a function without arguments, or of `options`, that returns such a source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from pipeline.core.errors import ConfigError, DataError, counted, did_you_mean, plural, quoted
from pipeline.core.own_code import Kind, call, find_callable, has_module, is_own, parameters_of
from pipeline.samples.label_forms import as_array
from pipeline.samples.labels import require_class_names
from pipeline.samples.samples import NO_CLASSES, UNLABELLED, Source

T = TypeVar("T", bound=Source)


class SourceTable(Generic[T]):
    """Sources of one modality by name.

    Args:
        known: name -> function of the text behind the colon and the options.
        base: class of the sources.
        noun: of one sample, e.g. image.
        shapes: the forms of `data.source`, for messages, e.g. ("npz:PATH", "folder:PATH").
    """

    def __init__(
        self,
        known: Mapping[str, Callable[[str, Any], T]],
        base: type[T],
        *,
        noun: str,
        shapes: tuple[str, ...],
    ) -> None:
        self._known, self._base, self._noun, self._shapes = known, base, noun, shapes
        self._own = Kind(noun="source", returns=f"a dataset of {plural(noun)}", plural="datasets")

    def open(self, name: str, options: Any) -> T:
        """Find a dataset by the value of `data.source`.

        Raises:
            ConfigError: the table has no such name, or user code fails.
            DataError: the dataset is missing, empty or malformed.
        """
        kind, _, detail = name.partition(":")
        hint = did_you_mean(kind, self._known)
        if kind in self._known:
            source = self._known[kind](detail, options)
        elif is_own(name) and (not hint or has_module(name)):
            source = self._call(name, options)
        else:
            raise ConfigError(
                f"data.source is {name!r}; expected {', '.join(self._shapes)} or your own "
                f"module:callable{hint}"
            )
        self._require_samples(name, source)
        return source

    def _require_samples(self, name: str, source: T) -> None:
        """Refuse a source with an empty split, or with a single class."""
        for split, samples in (("training", source.train), ("test", source.test)):
            if not samples:
                raise DataError(f"{name}: has no {split} {plural(self._noun)}; expected at least one")
        is_index = as_array(getattr(source.train[0], "label", UNLABELLED)).ndim == 0
        if is_index and len(source.classes) < 2 and source.classes != NO_CLASSES:
            raise DataError(f"{name}: has {counted(len(source.classes), 'class')}; expected at least two")

    def _call(self, name: str, options: Any) -> T:
        """Call user code that returns a dataset."""
        function = find_callable(name, self._own)
        given = {"options": options} if "options" in parameters_of(function) else {}
        found = call(name, self._own, function, given)
        if not isinstance(found, self._base):
            raise ConfigError(
                f"source {name} returns a {type(found).__name__}; expected a "
                f"{self._base.__module__}.{self._base.__qualname__}; correct it"
            )
        classes, splits = found.classes, (found.train, found.test, found.validation or ())
        if not (isinstance(classes, tuple | list) and all(isinstance(text, str) for text in classes)):
            raise DataError(
                f"{name}: its classes are {quoted(classes)}; expected a tuple of str; correct it"
            )
        require_class_names(name, classes)
        if other := [samples for samples in splits if not isinstance(samples, Sequence)]:
            raise DataError(
                f"{name}: a split is {quoted(other[0])}; expected a sequence of samples, e.g. a list; "
                "correct it"
            )
        return found
