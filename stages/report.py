"""`pipeline report`: compare everything that the sweep trained."""

from __future__ import annotations

from dataclasses import asdict

import click

from pipeline.data.dataset import PreparedData
from pipeline.errors import ConfigError
from pipeline.files import write_bytes, write_json
from pipeline.progress import note
from pipeline.report.exhibits import make_exhibit
from pipeline.report.page import render_page
from pipeline.report.results import Report, dump_figures
from pipeline.report.runs import planned_runs, read_run, read_teacher
from pipeline.store.ensemble import Ensemble, open_logits
from pipeline.store.reader import LogitStore
from stages import layout
from stages.options import reads_params
from stages.params import Params, SweepParams


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
    report = _collect(params.sweep, stores)
    exhibits = {name: make_exhibit(name, store, data) for name, store in stores.items()}
    page = render_page(report, exhibits, test_images=len(data.test))
    results = report.to_dict()
    for name, exhibit in exhibits.items():
        found = exhibit.label_errors
        results["dumps"][name]["label_errors"] = None if found is None else asdict(found)
    write_json(layout.REPORTS / "results.json", results)
    write_bytes(layout.REPORTS / "results.csv", report.to_csv().encode())
    write_bytes(layout.REPORTS / "index.html", page.encode())
    for group in report.groups:
        click.echo(f"{group.student} {group.name}: top-1 {group.top1 or 'unknown, no labels'}")


def _collect(sweep: SweepParams, stores: dict[str, LogitStore | Ensemble]) -> Report:
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
    runs = [read_run(layout.RUNS / layout.run_name(p.dump, p.student, p.recipe, p.seed), p) for p in plans]
    dumps = {name: dump_figures(store.summary(), store.teacher_names) for name, store in stores.items()}
    teachers = {
        name: read_teacher(layout.RUNS / f"teacher-{name}", name)
        for name in dict.fromkeys(name for store in stores.values() for name in store.teacher_names)
    }
    return Report.of(runs, teachers, dumps)
