"""`pipeline report`: compare everything that the sweep trained."""

from __future__ import annotations

import json
from dataclasses import asdict

import click
import torch

from pipeline.data.dataset import PreparedData
from pipeline.data.leaks import read_leaks
from pipeline.differences import difference
from pipeline.errors import ConfigError, MismatchError
from pipeline.files import write_bytes, write_json
from pipeline.naming import NAME
from pipeline.progress import note
from pipeline.report.exhibits import make_exhibit
from pipeline.report.page import render_page
from pipeline.report.results import Report, dump_figures
from pipeline.report.runs import PlannedRun, Run, planned_runs, read_run, read_teacher
from pipeline.store.ensemble import Ensemble, open_logits
from pipeline.store.reader import LogitStore
from stages import layout
from stages.options import reads_params
from stages.params import Params
from stages.teachers import load_teacher, trust_in

_CPU = torch.device("cpu")


@click.command()
@reads_params
def command(params: Params) -> None:
    """Compare every run that `sweep` of params.yaml names.

    Writes reports/results.json and results.csv, a row a run, and reports/index.html, one page that
    stands alone. A run of the sweep that is missing is an error.
    """
    data = PreparedData.open(layout.PREPARED)
    # Students have been checked, or were told to put up with it.
    stores = {name: open_logits(layout.store(name), allow_drift=True) for name in params.sweep.dumps}
    report = _collect(params, stores)
    exhibits = {name: make_exhibit(name, store, data) for name, store in stores.items()}
    page = render_page(report, exhibits, test_images=len(data.test), leaks=read_leaks(layout.PREPARED))
    results = report.to_dict()
    for name, exhibit in exhibits.items():
        found = exhibit.label_errors
        results["dumps"][name]["label_errors"] = None if found is None else asdict(found)
    write_json(layout.REPORTS / "results.json", results)
    write_bytes(layout.REPORTS / "results.csv", report.to_csv().encode())
    write_bytes(layout.REPORTS / "index.html", page.encode())
    for group in report.groups:
        click.echo(f"{group.student} {group.name}: top-1 {group.top1 or 'unknown, no labels'}")


def _collect(params: Params, stores: dict[str, LogitStore | Ensemble]) -> Report:
    sweep = params.sweep
    plans = planned_runs(
        students=sweep.students,
        baselines=sweep.baselines,
        dumps=sweep.dumps,
        recipes=sweep.recipes,
        seeds=sweep.seeds,
    )
    if not plans:
        raise ConfigError(
            "sweep names no run; expected students, seeds, and recipes or baselines; add them"
        )
    note(f"reading {len(plans)} runs")
    names = [layout.run_name(p.dump, p.student, p.recipe, p.seed) for p in plans]
    runs = [read_run(layout.RUNS / name, plan) for name, plan in zip(names, plans, strict=True)]
    for name, plan, run in zip(names, plans, runs, strict=True):
        _tell_other_parameters(params, name, plan, run)
    for name, store in stores.items():
        _tell_other_teachers(params, name, store)
    dumps = {name: dump_figures(store.summary(), store.teacher_names) for name, store in stores.items()}
    teachers = {
        name: read_teacher(layout.RUNS / layout.teacher_run(name), name)
        for name in dict.fromkeys(name for store in stores.values() for name in store.teacher_names)
        if NAME.fullmatch(name)
    }
    return Report.of(runs, teachers, dumps)


def _tell_other_parameters(params: Params, name: str, plan: PlannedRun, run: Run) -> None:
    """Say where a run is not what params.yaml now says: by hand, nothing trains it again."""
    if run.made_with is None:
        return
    changed = difference(json.loads(run.made_with), params.makes(plan.student, plan.recipe))
    if changed:
        note(f"{name}: params.yaml has changed since it was trained: {changed}; run: {plan.command}")


def _tell_other_teachers(params: Params, name: str, store: LogitStore | Ensemble) -> None:
    """Say where the teacher of params.yaml is not the one that a dump is of."""
    dumps = params.ensembles[name].of if name in params.ensembles else (name,)
    for dump, member in zip(dumps, store.members, strict=False):
        # Not by the store's own word: a store does not choose which file is loaded as a model.
        spec = params.dump(dump)
        if not layout.teacher_checkpoint(spec.teacher).exists():
            continue
        trust = trust_in(params, spec.teacher)
        try:
            member.require_teacher(load_teacher(spec.teacher, spec.precision, _CPU, trust=trust))
        except MismatchError as error:
            note(str(error))
