"""The runs of the sweep of params.yaml: their names, and which of them are missing or out of date."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.core.errors import ConfigError, DataError
from pipeline.core.files import parse_object
from pipeline.core.hashing import difference
from pipeline.core.progress import note
from pipeline.report.runs import PlannedRun, Run, planned_runs, read_run
from pipeline.store.soft_labels import SoftLabels
from pipeline.tasks.task import Task
from stages import paths
from stages.dumps import store_digest
from stages.params import Params, as_written


def runs_of(params: Params) -> dict[str, PlannedRun]:
    """Return the runs of the sweep by name.

    Raises:
        ConfigError: there is none.
    """
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
            "sweep lists no run; it needs students, seeds, and recipes or baselines; add them"
        )
    # Names differ: params.yaml is refused where two runs have one.
    return {paths.run_name(p.dump, p.student, p.recipe, p.seed): p for p in plans}


def missing_runs(
    params: Params, task: Task, dataset: str, stores: Mapping[str, SoftLabels]
) -> dict[str, PlannedRun]:
    """Return the runs that are missing, unfinished, or of other parameters, data or dumps than now.

    Args:
        params: all of params.yaml.
        task: of the data.
        dataset: digest of the prepared data.
        stores: the sweep's dumps, by name.
    """
    digests = {dump: store_digest(store) for dump, store in stores.items()}
    return {
        name: plan
        for name, plan in runs_of(params).items()
        if not _is_made(params, name, plan, task, (dataset, digests.get(plan.dump or "")))
    }


def changed_parameters(params: Params, plan: PlannedRun, run: Run) -> str:
    """List the differences between params.yaml and the parameters that made a run; "" if none is known.

    Raises:
        ValueError: the run's record of them is damaged.
    """
    if run.made_with is None:
        return ""
    told = difference(parse_object(run.made_with.encode()), params.makes(plan.student, plan.recipe))
    return as_written(told)


def _is_made(
    params: Params, name: str, plan: PlannedRun, task: Task, origin: tuple[str, str | None]
) -> bool:
    """Whether a run is finished and of these digests: of the data, and of the store if it has one."""
    dataset, store = origin
    if not (paths.RUNS / name / "metrics.json").exists():
        return False
    try:
        run = read_run(paths.RUNS / name, plan, task)
        is_of_these = run.dataset in (None, dataset) and run.store in (None, store)
        return is_of_these and not changed_parameters(params, plan, run)
    except (DataError, ValueError) as error:
        note(f"{name}: is trained again: {error}")
        return False
