"""`pipeline report`: compare all runs of the sweep."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

import click
import torch

from pipeline.core.errors import MismatchError, ModelError, counted
from pipeline.core.files import write_bytes, write_json
from pipeline.core.progress import note
from pipeline.core.team import ALONE, Elsewhere, Team
from pipeline.core.text import NAME
from pipeline.modalities.prepared import PreparedData, require_sample
from pipeline.places.folder import Root
from pipeline.report.page import kept_figure, render_page
from pipeline.report.results import Report, dump_figures
from pipeline.report.runs import PlannedRun, Run, read_run, read_teacher
from pipeline.report.tables import make_gallery
from pipeline.samples.label_forms import is_known
from pipeline.samples.leaks import read_leaks
from pipeline.store.opening import open_logits
from pipeline.store.soft_labels import SoftLabels
from pipeline.tasks.table import find_task
from pipeline.tasks.task import Task
from stages import paths
from stages.dumps import dumps_in, require_as_asked, require_described_teacher, store_digest
from stages.engine import Engine
from stages.labels import tell_changed_labels
from stages.machine import open_prepared
from stages.options import reads_params, shares_reading
from stages.params import Params
from stages.places import find_store
from stages.ranks import require_alone
from stages.runs import changed_parameters, runs_of
from stages.runtime import bound_threads, default_workers
from stages.teachers import changes_since
from stages.team import team_of

_CPU = torch.device("cpu")
_OTHER_DATA = f"trained on different data than {paths.PREPARED} holds now"
_ALL_STAGES = "dvc repro, or the commands of its teacher, its dump and the student in turn"


@click.command()
@shares_reading(
    "Threads that read stored views; with --on the number of worker processes.  [default: one per "
    "available CPU]"
)
@reads_params
def command(params: Params, workers: int | None, engine: Engine | None) -> None:
    """Compare every run that `sweep` of params.yaml lists.

    Writes reports/results.json and results.csv, one row per run, and reports/index.html, one
    self-contained page. A missing run of the sweep is an error. With --on, workers of Ray look for label
    errors in the stored views.
    """
    require_alone()
    with team_of(engine, params) as team:
        write_report(params, workers if engine is None else None, team)


def open_stores(params: Params) -> dict[str, SoftLabels]:
    """Open the dumps of the sweep.

    Raises:
        IncompleteStoreError: one is missing or unfinished.
    """
    # Students were checked for drift, or trained with --allow-drift.
    return {name: open_logits(find_store(params, name), allow_drift=True) for name in params.sweep.dumps}


def write_report(params: Params, workers: int | None = None, team: Team = ALONE) -> None:
    """Compare all runs of the sweep; write results and the page.

    Args:
        params: all of params.yaml.
        workers: threads that read stored views; None for one per available CPU.
        team: processes that read them instead, if there are several.

    Raises:
        DataError: a run is missing.
    """
    bound_threads()
    data, task = open_prepared(params.data), find_task(params.data.task)
    require_sample(data, seed=params.data.seed, workers=default_workers())
    stores = open_stores(params)
    for name, store in stores.items():
        _require_teachers(params, name, store)
    report, outdated = _collect(params, stores, data, task)
    galleries = {
        name: make_gallery(
            name,
            store,
            data,
            workers or default_workers(),
            Elsewhere(team=team, reopen=partial(_reopen, find_store(params, name)))
            if team is not ALONE
            else None,
        )
        for name, store in stores.items()
    }
    judged = int(is_known(data.test.labels).sum()) if task.supervised else 0
    test_images = judged or len(data.test)
    leaks = read_leaks(paths.PREPARED)
    weak = _weak_teachers(report, data) if judged else []
    page = render_page(
        report, galleries, test_images=test_images, leaks=leaks, outdated=outdated, weak=weak
    )
    results = report.to_dict() | {"outdated": outdated}
    for name, gallery in galleries.items():
        found = gallery.label_errors
        results["dumps"][name]["label_errors"] = None if found is None else asdict(found)
    write_json(paths.REPORTS / "results.json", results)
    write_bytes(paths.REPORTS / "results.csv", report.to_csv().encode())
    write_bytes(paths.REPORTS / "index.html", page.encode())
    for group in report.groups:
        figure = f"{task.columns[0].title} {group.main or 'unknown, no labels'}"
        click.echo(f"{group.student} {group.name}: {figure}")
    click.echo(f"wrote {paths.REPORTS / 'index.html'}, results.json and results.csv")


def _weak_teachers(report: Report, data: PreparedData) -> list[str]:
    """Return one line, which is printed too, for each teacher that is hardly better than a guess."""
    kept, found = kept_figure(report.task), []
    for name, figures in report.teachers.items():
        quality = figures.get(kept)
        weakness = None
        if quality is not None:
            weakness = report.task.weakness(quality, data.test.labels, "the test samples")
        if weakness is not None:
            found.append(f"teacher {name}: {weakness}")
            note(found[-1])
    return found


def _reopen(place: Root) -> tuple[SoftLabels, PreparedData]:
    """Open a dump and the data, in a worker."""
    return open_logits(place, allow_drift=True), PreparedData.open(paths.PREPARED)


def _collect(
    params: Params, stores: dict[str, SoftLabels], data: PreparedData, task: Task
) -> tuple[Report, dict[str, list[str]]]:
    """Read all runs; return them, and per run what has changed since it was trained, which is told too."""
    dataset, plans = data.digest(), runs_of(params)
    note(f"reading {counted(len(plans), 'run')}")
    runs = {name: read_run(paths.RUNS / name, plan, task) for name, plan in plans.items()}
    outdated = {}
    for name, run in runs.items():
        plan = plans[name]
        if found := _changes(params, plan, run, dataset, stores.get(plan.dump or "")):
            outdated[name] = found
            for change in found:
                # Its dump is of the earlier data, too, and perhaps its teacher.
                again = change == _OTHER_DATA and plan.dump is not None
                note(f"{name}: {change}; run: {_ALL_STAGES if again else plan.command}")
    dumps = {
        name: dump_figures(store.summary(), store.teacher_names, tell_changed_labels(store, data))
        for name, store in stores.items()
    }
    teachers = {
        name: read_teacher(paths.RUNS / paths.teacher_run(name), name)
        for name in dict.fromkeys(name for store in stores.values() for name in store.teacher_names)
        if NAME.fullmatch(name)
    }
    for name in teachers:
        if found := changes_since(params, name, dataset):
            outdated[paths.teacher_run(name)] = found
            for change in found:
                note(f"teacher {name}: {change}; to retrain it, run: pipeline train-teacher {name}")
    return Report.of(list(runs.values()), teachers, dumps, task), outdated


def _changes(
    params: Params, plan: PlannedRun, run: Run, dataset: str, store: SoftLabels | None
) -> list[str]:
    """Return what has changed since a run was trained: without DVC, nothing trains it again."""
    try:
        changed = changed_parameters(params, plan, run)
        found = [f"params.yaml has changed since it was trained: {changed}"] if changed else []
    except ValueError as error:
        found = [f"cannot be compared with params.yaml: its 'made_with' is damaged ({error})"]
    if run.dataset not in (None, dataset):
        found.append(_OTHER_DATA)
    if store is not None and run.store not in (None, store_digest(store)):
        found.append(f"dump {plan.dump} has been made again or grown since it was trained")
    return found


def _require_teachers(params: Params, name: str, store: SoftLabels) -> None:
    """Refuse a dump of a different teacher than params.yaml; print other changes of the teacher.

    Raises:
        MismatchError: naming both teachers.
    """
    for dump, member in dumps_in(params, name, store):
        require_described_teacher(params, dump, member)
        try:
            require_as_asked(params, dump, member, _CPU)
        except (MismatchError, ModelError) as error:
            if member.teacher_names != (params.dump(dump).teacher,):
                raise
            note(str(error))
