"""`pipeline inspect`: describe a store of logits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from pipeline.codecs.fidelity import Fidelity
from pipeline.codecs.rule import Measures
from pipeline.core.errors import ConfigError, counted, first_of
from pipeline.places.addresses import hidden_place
from pipeline.store.commands import dump_command
from pipeline.store.ensemble import Ensemble
from pipeline.store.labels import LabelChanges
from pipeline.store.reference import kind_of
from pipeline.store.rehead import Reheaded
from pipeline.store.summary import Inspection, inspect
from pipeline.tasks.table import task_of
from pipeline.tasks.task import Task
from stages.failures import say
from stages.labels import changes_at
from stages.options import debuggable, named_store


@click.command()
@click.argument("store")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@debuggable
def command(store: str, as_json: bool) -> None:
    """Show the contents of STORE: samples, teacher, size, fidelity and completeness.

    STORE is a folder, an address such as s3://bucket/main.zarr, or the name of a dump in data/logits.
    """
    store = named_store(store)
    summary, lines = _described(store)
    changes = changes_at(store)
    if as_json:
        told = LabelChanges() if changes is None else changes
        click.echo(json.dumps({**summary, **told.to_dict()}, indent=1))
        return
    for name, text in {**lines, **_labels(store, summary, changes)}.items():
        say(f"{name:15} {text}")


def _described(store: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return a store's figures, and the lines that tell them to people."""
    kind = kind_of(store)
    if kind == "ensemble":
        return _of_ensemble(store, Ensemble.open(store))
    if kind == "rehead":
        return _of_reheaded(store, Reheaded.open(store))
    found = inspect(store)
    return found.summary, _lines(store, found)


def _labels(store: str, summary: Mapping[str, Any], changes: LabelChanges | None) -> dict[str, str]:
    """Return the line about labels; none without prepared data to compare with."""
    if changes is None:
        return {}
    if changes.changed is None and summary["labels_digest"] is None:
        remedy = f"; tell them apart with: pipeline verify {hidden_place(store)} --upgrade"
        return {"labels": f"part of the dataset digest, so that a changed label is refused{remedy}"}
    return {"labels": str(changes)}


def _of_ensemble(place: str, ensemble: Ensemble) -> tuple[dict[str, Any], dict[str, str]]:
    summary, blend = ensemble.summary(), ensemble.blend
    lines = {
        "ensemble": f"{hidden_place(place)}: the mean of {blend.average} of {', '.join(ensemble.names)}",
        "weights": ", ".join(f"{weight:g}" for weight in blend.weights),
        "samples": _size(summary, ensemble.measures),
        _accuracy(_task(ensemble.teacher)): _quality(ensemble.teacher_top1),
    }
    return summary, lines


def _of_reheaded(place: str, reheaded: Reheaded) -> tuple[dict[str, Any], dict[str, str]]:
    summary, finding, task = reheaded.summary(), reheaded.finding, _task(reheaded.teacher)
    absolute = finding.measures.is_absolute
    cost = f"{_cost(task, finding.fidelity)}, estimated on {finding.rows:,} rows encoded again"
    lines = {
        "re-headed": f"{hidden_place(place)}: {reheaded.name} with head {finding.source}",
        "samples": _size(summary, reheaded.measures),
        "outputs": first_of(reheaded.head.classes),
        f"its {_accuracy(task)}": _quality(finding.teacher_top1),
        "fidelity": cost,
        "budget": finding.codec_spec.under(absolute=absolute).partition(" ")[2].strip("()"),
        "head digest": summary["rehead"]["digest"],
    }
    return summary, lines


def _lines(store: str, found: Inspection) -> dict[str, str]:
    summary, teacher, task = found.summary, found.header.teacher, _task(found.header.teacher)
    shards, per_view = summary["shards"], summary["bytes_per_sample_view"]
    again = dump_command(store)
    complete = "complete" if summary["complete"] else f"NOT complete; resume with: {again}"
    views = {key: value for key, value in found.header.views.items() if value is not None}
    return {
        "store": f"{hidden_place(store)}, schema {summary['schema']}, {complete}",
        "samples": _samples(found),
        "teacher": f"{teacher['name']} ({teacher['architecture']['name']}, {teacher['precision']})",
        f"teacher's {_accuracy(task)}": _quality(summary["teacher_top1"]),
        "views": json.dumps(views),
        "codec": _codec(found, per_view),
        "size": f"{summary['bytes']:,} bytes of outputs in {shards['done']} of {shards['total']} shards",
        **({"fidelity": _cost(task, found.fidelity)} if per_view is not None else {}),
        **({"growing": str(found.growing)} if found.growing else {}),
        **{f"{part} digest": digest for part, digest in summary["fingerprint"].items()},
    }


def _task(teacher: Mapping[str, Any]) -> Task | None:
    """Return a teacher's task; None for user code, which is not needed to inspect a store."""
    try:
        return task_of(teacher)
    except ConfigError:
        return None


def _accuracy(task: Task | None) -> str:
    return "correct" if task is None else task.accuracy


def _cost(task: Task | None, fidelity: Fidelity) -> str:
    if task is not None:
        return task.describe(fidelity)
    return ", ".join(f"{name} {value:.3g}" for name, value in fidelity.summary().items())


def _quality(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.4f} on the test samples, from the cached logits"


def _samples(found: Inspection) -> str:
    summary, labelled = found.summary, found.labelled
    few = labelled is not None and labelled < summary["n_samples"]
    size = _size(summary, found.header.layout.measures)
    return size + (f", {labelled:,} labelled samples" if few else "")


def _size(summary: Mapping[str, Any], measures: Measures) -> str:
    noun = "output" if measures.is_absolute else "class"
    views, outputs = counted(summary["n_views"], "view"), counted(summary["n_classes"], noun)
    return f"{summary['n_samples']:,} x {views}, {outputs}"


def _codec(found: Inspection, per_view: float | None) -> str:
    codec, spec = found.summary["codec"], found.header.codec_spec
    asked = spec.under(absolute=found.header.layout.measures.is_absolute)
    chosen = codec if spec.budget is None else f"{codec}, requested as {asked}"
    return chosen if per_view is None else f"{chosen}, {per_view:.1f} bytes per sample and view"
