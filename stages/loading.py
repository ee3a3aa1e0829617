"""`params.yaml` into `Params`: the one place where configuration comes in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pydantic
import yaml

from pipeline.errors import ConfigError, did_you_mean
from pipeline.losses import require_features, require_targets
from pipeline.models.preprocessing import GivenPreprocessing
from pipeline.views.mixing import require_whole_groups
from pipeline.views.spec import AUGMENTATIONS, ViewSpec
from stages import layout
from stages.params import (
    DataParams,
    DumpParams,
    DumpViews,
    EnsembleParams,
    ModelParams,
    Params,
    RecipeParams,
    SweepParams,
    TrainingParams,
)

_STRICT: tuple[Any, ...] = (
    *AUGMENTATIONS.values(),
    *(ViewSpec, DumpViews, TrainingParams, DataParams),
    *(ModelParams, GivenPreprocessing, DumpParams, EnsembleParams, RecipeParams, SweepParams, Params),
)
for _class in _STRICT:
    _class.__pydantic_config__ = pydantic.ConfigDict(extra="forbid")
_PARAMS = pydantic.TypeAdapter(Params)
_MODEL_KEYS = {f.name for f in fields(ModelParams)} - {"training"}


def load_params(path: Path, overrides: Sequence[str] = ()) -> Params:
    """Read and check a parameter file.

    Args:
        path: YAML.
        overrides: "key.path=value" each, value in YAML, applied in order.

    Raises:
        ConfigError: no such file, not YAML, or a key or value that is not expected.

    """
    try:
        tree = yaml.safe_load(path.read_text()) or {}
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; run in the project's folder or give --params") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a readable text file ({error})") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds a {type(tree).__name__}; expected keys and values")
    for override in overrides:
        _override(tree, override)
    try:
        params = _PARAMS.validate_python(_nested(tree))
    except pydantic.ValidationError as error:
        raise ConfigError(f"{path}: {_first_problem(error)}") from None
    _check_references(params, path)
    return params


def _override(tree: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {text}: expected key.path=value")
    *parents, leaf = key.split(".")
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {text}: {parent} holds a value, not keys")
    try:
        node[leaf] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"--set {text}: {value!r} is not YAML") from None


def _nested(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Gather what the file writes flat: a model's training values, a recipe's settings."""
    nested = dict(tree)
    shared = tree.get("training") or {}
    for group in ("teachers", "students"):
        if isinstance(tree.get(group), dict):
            nested[group] = {name: _model(spec, shared) for name, spec in tree[group].items()}
    if isinstance(tree.get("recipes"), dict):
        nested["recipes"] = {name: _recipe(spec) for name, spec in tree["recipes"].items()}
    return nested


def _model(spec: Any, shared: Any) -> Any:
    if not isinstance(spec, dict) or not isinstance(shared, dict):
        return spec
    own = {key: value for key, value in spec.items() if key in _MODEL_KEYS}
    trained = {key: value for key, value in spec.items() if key not in _MODEL_KEYS}
    return {**own, "training": {**shared, **trained}}


def _recipe(spec: Any) -> Any:
    if not isinstance(spec, dict):
        return spec
    settings = {key: value for key, value in spec.items() if key != "loss"}
    return {**{k: v for k, v in spec.items() if k == "loss"}, "settings": settings}


def _first_problem(error: pydantic.ValidationError) -> str:
    problem = error.errors()[0]
    path = [str(part) for part in problem["loc"]]
    if path[0] in ("teachers", "students") and "training" in path:
        path.remove("training")
    key = ".".join(path)
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = _known_keys(path[:-1])
        hint = did_you_mean(path[-1], known)
        return f"unknown key {key}; expected one of {', '.join(known)}{hint}"
    if problem["type"] in ("missing", "missing_argument"):
        return f"{key} is missing; add it"
    if problem["type"] == "value_error":
        return f"{key}: {problem['ctx']['error']}"
    message = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{key} is {problem['input']!r}; {message}"


def _known_keys(path: Sequence[str]) -> list[str]:
    """Names that may stand at a place of params.yaml."""
    kinds: dict[str, list[type]] = {
        "data": [DataParams],
        "training": [TrainingParams],
        "teachers": [ModelParams, TrainingParams],
        "students": [ModelParams, TrainingParams],
        "dumps": [DumpParams],
        "ensembles": [EnsembleParams],
        "sweep": [SweepParams],
        "preprocessing": [GivenPreprocessing],
        "views": [DumpViews] if path and path[0] == "dumps" else [ViewSpec],
        **{name: [kind] for name, kind in AUGMENTATIONS.items()},
    }
    for part in reversed(path):
        if part in kinds:
            names = [f.name for kind in kinds[part] for f in fields(kind)]
            return [name for name in names if name != "training"]
    return [f.name for f in fields(Params)]


def _check_references(params: Params, path: Path) -> None:
    """Every name that a dump or the sweep uses must be defined, and used where it can be."""
    for name, dump in params.dumps.items():
        _require_name(path, f"dumps.{name}.teacher", dump.teacher, params.teachers)
    for name, ensemble in params.ensembles.items():
        for member in ensemble.of:
            _require_name(path, f"ensembles.{name}.of", member, params.dumps)
    taken = next((name for name in params.ensembles if name in params.dumps), None)
    if taken is not None:
        raise ConfigError(
            f"{path}: {taken} is a dump and an ensemble; expected a name for each; rename one"
        )
    if layout.BASELINE in {*params.dumps, *params.ensembles}:
        raise ConfigError(
            f"{path}: a dump is called {layout.BASELINE}, as the runs without one are; rename it"
        )
    sweep = params.sweep
    for key, names, known in (
        ("dumps", sweep.dumps, {**params.dumps, **params.ensembles}),
        ("students", sweep.students, params.students),
        ("recipes", sweep.recipes, params.recipes),
        ("baselines", sweep.baselines, params.recipes),
    ):
        for name in names:
            _require_name(path, f"sweep.{key}", name, known)
    for key, names, taught in (
        ("recipes", sweep.recipes, True),
        ("baselines", sweep.baselines, False),
    ):
        for name in names:
            if params.recipes[name].needs_teacher != taught:
                other = "baselines" if taught else "recipes"
                need = "needs no dump" if taught else "needs a dump"
                raise ConfigError(
                    f"{path}: sweep.{key} names {name}, which {need}; move it to sweep.{other}"
                )
    _require_targets(params)


def _require_targets(params: Params) -> None:
    for dump in params.sweep.dumps:
        for recipe in params.sweep.recipes:
            loss, where = params.recipes[recipe].loss, f"dump {dump}"
            require_targets(loss, params.dump_views(dump), where)
            require_features(loss, params.dump_codecs(dump), where)
        if params.dump_views(dump).mixes:
            for student in params.sweep.students:
                require_whole_groups(params.students[student].training.batch_size)


def _require_name(path: Path, key: str, name: str, known: Mapping[str, Any]) -> None:
    if name not in known:
        hint = did_you_mean(name, known)
        raise ConfigError(f"{path}: {key} names {name!r}; expected one of {', '.join(known)}{hint}")
