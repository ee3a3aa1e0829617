"""Define a modality, a kind of samples, as seen by the rest of the library.

A sample is an array; a modality's samples share a dtype, and each may have a different shape. Feeds,
targets, loader, teacher, dump, training, evaluation and report use only `Modality` and the protocols of
`preprocessing.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import ConfigError
from pipeline.modalities.families import Family
from pipeline.modalities.picture import Picture, plotted
from pipeline.modalities.preprocessing import Preprocessing, Views
from pipeline.samples.description import CLASSES, Description
from pipeline.samples.index import Form
from pipeline.samples.intake import ArrayIntake, Intake
from pipeline.samples.packed import Split, open_packed
from pipeline.samples.samples import Sample, Source


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
    """The keys of `data` in params.yaml that belong to one modality.

    A modality derives a frozen dataclass and adds fields. A field's name is its key, e.g. `short_side`.
    """

    @property
    def size(self) -> int | None:
        """Extent of the input of models trained here; None uses the samples' extent."""
        return None

    @property
    def refusing(self) -> Collection[str]:
        """Names of the options that only refuse samples."""
        return ()

    @property
    def omitted(self) -> Collection[str]:
        """Names of unset options that files leave out, since they are younger than those files."""
        return ()

    def require_source(self, source: str) -> None:
        """Refuse a value of `data.source` that contradicts these options.

        Raises:
            ConfigError: the two contradict; the message says why.
        """

    def for_models(self) -> dict[str, Any]:
        """Return the options that shape networks and leave prepared data unchanged, by name."""
        return {}

    def asked(self) -> dict[str, Any]:
        """Return the options that change the prepared data or refuse parts of it, by name."""
        return {name: value for name, value in asdict(self).items() if name not in self.for_models()}

    def known(self, description: Description) -> dict[str, Any]:
        """Return the options recorded in a prepared dataset, by name."""
        return {}

    def differs(self, name: str, was: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
        """Whether an option asks for different data than the prepared data.

        Args:
            name: name of the option.
            was, asked: all values of `data`, at the time of preparation and now.
        """
        return bool(was[name] != asked[name])


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognised:
    """Data of a modality at a path, for `pipeline init`.

    Args:
        source: value of `data.source`.
        options: further keys of `data` that tell how to read it, e.g. columns of a table.
    """

    source: str
    options: Mapping[str, Any] = field(default_factory=dict)


class Modality(ABC):
    """A kind of samples.

    Attributes:
        name: name in params.yaml and in files, e.g. images; `module:NAME` for user code.
        task: name of the task if params.yaml names none.
        families: sources of models for these samples.
        options_type: dataclass of this modality's keys of `data` in params.yaml.
        views_type: dataclass of `views` in params.yaml.
        preprocessing_type: dataclass of a model's `preprocessing` in params.yaml, a
            `GivenPreprocessing`.
        refusals: keys of other modalities that make no sense here, with the reason, for messages.
    """

    name: ClassVar[str]
    task: ClassVar[str] = CLASSES
    families: ClassVar[Sequence[Family]] = ()
    options_type: ClassVar[type[DataOptions]] = DataOptions
    views_type: ClassVar[type[Any]]
    preprocessing_type: ClassVar[type[Any]]
    refusals: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def open_source(self, source: str, options: Any) -> Source:
        """Find a dataset.

        Args:
            source: the value of `data.source`.
            options: an `options_type`.

        Raises:
            ConfigError: the modality does not know this source.
            DataError: the dataset is missing, empty or malformed.
        """

    @abstractmethod
    def views(self, plain: Mapping[str, Any]) -> Views:
        """Return the views described by a canonical form.

        Raises:
            MismatchError: written by an incompatible version of this program.
            ValueError: not a description of views.
        """

    @abstractmethod
    def preprocessing(self, plain: Mapping[str, Any]) -> Preprocessing:
        """Return the preprocessing described by `Preprocessing.to_dict`.

        Raises:
            ValueError: not such a description.
        """

    @abstractmethod
    def fresh_preprocessing(
        self, samples: Split, known: Mapping[str, Any], *, size: int | None, channels: int | None
    ) -> Preprocessing:
        """Return the preprocessing of a model without weights, fitted to a dataset.

        Args:
            samples: the training split.
            known: the statistics in dataset.json.
            size: extent of the model's input; None uses the samples' extent.
            channels: channels of the model's input; None uses the samples' channels.

        Raises:
            DataError: `size` is None and the samples differ in size.
        """

    def measured(self, preprocessing: Any, samples: Split) -> Preprocessing:
        """Return a new model's preprocessing with the statistics that depend on its settings.

        Here it is complete already. A spectrogram's mean, for example, depends on its window.

        Args:
            preprocessing: the result of `Family.fitted`.
            samples: the training split.
        """
        complete: Preprocessing = preprocessing
        return complete

    def intake(self, source: Any, folder: Path, options: Any) -> Intake:
        """Return the reader of samples for `pipeline prepare`; here, the reader of an `ArraySource`.

        Args:
            source: result of `open_source`.
            folder: folder of the prepared dataset.
            options: an `options_type`.
        """
        return ArrayIntake(source.form)

    def described(self, plain: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return the samples' form and statistics from the content of a dataset.json.

        Raises:
            ValueError: a value has a wrong type or range.
        """
        return Form.parse(plain), {}

    def open_split(self, folder: Path, name: str, form: Any) -> Split:
        """Open one split of a prepared dataset.

        Raises:
            DataError: a file is missing or damaged.
        """
        return open_packed(folder, name, form)

    def recognise(self, path: Path, name: str) -> Recognised | None:
        """Return how to read the data at a path, or None if they are not this modality's.

        Args:
            path: a folder or file.
            name: its name for params.yaml.

        Raises:
            DataError: they are this modality's, but cannot be read.
        """
        return None

    def trust(self, code: Iterable[str]) -> None:
        """Let files name code that this modality runs: modules, or `module:NAME`, that the user trusts."""
        del code  # Most modalities run none.

    def open_files(self, folder: Path, preprocessing: Any, count: int) -> Split:
        """Read at most `count` samples from the files in a folder, as a trial input for a model.

        Raises:
            ConfigError: samples of this modality are not files.
            DataError: the folder has no such file, or one cannot be read.
        """
        raise ConfigError(f"{folder}: modality {self.name!r} does not read samples from single files")

    def extents(self, samples: Sequence[Sample]) -> NDArray[np.int64]:
        """Return the extents (n, k) of some samples from their file headers, e.g. height and width.

        Nothing is decoded. A row is 0 if the header has no extents.

        Raises:
            ConfigError: samples of this modality have no headers.
        """
        raise ConfigError(f"modality {self.name!r} does not measure samples from file headers")

    def picture(
        self,
        shown: NDArray[np.integer[Any]],
        plain: NDArray[np.integer[Any]] | None = None,
        *,
        form: Form | None = None,
    ) -> Picture:
        """Return the report's picture of a sample; here, a curve of its values.

        Args:
            shown: the sample as `Renderer.evidence` gives it.
            plain: the un-augmented sample, for pictures that mark changes; None if `shown` is it.
            form: storage format of the split, if a picture depends on it, e.g. on a sample rate.
        """
        return plotted(shown)
