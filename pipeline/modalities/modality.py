"""What the rest of the library knows of a kind of samples.

A sample is an array of one dtype with a shape of its own. Feeds, targets, loader, teacher, dump, training,
evaluation and report see samples through `Modality` and the protocols of `preprocessing.py` alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import ConfigError
from pipeline.modalities.families import Family
from pipeline.modalities.picture import Picture, plotted
from pipeline.modalities.preprocessing import Preprocessing, Views
from pipeline.samples.description import Description
from pipeline.samples.index import Form
from pipeline.samples.intake import ArrayIntake, Intake
from pipeline.samples.packed import Split, open_packed
from pipeline.samples.samples import Sample, Source


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
    """What `data` in params.yaml says of samples of one modality, beside what it says of any samples.

    A modality derives a frozen dataclass with fields of its own; its names are the keys of `data`.
    """

    @property
    def size(self) -> int | None:
        """Extent of the input of models that are trained here; None takes the samples' own."""
        return None

    @property
    def refusing(self) -> Collection[str]:
        """Names of the values that do no more than refuse samples."""
        return ()

    def require_source(self, source: str) -> None:
        """Refuse a value of `data.source` that these options do not go with.

        Raises:
            ConfigError: saying why.
        """

    def for_models(self) -> dict[str, Any]:
        """Return, by name, the values that decide networks, and no prepared data."""
        return {}

    def asked(self) -> dict[str, Any]:
        """Return, by name, the values that decide the content of prepared data, or refuse some of it."""
        return {name: value for name, value in asdict(self).items() if name not in self.for_models()}

    def known(self, description: Description) -> dict[str, Any]:
        """Return what is known of these values when data was made."""
        return {}

    def differs(self, name: str, was: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
        """Whether one of these values asks for other data than there is.

        Args:
            name: of the value.
            was, asked: all values of `data`, as the data was made and as it is asked for.
        """
        return bool(was[name] != asked[name])


class Modality(ABC):
    """A kind of samples.

    Attributes:
        name: by which params.yaml and files name it: one of the table, or `module:NAME` of one's own.
        families: sources of models for its samples.
        options_type: the class of its part of `data` in params.yaml.
        views_type: the dataclass of what params.yaml says of views.
        preprocessing_type: the dataclass of what params.yaml says of a model's preprocessing, a
            `GivenPreprocessing`.
    """

    name: ClassVar[str]
    families: ClassVar[Sequence[Family]] = ()
    options_type: ClassVar[type[DataOptions]] = DataOptions
    views_type: ClassVar[type[Any]]
    preprocessing_type: ClassVar[type[Any]]

    @abstractmethod
    def open_source(self, source: str, options: Any) -> Source:
        """Find a dataset.

        Args:
            source: the value of `data.source`.
            options: of `options_type`.

        Raises:
            ConfigError: it names nothing that this modality knows.
            DataError: the dataset is missing, empty, or not of the expected form.
        """

    @abstractmethod
    def views(self, plain: Mapping[str, Any]) -> Views:
        """Return the views that a canonical form describes.

        Raises:
            MismatchError: another version of this program described them.
            ValueError: they are no views.
        """

    @abstractmethod
    def preprocessing(self, plain: Mapping[str, Any]) -> Preprocessing:
        """Return the preprocessing that `Preprocessing.to_dict` described.

        Raises:
            ValueError: these are no such values.
        """

    @abstractmethod
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

    def intake(self, source: Any, folder: Path, options: Any) -> Intake:
        """Return what reads samples when a dataset is prepared; here, those of an `ArraySource`.

        Args:
            source: from `open_source`.
            folder: of the prepared dataset.
            options: of `options_type`.
        """
        return ArrayIntake(source.form)

    def described(self, plain: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return what the content of a dataset.json says: the samples' form, and their statistics.

        Raises:
            ValueError: values of other types or ranges.
        """
        return Form.parse(plain), {}

    def open_split(self, folder: Path, name: str, form: Any) -> Split:
        """Open one split of a prepared dataset.

        Raises:
            DataError: a file is missing or damaged.
        """
        return open_packed(folder, name, form)

    def trust(self, code: Iterable[str]) -> None:
        """Let files name code that this modality runs: modules, or `module:NAME`, that the user trusts."""
        del code  # Most modalities run none.

    def open_files(self, folder: Path, preprocessing: Any, count: int) -> Split:
        """Read at most `count` samples of the files in a folder, to try a model of a preprocessing on.

        Raises:
            ConfigError: samples of this modality are no files.
            DataError: there is none, or one cannot be read.
        """
        raise ConfigError(f"{folder}: samples of modality {self.name} are not read from single files")

    def extents(self, samples: Sequence[Sample]) -> NDArray[np.int64]:
        """Return the extents (n, axes) of some samples by the headers of their files.

        E.g. height and width. Nothing is decoded; a row is 0 where no header tells.

        Raises:
            ConfigError: samples of this modality have no headers.
        """
        raise ConfigError(f"samples of modality {self.name} are not measured by their headers")

    def picture(self, rendered: NDArray[np.integer[Any]]) -> Picture:
        """Return what the report shows of a rendered sample; here, a curve of its values."""
        return plotted(rendered)
