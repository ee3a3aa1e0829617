"""Parameters of the dataset in `params.yaml`: source, modality, task and splits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import pydantic
from numpy.typing import NDArray

from pipeline.core.errors import ConfigError
from pipeline.modalities.modality import DataOptions, Modality
from pipeline.modalities.prepared import PreparedData
from pipeline.modalities.table import DEFAULT, find_modality
from pipeline.samples.description import CLASSES, DECISIVE
from pipeline.samples.label_forms import Wanted
from pipeline.samples.labels import keep_labels
from pipeline.samples.prepare import Preparation
from pipeline.tasks.table import TASKS, find_task
from stages.own_types import AsItIs

Seed = Annotated[int, pydantic.Field(ge=0, lt=1 << 32)]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataParams:
    """The dataset.

    Args:
        source: origin of the samples; for images `fashion-mnist-10k`, `npz:PATH`, `folder:PATH`,
            `torchvision:NAME`, `wds:PATTERN`, `parquet:PATTERN`, `hf:FOLDER`, `csv:PATTERN`; for text
            `udhr-languages`, `csv:PATH`, `tsv:PATH`, `jsonl:PATH`,
            `parquet:PATH`, `hf:PATH`, `folder:PATH`; for audio `spoken-words-synthetic`, `folder:PATH`,
            `csv:PATH`, `npz:PATH`; for items `debian-dependencies`, `inter:PATH`, `csv:PATH`; or
            your own `module:callable`.
        modality: kind of samples: `images`, `text`, `audio`, `items`, or your own `module:NAME`.
        task: meaning of the teacher's output: `classes` (one softmax), `multilabel` (a sigmoid per tag),
            `embedding` (a vector), `scores` (numbers), `next_item` (a softmax over items, the default of
            modality items), or your own `module:NAME`.
        watch: file or folder; DVC imports the data again when it changes. A name that ends in `.watch` is a
            digest file of the source, for folders of many files; `pipeline prepare --look` updates it.
        validation: share of the training samples held out to choose the epoch, in [0, 1); unused if the
            source brings a validation split. With 0 the last epoch is kept.
        labels_per_class: labels of each class that students may see, at least 1; None for all.
        seed: random seed of the validation split and of the choice of visible labels.
        options: options of the modality, written beside these keys.

    """

    source: str = "fashion-mnist-10k"
    modality: str = DEFAULT
    task: str = CLASSES
    watch: str = ""
    validation: float = 0.1
    labels_per_class: int | None = None
    seed: Seed = 0
    options: Annotated[DataOptions, AsItIs()] = field(
        default_factory=lambda: find_modality().options_type()
    )

    def __post_init__(self) -> None:
        TASKS.use(self.task)
        if not 0 <= self.validation < 1:
            raise ConfigError(f"validation is {self.validation}; expected at least 0 and below 1")
        if self.labels_per_class is not None and self.labels_per_class < 1:
            raise ConfigError(
                f"labels_per_class is {self.labels_per_class}; expected at least 1, or null for all"
            )
        self.options.require_source(self.source)

    @property
    def kind(self) -> Modality:
        """The modality, found when params.yaml was read."""
        return find_modality(self.modality)

    def student_labels(self, data: PreparedData) -> NDArray[Any]:
        """Return the labels (N, ...) of the training split that students may see, -1 for hidden."""
        if self.labels_per_class is None:
            return data.train.labels
        return keep_labels(data.train, data.classes, per_class=self.labels_per_class, seed=self.seed)

    def preparation(self) -> Preparation:
        """Return the parameters of `pipeline prepare`."""
        kinds = {"modality": (self.modality, DEFAULT), "task": (self.task, CLASSES)}
        unrecorded = {*kinds, *self.options.omitted}
        return Preparation(
            origin=self.source,
            validation=self.validation,
            seed=self.seed,
            made_with={name: value for name, value in self.asked().items() if name not in unrecorded},
            kinds={name: value for name, (value, usual) in kinds.items() if value != usual},
            labels=Wanted(task=self.task, kinds=find_task(self.task).labels),
        )

    def asked(self) -> dict[str, Any]:
        """Return the values that decide or restrict prepared data, to compare existing data with."""
        general = {name: getattr(self, name) for name in (*DECISIVE, "modality", "task")}
        return {**general, **self.options.asked()}
