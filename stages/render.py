"""Render the files of a new project from the templates of this package."""

from __future__ import annotations

from typing import Any

import jinja2
import yaml

from pipeline.modalities.modality import DataOptions, Modality
from pipeline.modalities.table import DEFAULT
from pipeline.tasks.table import find_task


def render(template: str, **values: Any) -> str:
    """Render a template of this package."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("stages", "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 (YAML, no page)
    )
    return environment.get_template(template).render(**values)


def stages_of(modality: Modality, options: DataOptions | None = None, *, pointer: bool = False) -> str:
    """Return the text of dvc.yaml for a modality; stages depend on the keys of `data` that decide them.

    Args:
        modality: of the samples.
        options: as params.yaml has them; None for the defaults.
        pointer: track a pointer per dump instead of its store: see `places.py`.
    """
    options = options or modality.options_type()
    left_out = {*options.refusing, *options.omitted}
    decisive = [name for name in options.asked() if name not in left_out]
    named = [] if modality.name == DEFAULT else ["modality"]
    return render(
        "dvc.yaml.j2",
        decisive=[*named, *decisive],
        shaping=list(options.for_models()),
        main=find_task(modality.task).columns[0].name,
        pointer=pointer,
    )


def quoted_yaml(text: str) -> str:
    r"""Return any text as a double-quoted YAML scalar.

    >>> print(quoted_yaml('a "b": c'))
    "a \"b\": c"
    """
    written: str = yaml.safe_dump(text, default_style='"', allow_unicode=True, width=1 << 20)
    return written.strip()
