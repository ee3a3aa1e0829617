"""Read `params.yaml` into `Params`: the single entry point of configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pydantic

from pipeline.core.errors import ConfigError, did_you_mean, quoted, shortened
from pipeline.core.text import parse_yaml, read_yaml
from pipeline.losses import require_kept, require_targets
from pipeline.modalities.modality import Modality
from pipeline.modalities.table import DEFAULT, MODALITIES
from pipeline.views.pairing import require_whole_groups
from stages import paths
from stages.data_params import DataParams
from stages.dump_params import DumpParams, DumpViews, EnsembleParams
from stages.names import KINDS, STORES, require_names, require_runs_apart
from stages.own_types import checked, nested
from stages.params import (
    ModelParams,
    Params,
    PlacesParams,
    RecipeParams,
    SweepParams,
    TrainingParams,
)
from stages.rehead_params import ProbeParams, ReheadParams

_STRICT: tuple[Any, ...] = (
    *(DumpViews, TrainingParams, DataParams, ModelParams),
    *(
        DumpParams,
        EnsembleParams,
        ReheadParams,
        ProbeParams,
        RecipeParams,
        SweepParams,
        PlacesParams,
        Params,
    ),
)
for _class in _STRICT:
    _class.__pydantic_config__ = pydantic.ConfigDict(extra="forbid")
_PARAMS = pydantic.TypeAdapter(Params)
_MAY_BE_EMPTY = {*KINDS, "training", "sweep", "places"}
# Kind of pydantic's error -> the expected YAML.
_SHAPES = {"dataclass_type": "keys and values", "dict_type": "keys and values", "tuple_type": "a list"}
_MODEL_KEYS = {f.name for f in fields(ModelParams)} - {"training"}
_DATA_KEYS = {f.name for f in fields(DataParams)} - {"options"}
# These fields are no keys of the file: their values are written one level higher.
_GATHERED = ("training", "options", "spec")


def load_params(path: Path, overrides: Sequence[str] = ()) -> Params:
    """Read and check a parameter file.

    Args:
        path: YAML.
        overrides: "key.path=value" each, value in YAML, applied in order.

    Raises:
        ConfigError: the file is missing or not YAML, or has an unexpected key or value.

    """
    tree = _read(path)
    for override in overrides:
        _override(tree, override)
    # Without their values, which may be secrets.
    keys = (override.partition("=")[0] for override in overrides)
    origin = " ".join([str(path), *(f"--set {shortened(key)}=…" for key in keys)])
    try:
        require_names(tree)
        params = _Reader(MODALITIES.use(_modality_of(tree))).read(tree)
        require_runs_apart(params)
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None
    _check_references(params, origin)
    return params


def _modality_of(tree: Mapping[str, Any]) -> str:
    data = tree.get("data")
    name = data.get("modality", DEFAULT) if isinstance(data, dict) else DEFAULT
    if not isinstance(name, str):
        raise ConfigError(f"data.modality is {quoted(name)}; expected a name; correct it")
    return name


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = read_yaml(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; run in the project folder, or pass --params") from None
    except OSError as error:
        raise ConfigError(f"{path}: not a readable file ({error.strerror})") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not YAML ({error})") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: contains a {type(tree).__name__}; expected keys and values")
    # A key with no value or only comments below it: an empty group, or a section of defaults.
    return {key: {} if value is None and key in _MAY_BE_EMPTY else value for key, value in tree.items()}


def _override(tree: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    option = f"--set {shortened(text)}"
    if not equals or not key:
        raise ConfigError(f"{option}: expected key.path=value")
    *parents, leaf = key.split(".")
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(f"{option}: {parent} has a value, not keys")
    try:
        node[leaf] = parse_yaml(value)
    except ValueError as error:
        raise ConfigError(f"{option}: {quoted(value)} is not YAML ({error})") from None


def _refuse_flags(written: Any, understood: Any, *way: str) -> None:
    """Refuse true and false in place of a number: Python accepts them as 1 and 0."""
    if isinstance(written, bool) and not isinstance(understood, bool):
        key = ".".join(_as_written(way))
        raise ConfigError(f"{key} is {str(written).lower()}; expected a number; correct it")
    if isinstance(written, Mapping):
        for name, value in written.items():
            part = understood.get(name) if isinstance(understood, Mapping) else getattr(understood, name)
            _refuse_flags(value, part, *way, str(name))
    elif isinstance(written, list | tuple):
        for value, part in zip(written, understood, strict=False):
            _refuse_flags(value, part, *way)


class _Reader:
    """Builds `Params` from a file's values: first those of the modality's classes, then the rest.

    Args:
        modality: named in the file.
    """

    def __init__(self, modality: Modality) -> None:
        self._modality = modality

    def read(self, tree: Mapping[str, Any]) -> Params:
        """Return the parameters of a file.

        Raises:
            ConfigError: an unexpected key or value.
        """
        nested = self._nested(tree)
        try:
            params: Params = _PARAMS.validate_python(nested)
        except pydantic.ValidationError as error:
            raise ConfigError(self._first_problem(error)) from None
        # Check the shared values first: models repeat them.
        _refuse_flags({"training": {}, **nested}, params)
        return params

    def _nested(self, tree: Mapping[str, Any]) -> dict[str, Any]:
        """Nest values that the file writes flat, e.g. a model's training values or a recipe's settings."""
        nested = dict(tree)
        if isinstance(tree.get("data", {}), dict):
            nested["data"] = self._data(tree.get("data", {}))
        shared = tree.get("training") or {}
        if isinstance(shared, dict):
            nested["training"] = self._training(shared, "training")
        for group in ("teachers", "students"):
            if isinstance(tree.get(group), dict):
                nested[group] = {
                    name: self._model(spec, shared, f"{group}.{name}") for name, spec in tree[group].items()
                }
        if isinstance(tree.get("dumps"), dict):
            nested["dumps"] = {
                name: self._dump(spec, f"dumps.{name}.views") for name, spec in tree["dumps"].items()
            }
        if isinstance(tree.get("recipes"), dict):
            nested["recipes"] = {name: _recipe(spec) for name, spec in tree["recipes"].items()}
        return nested

    def _data(self, given: Mapping[str, Any]) -> dict[str, Any]:
        general = {key: value for key, value in given.items() if key in _DATA_KEYS}
        own = {key: value for key, value in given.items() if key not in _DATA_KEYS}
        return {
            "task": self._modality.task,
            **general,
            "options": self._own(self._modality.options_type, own, "data"),
        }

    def _training(self, given: Mapping[str, Any], place: str) -> dict[str, Any]:
        views = self._own(self._modality.views_type, given.get("views", {}), f"{place}.views")
        return {**given, "views": views}

    def _model(self, spec: Any, shared: Any, place: str) -> Any:
        if not isinstance(spec, dict) or not isinstance(shared, dict):
            return spec
        own = {key: value for key, value in spec.items() if key in _MODEL_KEYS}
        kind, given = self._modality.preprocessing_type, own.get("preprocessing", {})
        own["preprocessing"] = self._own(kind, given, f"{place}.preprocessing")
        trained = {key: value for key, value in spec.items() if key not in _MODEL_KEYS}
        return {**own, "training": self._training({**shared, **trained}, place)}

    def _dump(self, spec: Any, place: str) -> Any:
        if not isinstance(spec, dict) or not isinstance(spec.get("views"), dict):
            return spec
        count = {key: value for key, value in spec["views"].items() if key == "count"}
        own = {key: value for key, value in spec["views"].items() if key != "count"}
        return {**spec, "views": {**count, "spec": self._own(self._modality.views_type, own, place)}}

    def _own(self, kind: type[Any], given: Any, place: str) -> Any:
        """Build an object of a modality's class from plain values."""
        path = place.split(".")
        try:
            made = checked(kind, given)
        except pydantic.ValidationError as error:
            raise ConfigError(self._first_problem(error, path)) from None
        _refuse_flags(given, made, *path)
        return made

    def _first_problem(self, error: pydantic.ValidationError, place: Sequence[str] = ()) -> str:
        problem = error.errors()[0]
        path = _as_written([*place, *(str(part) for part in problem["loc"])])
        key = shortened(".".join(path))
        if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            if reason := self._modality.refusals.get(path[-1]):
                return f"{key}: {reason}; remove it"
            known = self._known_keys(path[:-1])
            hint = did_you_mean(path[-1], known)
            return f"unknown key {key}; expected one of {', '.join(known)}{hint}"
        if problem["type"] in ("missing", "missing_argument"):
            return f"{key} is missing; add it"
        if problem["type"] == "value_error":
            return f"{key}: {problem['ctx']['error']}"
        found = f"{key} is {quoted(problem['input'])}"
        if problem["type"] in _SHAPES:
            advice = "correct it" if problem["input"] is not None else "add its entries, or remove it"
            return f"{found}; expected {_SHAPES[problem['type']]}; {advice}"
        return f"{found}; {problem['msg'][0].lower()}{problem['msg'][1:]}"

    def _known_keys(self, path: Sequence[str]) -> list[str]:
        """Return the valid keys at a path of params.yaml."""
        modality = self._modality
        own = (modality.options_type, modality.views_type, modality.preprocessing_type)
        kinds: dict[str, list[type]] = {
            **{name: [kind] for some in own for name, kind in nested(some)},
            "data": [DataParams, modality.options_type],
            "training": [TrainingParams],
            "teachers": [ModelParams, TrainingParams],
            "students": [ModelParams, TrainingParams],
            "dumps": [DumpParams],
            "ensembles": [EnsembleParams],
            "reheads": [ReheadParams],
            "probes": [ProbeParams],
            "sweep": [SweepParams],
            "places": [PlacesParams],
            "preprocessing": [modality.preprocessing_type],
            "views": [modality.views_type]
            if not path or path[0] != "dumps"
            else [DumpViews, modality.views_type],
        }
        # A model's own key is under its name: students.small.optons.
        for part in reversed(path):
            if part in kinds:
                names = [f.name for kind in kinds[part] for f in fields(kind)]
                gathered = [name for name in _GATHERED if name != "options" or part == "data"]
                return [name for name in names if name not in gathered]
        return [f.name for f in fields(Params)]


def _recipe(spec: Any) -> Any:
    if not isinstance(spec, dict):
        return spec
    settings = {key: value for key, value in spec.items() if key != "loss"}
    return {**{k: v for k, v in spec.items() if k == "loss"}, "settings": settings}


def _as_written(path: Sequence[str]) -> list[str]:
    """Return the path of a value in the file, i.e. undo the nesting of `_nested`."""
    gathered = {"teachers": "training", "students": "training", "recipes": "settings"}
    return [part for place, part in enumerate(path) if place != 2 or part != gathered.get(path[0])]


def _check_references(params: Params, origin: str) -> None:
    """Refuse undefined names, and names used in the wrong list of the sweep."""
    for name, dump in params.dumps.items():
        _require_name(origin, f"dumps.{name}.teacher", dump.teacher, params.teachers)
    for name, ensemble in params.ensembles.items():
        for member in ensemble.of:
            _require_name(origin, f"ensembles.{name}.of", member, params.dumps)
    for group in ("reheads", "probes"):
        for name, reheaded in getattr(params, group).items():
            _require_name(origin, f"{group}.{name}.of", reheaded.of, params.dumps)
    _require_one_kind(params, origin)
    for name in params.stores:
        if name.lower() == paths.BASELINE:
            raise ConfigError(
                f"{origin}: a dump is named {name!r}, which is reserved for runs without a dump; rename it"
            )
    sweep = params.sweep
    for key, names, known in (
        ("dumps", sweep.dumps, dict.fromkeys(params.stores)),
        ("students", sweep.students, params.students),
        ("recipes", sweep.recipes, params.recipes),
        ("baselines", sweep.baselines, params.recipes),
    ):
        for name in names:
            _require_name(origin, f"sweep.{key}", name, known)
    for key, names, taught in (
        ("recipes", sweep.recipes, True),
        ("baselines", sweep.baselines, False),
    ):
        for name in names:
            recipe = params.recipes[name]
            if not recipe.is_own and recipe.needs_teacher != taught:
                other = "baselines" if taught else "recipes"
                need = "needs no dump" if taught else "needs a dump"
                raise ConfigError(
                    f"{origin}: sweep.{key} lists {name!r}, which {need}; move it to sweep.{other}"
                )
    _require_targets(params)


def _require_one_kind(params: Params, origin: str) -> None:
    """Refuse a name in two groups whose stores share a folder."""
    kinds: dict[str, str] = {}
    for group, kind in KINDS.items():
        if group in STORES:
            for name in getattr(params, group):
                here = f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
                if name in kinds:
                    raise ConfigError(f"{origin}: {name!r} is both {kinds[name]} and {here}; rename one")
                kinds[name] = here


def _require_targets(params: Params) -> None:
    for dump in params.sweep.dumps:
        for recipe in params.sweep.recipes:
            loss, where = params.recipes[recipe].loss, f"dump {dump}"
            if params.recipes[recipe].is_own:
                continue  # checked when a student trains: the check would run the user's code
            require_targets(loss, where, mixes=params.dump_views(dump).mixes)
            require_kept(loss, params.dump_codecs(dump), where)
        if params.dump_views(dump).mixes:
            for student in params.sweep.students:
                require_whole_groups(params.students[student].training.batch_size)


def _require_name(origin: str, key: str, name: str, known: Mapping[str, Any]) -> None:
    if name not in known:
        hint = did_you_mean(name, known)
        expected = f"expected one of {', '.join(known)}{hint}" if known else "none are defined; add it"
        raise ConfigError(f"{origin}: {key} names {name!r}; {expected}")
