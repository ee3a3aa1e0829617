"""`pipeline plan`: estimate the cost of a dump before it runs."""

from __future__ import annotations

import json

import click

from pipeline.core.errors import ConfigError
from pipeline.core.progress import duration
from pipeline.dump.forecast import Forecast, forecast
from pipeline.dump.preflight import size
from pipeline.dump.rehead import require_fine
from pipeline.places.folder import Root
from pipeline.tasks.task import Task
from stages.machine import Machine
from stages.options import reads_params, runs_on_device, writes_store
from stages.params import Params
from stages.places import place_of
from stages.rehead import lines, prepared
from stages.rehead_params import ProbeParams, ReheadParams
from stages.teachers import dumping


@click.command()
@click.argument("dump")
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=None,
    metavar="N",
    help="Extrapolate from the prepared samples to N training samples, validation included. The "
    "test split keeps its size.  [default: the prepared samples]",
)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@writes_store
@runs_on_device
@reads_params
def command(
    params: Params, dump: str, out: Root | None, samples: int | None, as_json: bool, machine: Machine
) -> None:
    """Run the teacher of DUMP over a few samples and estimate the cost of the dump, or of its remainder.

    Bytes are measured with the store's compressor, time on this machine. Both are compared with the free
    disk space and memory. Nothing is written.
    """
    if dump in params.ensembles:
        raise ConfigError(
            f"{dump!r} is an ensemble, which costs next to nothing; plan its dumps instead: "
            f"{', '.join(params.ensembles[dump].of)}"
        )
    if (reheaded := params.reheaded(dump)) is not None:
        _foresee_head(params, dump, reheaded, out or place_of(params, dump), machine, as_json=as_json)
        return
    context, teacher, spec = dumping(params, dump, machine)
    expected = forecast(context, teacher, spec, out or place_of(params, dump), samples)
    if as_json:
        click.echo(json.dumps(expected.to_dict(), indent=1))
        return
    for name, text in _lines(expected, context.task).items():
        click.echo(f"{name:10} {text}")


def _foresee_head(
    params: Params,
    name: str,
    asked: ReheadParams | ProbeParams,
    path: Root,
    machine: Machine,
    *,
    as_json: bool,
) -> None:
    """Print the cost of another head: bytes of its tensors, and no forward pass."""
    made, context = prepared(params, name, asked, path, machine)
    n_bytes = sum(values.nbytes for values in made.head.tensors().values())
    if as_json:
        figures = {"bytes_total": n_bytes, "bytes_per_sample_view": 0.0, "files": 2}
        costs = {"teacher_forwards": 0, "seconds_estimate": 0.0}
        click.echo(json.dumps({**figures, **costs, "fidelity": made.finding.fidelity.summary()}, indent=1))
        return
    for line in (*lines(name, made, context), f"{name}: {size(n_bytes)} to write, no forward pass"):
        click.echo(line)
    require_fine(name, made, context)


def _lines(expected: Forecast, task: Task) -> dict[str, str]:
    needed, free = expected.disk_needed_bytes, expected.disk_free_bytes
    disk = f"{size(needed)} to write"
    if free is not None:
        short = f"{size(needed - free)} short: the dump will be refused"
        disk += f", {size(free)} free, {'enough' if needed <= free else short}"
    memory, there = expected.memory_bytes, expected.memory_free_bytes
    short = "; the system may kill the dump" if there is not None and memory > there else ""
    kept = f"{expected.image_bytes:,} bytes, packed" if expected.image_bytes else "kept as files"
    return {
        "samples": f"{expected.samples:,} in all splits, {kept}",
        "codec": f"{expected.codec}, {expected.bytes_per_sample_view:.1f} bytes per sample and view",
        "fidelity": f"{task.describe(expected.fidelity)}, measured on the pilot",
        "size": f"{expected.bytes_total:,} bytes in {expected.files:,} files: outputs, keys and metadata",
        "teacher": f"{expected.teacher_forwards:,} forward passes to do",
        "time": f"{duration(expected.seconds_estimate)} on this device",
        "disk": disk,
        "memory": f"{size(memory)}{'' if there is None else f' of {size(there)} available'}{short}",
    }
