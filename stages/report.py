"""`pipeline report`: compare everything that the sweep trained."""

from __future__ import annotations

import click
import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data.dataset import PreparedData
from pipeline.errors import ConfigError
from pipeline.feed import Feed
from pipeline.files import write_bytes, write_json
from pipeline.progress import note
from pipeline.report.figures import Example, make_examples, spread_rows
from pipeline.report.page import render_page
from pipeline.report.results import Report, dump_figures
from pipeline.report.runs import planned_runs, read_metrics, read_run
from pipeline.store.ensemble import Ensemble, open_logits
from pipeline.store.reader import LogitStore
from stages import layout
from stages.options import reads_params
from stages.params import Params, SweepParams

EXAMPLES = 6
EXAMPLE_VIEWS = 3


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
    examples = {name: _examples(name, store, data) for name, store in stores.items()}
    page = render_page(report, examples, test_images=len(data.test))
    write_json(layout.REPORTS / "results.json", report.to_dict())
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
    dumps = {
        name: dump_figures(store.summary(), " + ".join(store.teacher_names))
        for name, store in stores.items()
    }
    teachers = {
        name: read_metrics(
            layout.RUNS / f"teacher-{name}" / "metrics.json", f"pipeline train-teacher {name}"
        )
        for name in dict.fromkeys(name for store in stores.values() for name in store.teacher_names)
    }
    return Report.of(runs, teachers, dumps)


def _examples(name: str, store: LogitStore | Ensemble, data: PreparedData) -> list[Example]:
    """Render a few samples as the teacher saw them; one view of logits in memory at a time."""
    if store.view_spec.mixes and len(data.train) < store.n_samples:
        note(f"{name}: no examples, since images that others are mixed with have left the data")
        return []
    note(f"rendering examples of {name}")
    rows = spread_rows(data.train.labels, EXAMPLES)
    feed = Feed(
        data.train,
        store.view_spec,
        store.preprocessing,
        device=torch.device("cpu"),
        blocks=store.blocks_of(data.train),
    )
    places = torch.from_numpy(store.rows_of(data.train)[rows])
    views = range(min(EXAMPLE_VIEWS, store.n_views))
    return make_examples(
        data.train.labels[rows],
        classes=data.classes,
        pixels=[feed.pixels(view, rows).numpy() for view in views],
        logits=[store.view(view)[places].numpy() for view in views],
        mixtures=[_mixture(feed, view, rows) for view in views],
    )


def _mixture(
    feed: Feed, view: int, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
    """Return the labels of the images that are mixed into some, and the share of each that is its own."""
    shares = feed.shares(view, rows)
    return None if shares is None else (feed.images.labels[shares[0]], shares[1])
