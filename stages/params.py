"""Frozen, validated dataclasses of `params.yaml`; `params_file.py` reads the file into them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic

from pipeline.core.errors import ConfigError, ModelError, bounded, did_you_mean, quoted
from pipeline.core.own_code import is_own
from pipeline.core.text import require_name
from pipeline.losses import LOSSES, find_loss, make_loss
from pipeline.modalities.preprocessing import GivenPreprocessing, Views
from pipeline.modalities.table import find_modality
from pipeline.models.architecture import source_of
from pipeline.models.class_map import read_class_map
from pipeline.models.embedder import require_output
from pipeline.models.pretrained import Start
from pipeline.places.addresses import is_address
from pipeline.places.objects import require_object_address
from pipeline.tracking.log import require_names
from pipeline.training.settings import TrainingSettings, as_recorded
from pipeline.views.pairing import require_whole_groups
from stages.data_params import DataParams, Seed
from stages.dump_params import DumpParams, DumpViews, EnsembleParams
from stages.own_types import AsItIs
from stages.rehead_params import ProbeParams, ReheadParams

Workers = Annotated[int, pydantic.Field(ge=1, le=256)]
T = TypeVar("T")
_DEEPEST = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingParams(TrainingSettings):
    """Optimisation settings, and the training views of runs without a dump.

    Args:
        views: augmentation for baselines and for teachers trained here; see the views below.
        log: trackers that record the run: `tensorboard`, `mlflow`, `wandb`, `csv`, or your own
            `module:callable`; see `pipeline/tracking/README.md`.

    """

    views: Annotated[Views, AsItIs()] = field(default_factory=lambda: find_modality().views_type())
    log: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        TrainingSettings.__post_init__(self)
        require_names(self.log)
        if self.views.mixes:
            require_whole_groups(self.batch_size)

    def settings(self) -> TrainingSettings:
        """Return the optimisation settings, without the views."""
        return TrainingSettings(**{f.name: getattr(self, f.name) for f in fields(TrainingSettings)})


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelParams:
    """A teacher or a student.

    Args:
        model: architecture, e.g. `resnet18` (torchvision), `wrn_16_2` (CIFAR nets), `timm:NAME`; for texts
            `kim_cnn`, `bilstm`, `bert_tiny`, `byte_cnn`, `hf:FOLDER`; or your own `module:callable`.
        weights: initial weights: a name of torchvision, timm or the built-in teacher, e.g. `IMAGENET1K_V2`;
            `pretrained` for a model that brings its weights; or the path of a checkpoint.
        fine_tune: train a teacher further from `weights`; if false, the weights are used unchanged.
            Students are always trained.
        channels: input channels of the network, 1 or 3; None takes those of the data.
        stem_stride: downsampling of the first layers, 1, 2 or 4; None chooses by the size of the images.
        options: keyword arguments of the architecture's builder, e.g. `{width_mult: 0.35}`.
        preprocessing: overrides for input size and normalisation; see the preprocessing below.
        class_map: class of the weights for each class of the data, e.g. `{tabby: 281}`, or the path of a
            YAML or JSON file; None if both have the same classes.
        output: of a model under `task: embedding`: `embedding` (the input of its last layer), `layer:NAME`
            (a layer's output, averaged over positions) or `cls:NAME` (at its first position); None for
            `embedding`, and for the output itself of your own code. A finished teacher gives embeddings
            under any task if this or `normalise` is set: its dumps are for `reheads` and `probes`.
        normalise: of embeddings: `length` (to 1), or of a teacher `features` (each to mean 0 and deviation
            1, measured once); None for raw ones.
        seed: random seed of a teacher's training.
        workers: processes that train it together with `--on ray`, 1 to 256, on any machines of the cluster;
            they decide nothing, but DVC trains it again.
        training: the shared `training` values, overridden by those of this model.

    """

    model: str
    weights: str | None = None
    fine_tune: bool = False
    channels: Literal[1, 3] | None = None
    stem_stride: Literal[1, 2, 4] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    preprocessing: Annotated[GivenPreprocessing, AsItIs()] = field(
        default_factory=lambda: find_modality().preprocessing_type()
    )
    class_map: dict[str | int, str | int] | str | None = None
    output: str | None = None
    normalise: Literal["length", "features"] | None = None
    seed: Seed = 0
    workers: Workers = 1
    training: TrainingParams = field(default_factory=TrainingParams)

    def __post_init__(self) -> None:
        for name, value in self.options.items():
            _require_json(f"options.{name}", value)
        if self.weights is not None and self.channels is not None:
            raise ConfigError("channels and weights are both set, but weights fix the channels; remove one")
        for name in ("fine_tune", "class_map"):
            if self.weights is None and getattr(self, name):
                raise ConfigError(
                    f"{name} is set but weights is not; {name} needs initial weights; add them"
                )
        require_output(self.output or "", self.normalise or "none")
        if self.normalise == "features" and (self.weights is None or self.fine_tune):
            raise ConfigError(
                "normalise is features, which is measured on a finished teacher; expected weights and no "
                "fine_tune; use length, or remove it"
            )
        if self.weights is None and self.training.freeze:
            raise ConfigError(
                "freeze is true but weights is not set; freeze needs weights to keep; add them"
            )

    @property
    def encodes(self) -> bool:
        """Whether a finished teacher gives embeddings, whatever the data's task is."""
        finished = self.weights is not None and not self.fine_tune
        return finished and (self.output is not None or self.normalise is not None)

    def start(self, size: int | None) -> Start:
        """Return the initial network's specification for a run.

        Raises:
            ConfigError: the file of a class map cannot be read.
        """
        mapping = self.class_map
        return Start(
            model=self.model,
            weights=self.weights,
            size=size,
            channels=self.channels,
            stem_stride=self.stem_stride,
            options=self.options,
            preprocessing=self.preprocessing,
            class_map=read_class_map(Path(mapping)) if isinstance(mapping, str) else _by_name(mapping),
            output=self.output,
            normalise=self.normalise or "none",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeParams:
    """A loss with its settings.

    Args:
        loss: a loss of the table below, or your own `package.module:NAME`; own code runs when a student is
            trained with it, not when params.yaml is read.
        settings: settings of the loss; every other key of the recipe.
    """

    loss: str
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.is_own:
            make_loss(self.loss, self.settings)
        for name, value in self.settings.items():
            _require_json(name, value)

    @property
    def is_own(self) -> bool:
        """Whether the loss is user code."""
        return self.loss not in LOSSES and is_own(self.loss)

    @property
    def needs_teacher(self) -> bool:
        """Whether students of this recipe need a dump; imports a user's loss."""
        return find_loss(self.loss).needs_teacher


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepParams:
    """The runs of the main job: dumps x students x recipes x seeds, and students x baselines x seeds.

    Args:
        dumps: names of dumps, ensembles, re-headed dumps or probes.
        students: names of students.
        recipes: names of recipes with a distillation loss.
        baselines: names of recipes that need no dump.
        seeds: random seeds; one run for each.

    """

    dumps: tuple[str, ...] = ()
    students: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()
    seeds: tuple[Seed, ...] = (0,)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacesParams:
    """Places outside of data/.

    Args:
        logits: folder of the stores, e.g. on a large disk, or an address, e.g. s3://bucket/logits;
            data/logits then holds one small pointer file per dump, which DVC tracks instead of the store's
            files. None for data/logits itself.

    """

    logits: str | None = None

    def __post_init__(self) -> None:
        if self.logits is None:
            return
        if not self.logits.strip():
            raise ConfigError(f"logits is {quoted(self.logits)}; expected a folder or an address")
        if is_address(self.logits):
            require_object_address(self.logits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """All of params.yaml."""

    data: DataParams = field(default_factory=DataParams)
    training: TrainingParams = field(default_factory=TrainingParams)
    teachers: dict[str, ModelParams] = field(default_factory=dict)
    dumps: dict[str, DumpParams] = field(default_factory=dict)
    ensembles: dict[str, EnsembleParams] = field(default_factory=dict)
    reheads: dict[str, ReheadParams] = field(default_factory=dict)
    probes: dict[str, ProbeParams] = field(default_factory=dict)
    students: dict[str, ModelParams] = field(default_factory=dict)
    recipes: dict[str, RecipeParams] = field(default_factory=dict)
    sweep: SweepParams = field(default_factory=SweepParams)
    places: PlacesParams = field(default_factory=PlacesParams)

    def teacher(self, name: str) -> ModelParams:
        """Return a teacher by name."""
        return _lookup(self.teachers, "teachers", name)

    def dump(self, name: str) -> DumpParams:
        """Return a dump by name."""
        return _lookup(self.dumps, "dumps", name)

    def reheaded(self, name: str) -> ReheadParams | ProbeParams | None:
        """Return a dump with another head by name, or None."""
        return self.reheads.get(name) or self.probes.get(name)

    @property
    def stores(self) -> tuple[str, ...]:
        """Names of everything that a student can learn from."""
        return *self.dumps, *self.ensembles, *self.reheads, *self.probes

    def dump_views(self, name: str) -> DumpViews:
        """Return the views of a dump, or of the dumps behind a name, which share them."""
        return self.dump(self._dumps_of(name)[0]).views

    def dump_codecs(self, name: str) -> list[str]:
        """Return the codec of a dump, or the codecs of the dumps behind a name."""
        return [self.dump(member).codec for member in self._dumps_of(name)]

    def _dumps_of(self, name: str) -> tuple[str, ...]:
        if name in self.ensembles:
            return self.ensembles[name].of
        reheaded = self.reheaded(name)
        return (name,) if reheaded is None else (reheaded.of,)

    def student(self, name: str) -> ModelParams:
        """Return a student by name."""
        return _lookup(self.students, "students", name)

    def makes(self, student: str, recipe: str) -> dict[str, Any]:
        """Return the plain values that decide a run, apart from data, dump and seed."""
        return {
            f"students.{student}": _deciding(self.student(student)),
            f"recipes.{recipe}": asdict(self.recipe(recipe)),
            "data": {**self.data.options.for_models(), "labels_per_class": self.data.labels_per_class},
        }

    def makes_teacher(self, name: str) -> dict[str, Any]:
        """Return the plain values that decide a teacher, apart from the data."""
        spec = self.teacher(name)
        values = _deciding(spec)
        if spec.weights is not None and not spec.fine_tune:
            # The weights are used unchanged, so training values have no effect.
            return {f"teachers.{name}": {k: v for k, v in values.items() if k not in ("training", "seed")}}
        return {f"teachers.{name}": values, "data": self.data.options.for_models()}

    def require_models(self, *only: str) -> None:
        """Refuse unknown names of models before work begins; nothing is built, and no user code runs.

        Args:
            only: entries, e.g. students.small; none for all teachers and students.

        Raises:
            ConfigError: naming the entry.
        """
        entries = {f"teachers.{name}": spec for name, spec in self.teachers.items()}
        entries |= {f"students.{name}": spec for name, spec in self.students.items()}
        for entry in only or entries:
            try:
                source_of(entries[entry].model, self.data.kind.families).require_name(entries[entry].model)
            except ModelError as error:
                raise ConfigError(f"{entry}.model: {error}; correct it in params.yaml") from None

    def recipe(self, name: str) -> RecipeParams:
        """Return a recipe by name."""
        return _lookup(self.recipes, "recipes", name)


def as_written(told: str) -> str:
    """Return a text with the keys of params.yaml, in which a model's training and settings are not nested.

    >>> as_written("students.small.training.epochs was 4, is 8")
    'students.small.epochs was 4, is 8'
    """
    return re.sub(r"\b((?:teachers|students|recipes)\.[\w-]+)\.(?:training|settings)\.", r"\1.", told)


def _deciding(spec: ModelParams) -> dict[str, Any]:
    """Return a model's plain values as its run's metrics keep them: trackers and workers decide nothing."""
    values = {name: value for name, value in asdict(spec).items() if name != "workers"}
    settings = {name: value for name, value in values["training"].items() if name != "log"}
    return {**values, "training": as_recorded(settings)}


def _require_json(key: str, value: object, depth: int = 0) -> None:
    """Refuse values that the JSON of a card or metrics cannot represent, before training starts.

    Raises:
        ConfigError: naming the key.
    """
    if depth > _DEEPEST:
        raise ConfigError(
            f"{bounded(key)} is nested too deeply; expected at most {_DEEPEST} levels; correct it"
        )
    if isinstance(value, list | tuple):
        for place, item in enumerate(value):
            _require_json(f"{key}.{place}", item, depth + 1)
    elif isinstance(value, dict):
        for name, item in value.items():
            if not isinstance(name, str | int | float):
                raise ConfigError(f"{key} has the key {quoted(name)}; expected text; put it in quotes")
            _require_json(f"{key}.{name}", item, depth + 1)
    elif not _is_plain(value):
        raise ConfigError(
            f"{key} is {quoted(value)}; expected finite numbers, text, true, false, null, or lists or "
            "mappings of these; correct it, or put it in quotes for text"
        )


def _is_plain(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, str | int)


def _by_name(mapping: Mapping[str | int, str | int] | None) -> dict[str, str | int] | None:
    """Return a class map with text keys: YAML reads digits as a number."""
    return None if mapping is None else {str(name): theirs for name, theirs in mapping.items()}


def _lookup(group: Mapping[str, T], key: str, name: str) -> T:
    require_name(key.removesuffix("s"), name)
    if name not in group:
        hint = did_you_mean(name, group)
        known = f"expected one of {', '.join(group)}" if group else "it is empty; add it"
        raise ConfigError(f"{key} has no entry {name!r}; {known}{hint}")
    return group[name]
