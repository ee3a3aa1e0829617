"""The parameter reference of stages/README.md, rendered from the docstrings behind params.yaml.

    python -m tests.parameter_reference

Rewrites the text between the two comments `MARKS`. A test fails if that text is out of date.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from pipeline.losses import LOSSES
from pipeline.losses.settings import settings_of
from pipeline.modalities.audio.options import AudioOptions
from pipeline.modalities.audio.preprocessing import GivenAudio
from pipeline.modalities.audio.spec import OPERATIONS as AUDIO_OPERATIONS
from pipeline.modalities.audio.spec import AudioViewSpec
from pipeline.modalities.images.augmentations import OwnAugmentation
from pipeline.modalities.images.options import ImageOptions
from pipeline.modalities.images.preprocessing import GivenPreprocessing
from pipeline.modalities.images.spec import AUGMENTATIONS, ViewSpec
from pipeline.modalities.items.options import ItemsOptions
from pipeline.modalities.items.preprocessing import GivenItems
from pipeline.modalities.items.spec import OPERATIONS as ITEMS_OPERATIONS
from pipeline.modalities.items.spec import ItemsViews
from pipeline.modalities.text.options import TextOptions
from pipeline.modalities.text.preprocessing import GivenText
from pipeline.modalities.text.spec import OPERATIONS as TEXT_OPERATIONS
from pipeline.modalities.text.spec import TextViews
from stages.data_params import DataParams
from stages.dump_params import DumpParams, DumpViews, EnsembleParams
from stages.params import (
    ModelParams,
    PlacesParams,
    RecipeParams,
    SweepParams,
    TrainingParams,
)
from stages.rehead_params import ProbeParams, ReheadParams

DOCUMENT = Path(__file__).parents[1] / "stages" / "README.md"
COMMAND = "python -m tests.parameter_reference"
MARKS = ("<!-- parameters -->", "<!-- end of parameters -->")
# Fields whose own fields appear beside the others, without an extra key.
_BESIDE = {"options": DataParams, "training": ModelParams, "spec": DumpViews, "settings": RecipeParams}
_SECTIONS: Mapping[str, tuple[str, tuple[type, ...]]] = {
    "data": ("`data`", (DataParams, ImageOptions)),
    "text data": ("`data` of texts", (TextOptions,)),
    "audio data": ("`data` of clips", (AudioOptions,)),
    "items data": ("`data` of items", (ItemsOptions,)),
    "training": ("`training`", (TrainingParams,)),
    "models": ("`teachers.NAME`, `students.NAME`", (ModelParams,)),
    "preprocessing": ("`preprocessing` of a teacher or student", (GivenPreprocessing,)),
    "text preprocessing": ("`preprocessing` of texts", (GivenText,)),
    "audio preprocessing": ("`preprocessing` of clips", (GivenAudio,)),
    "items preprocessing": ("`preprocessing` of items", (GivenItems,)),
    "dumps": ("`dumps.NAME`", (DumpParams,)),
    "views": ("`views` of a dump or of `training`", (DumpViews, ViewSpec)),
    "text views": ("`views` of texts", (TextViews,)),
    "audio views": ("`views` of clips", (AudioViewSpec,)),
    "items views": ("`views` of items", (ItemsViews,)),
    "ensembles": ("`ensembles.NAME`", (EnsembleParams,)),
    "reheads": ("`reheads.NAME`", (ReheadParams,)),
    "probes": ("`probes.NAME`", (ProbeParams,)),
    "recipes": ("`recipes.NAME`", (RecipeParams,)),
    "sweep": ("`sweep`", (SweepParams,)),
    "places": ("`places`", (PlacesParams,)),
}
_OPERATIONS: Mapping[str, tuple[type, ...]] = {
    "views": (*AUGMENTATIONS.values(), OwnAugmentation),
    "text views": tuple(TEXT_OPERATIONS.values()),
    "audio views": tuple(AUDIO_OPERATIONS.values()),
    "items views": tuple(ITEMS_OPERATIONS.values()),
}
_NOTES = {
    "text data": "With `modality: text`, in place of the keys of images.",
    "audio data": "With `modality: audio`, in place of the keys of images.",
    "items data": "With `modality: items`, in place of the keys of images.",
    "items views": "`count` belongs to a dump alone. Operations run in this order.",
    "text views": "`count` belongs to a dump alone. Operations run in this order.",
    "audio views": "`count` belongs to a dump alone. Operations run in this order.",
    "training": "A teacher or student may set each of these keys for itself.",
    "models": "Besides these keys, every key of `training` may stand here.",
    "views": "`count` belongs to a dump alone. Operations run in this order.",
    "recipes": "Each setting takes a number or a [schedule](../pipeline/losses/README.md).",
}


def reference() -> str:
    """Return the reference as Markdown, without the two comments."""
    lines: list[str] = []
    for name, (title, kinds) in _SECTIONS.items():
        lines += [f"### {title}", "", *((_NOTES[name], "") if name in _NOTES else ())]
        rows = [row for kind in kinds for row in _rows(kind)]
        lines += _table(("key", "default", "meaning"), rows)
        if name in _OPERATIONS:
            found = [row for kind in _OPERATIONS[name] for row in _operation(kind)]
            lines += _table(("operation", "setting", "default", "meaning"), found)
        if name == "recipes":
            lines += _table(("loss", "setting", "default", "range"), list(_losses()))
    return "\n".join(lines).rstrip()


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return [*lines, *(f"| {' | '.join(map(_cell, row))} |" for row in rows), ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _rows(kind: type) -> Iterator[tuple[str, str, str]]:
    said = meanings(kind)
    for field in fields(kind):  # type: ignore[arg-type]
        if _BESIDE.get(field.name) is not kind:
            yield f"`{field.name}`", _default(field), said[field.name]


def _operation(kind: type) -> Iterator[tuple[str, str, str, str]]:
    summary = inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].replace("\n", " ")
    summary = re.sub(r": see `own_code.py`", "", summary)
    yield f"`{kind.name}`", "", "", summary  # type: ignore[attr-defined]
    for name, default, meaning in _rows(kind):
        yield "", name, default, meaning


def _losses() -> Iterator[tuple[str, str, str, str]]:
    for name, loss in LOSSES.items():
        parameters = inspect.signature(loss.function).parameters
        settings = settings_of(loss.function)
        if not settings:
            yield f"`{name}`", "", "", ""
        for place, (key, allowed) in enumerate(settings.items()):
            schedule = loss.schedules.get(key)
            default = f"`{parameters[key].default:g}`"
            if schedule is not None:
                length = (
                    f"share: {schedule.share:.2g}" if schedule.share else f"epochs: {schedule.epochs:g}"
                )
                default = f"`{{warmup: {schedule.end:g}, {length}}}`"
            yield "" if place else f"`{name}`", f"`{key}`", default, allowed.expected


def _default(field: Field[Any]) -> str:
    if field.default is MISSING and field.default_factory is MISSING:
        return "required"
    value = field.default if field.default_factory is MISSING else field.default_factory()
    return f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    """Format a default as in params.yaml; an object with all its defaults is {}."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, str):
        return value or '""'
    return str(value) if isinstance(value, int) else "{}"


def meanings(kind: type) -> dict[str, str]:
    """Return the meaning of each field of a class, from its docstring or a base's.

    Raises:
        ValueError: no docstring documents a field.
    """
    told: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        told |= _arguments(one.__doc__ or "")
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if missing := [name for name in names if name not in told]:
        raise ValueError(f"{kind.__module__}.{kind.__name__}: no line under Args for {', '.join(missing)}")
    return {name: told[name] for name in names}


def _arguments(docstring: str) -> dict[str, str]:
    """Return the entries below `Args:`; `a, b: meaning` gives one entry per name."""
    _, found, rest = inspect.cleandoc(docstring).partition("Args:\n")
    if not found:
        return {}
    section = re.split(r"\n(?=\S)", rest)[0]
    entries = re.split(r"\n(?= {4}\w)", f"\n{section}")[1:]
    told: dict[str, str] = {}
    for entry in entries:
        names, _, meaning = entry.partition(":")
        text = re.sub(r"\bNone\b", "`null`", " ".join(meaning.split()))
        told |= {name.strip(): text for name in names.split(",")}
    return told


def reference_of(document: str) -> str:
    """Return the current reference in a document."""
    return document.partition(MARKS[0])[2].partition(MARKS[1])[0].strip()


def main() -> None:
    """Rewrite the reference in stages/README.md."""
    text = DOCUMENT.read_text()
    before, _, rest = text.partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    DOCUMENT.write_text(f"{before}{MARKS[0]}\n{reference()}\n{MARKS[1]}{after}")


if __name__ == "__main__":
    main()
