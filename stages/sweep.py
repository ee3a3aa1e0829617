"""`pipeline sweep`: train the missing runs of the sweep, one by one or on Ray, and compare all runs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click

from pipeline.core.errors import TrainingError, counted, first_of
from pipeline.core.progress import note
from pipeline.report.runs import PlannedRun
from pipeline.tasks.table import find_task
from stages.engine import Engine
from stages.machine import open_prepared
from stages.options import reads_params, starts_on_engine
from stages.params import Params
from stages.ranks import require_alone
from stages.ray_cluster import started
from stages.ray_commands import Ended, Job, run_all
from stages.report import open_stores, write_report
from stages.runs import missing_runs, runs_of
from stages.runtime import STARTED_BY, command_line

_DVC = ("dvc.yaml", ".dvc")


@click.command()
@starts_on_engine
@reads_params
def command(params: Params, engine: Engine | None) -> None:
    """Train every run that `sweep` of params.yaml lists and that is missing, and write the report.

    A run whose parameters, data or dump have changed since is trained again. Each run is a process of its
    own, `pipeline train-student`: one after the other, or with --on as many at a time as Ray has workers.
    There, the `workers` of a student share each of its runs.
    The dumps must be complete. Interrupted runs resume.
    """
    require_alone()
    params.require_models()
    data, every = open_prepared(params.data), runs_of(params)
    stores = open_stores(params)
    missing = missing_runs(params, find_task(params.data.task), data.digest(), stores)
    note(f"{len(missing)} of {counted(len(every), 'run')} to train")
    commands = {name: _arguments(plan) for name, plan in missing.items()}
    if engine is None:
        _follow(_one_by_one(commands), len(commands))
    elif commands:
        jobs = {
            name: Job(commands[name], params.student(plan.student).workers)
            for name, plan in missing.items()
        }
        with started(engine, together=max(job.processes for job in jobs.values())) as cluster:
            _follow(run_all(cluster, jobs), len(jobs))
    write_report(params)
    if all(Path(name).exists() for name in _DVC):
        click.echo(f"register the outputs with DVC: {_commit(params)}")


def _arguments(plan: PlannedRun) -> list[str]:
    """Return the arguments that train a run, with the options of this command."""
    given = click.get_current_context().params
    dump = [] if plan.dump is None else ["--dump", plan.dump]
    workers = [] if given["on"] or given["workers"] is None else ["--workers", str(given["workers"])]
    return [
        *("train-student", plan.student, plan.recipe, str(plan.seed), *dump, *workers),
        *("--device", given["device"], "--render", given["render"]),
        *("--params", str(given["params_path"])),
        *(word for override in given["overrides"] for word in ("--set", override)),
    ]


def _one_by_one(commands: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, Ended]]:
    """Run commands one after the other; their progress goes to stderr."""
    for name, arguments in commands.items():
        with subprocess.Popen(  # noqa: S603
            command_line(arguments),
            env={**os.environ, STARTED_BY: str(os.getpid())},
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                told, _ = process.communicate()
            except BaseException:
                # Not killed: it saves its state, and holds its lock until it has ended.
                process.terminate()
                process.wait()
                raise
        yield name, Ended(status=process.returncode, stdout=told, stderr="")


def _follow(ends: Iterator[tuple[str, Ended]], total: int) -> None:
    """Print the results of runs as they end.

    Raises:
        TrainingError: a run failed; the others were trained nevertheless.
    """
    failed = []
    for number, (name, ended) in enumerate(ends, 1):
        click.echo(ended.stdout, nl=False)
        if ended.status:
            failed.append(name)
            reason = ended.error or next(iter(ended.stderr.splitlines()[-1:]), "see above")
            note(f"{name}: failed with exit status {ended.status}: {reason}")
        note(f"{number} of {counted(total, 'run')} done")
    if failed:
        raise TrainingError(
            f"{len(failed)} of {counted(total, 'run')} failed: {first_of(failed)}; the reasons are above; "
            "correct them and run the same command again"
        )


def _commit(params: Params) -> str:
    """Return the command that tells DVC of the runs and the report."""
    sweep = params.sweep
    groups = {
        "train-student": bool(sweep.dumps and sweep.recipes),
        "train-baseline": bool(sweep.baselines),
        "report": True,
    }
    return f"dvc commit --force {' '.join(name for name, exists in groups.items() if exists)}"
