"""What the rest of the library knows of a kind of samples.

A sample is an array of one dtype with a shape of its own. Feeds, targets, loader, teacher, dump, training,
evaluation and report see samples through these protocols and those of `preprocessing.py` alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipeline.modalities.families import Family
from pipeline.modalities.preprocessing import Preprocessing, Views
from pipeline.samples.description import Description
from pipeline.samples.index import Form
from pipeline.samples.intake import Intake
from pipeline.samples.packed import Split
from pipeline.samples.samples import Source


class DataOptions(Protocol):
    """What `data` in params.yaml says of samples of one modality: a frozen dataclass."""

    @property
    def size(self) -> int | None:
        """Extent of the input of models that are trained here; None takes the samples' own."""

    def require_source(self, source: str) -> None:
        """Refuse a value of `data.source` that these options do not go with.

        Raises:
            ConfigError: saying why.
        """

    def for_models(self) -> dict[str, Any]:
        """Return, by name, the values that decide networks, and no prepared data."""

    def asked(self) -> dict[str, Any]:
        """Return, by name, the values that decide the content of prepared data, or refuse some of it."""

    @property
    def refusing(self) -> Collection[str]:
        """Names of the values that do no more than refuse samples."""

    def known(self, description: Description) -> dict[str, Any]:
        """Return what is known of these values when data was made, beside what it wrote down itself."""

    def differs(self, name: str, was: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
        """Whether one of these values asks for other data than there is."""


class Modality(Protocol):
    """A kind of samples."""

    @property
    def name(self) -> str:
        """By which params.yaml and files name it: one of the table, or of one's own `module:NAME`."""

    @property
    def families(self) -> Sequence[Family]:
        """Sources of models for its samples."""

    @property
    def options_type(self) -> type[Any]:
        """The class of its part of `data` in params.yaml: a dataclass, `DataOptions`."""

    @property
    def views_type(self) -> type[Any]:
        """The class of what params.yaml says of views: a dataclass, `Views`."""

    @property
    def preprocessing_type(self) -> type[Any]:
        """The class of what params.yaml says of a model's preprocessing: `GivenPreprocessing`."""

    def open_source(self, source: str, options: Any) -> Source:
        """Find a dataset by the value of `data.source`.

        Raises:
            ConfigError: it names nothing that this modality knows.
            DataError: the dataset is missing, empty, or not of the expected form.
        """

    def intake(self, source: Any, folder: Path, options: Any) -> Intake:
        """Return what reads the samples that `open_source` found, for a prepared dataset in `folder`."""

    def described(self, plain: Mapping[str, Any]) -> tuple[Form, dict[str, Any]]:
        """Return what the content of a dataset.json says: the samples' form, and their statistics.

        Raises:
            ValueError: values of other types or ranges.
        """

    def open_split(self, folder: Path, name: str, form: Any) -> Split:
        """Open one split of a prepared dataset.

        Raises:
            DataError: a file is missing or damaged.
        """

    def views(self, plain: Mapping[str, Any]) -> Views:
        """Return the views that a canonical form describes.

        Raises:
            MismatchError: another version of this program described them.
            ValueError: they are no views.
        """

    def preprocessing(self, plain: Mapping[str, Any]) -> Preprocessing:
        """Return the preprocessing that `Preprocessing.to_dict` described.

        Raises:
            ValueError: these are no such values.
        """

    def fresh_preprocessing(
        self, samples: Split, known: Mapping[str, Any], *, size: int | None, channels: int | None
    ) -> Preprocessing:
        """Return how a model without weights wants the samples of a dataset.

        Args:
            samples: the training split.
            known: what dataset.json says of its statistics.
            size: extent of the model's input; None takes the samples' own.
            channels: of the model's input; None takes the samples' own.

        Raises:
            DataError: samples have no one size, and none is given.
        """
