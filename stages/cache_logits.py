"""`pipeline cache-logits`: run a teacher once over all views and keep its logits."""

from __future__ import annotations

from pathlib import Path

import click
import torch

from pipeline.bench import Bench
from pipeline.caching import DumpPlan, cache_logits
from pipeline.data.packed import PreparedData
from stages import layout
from stages.options import reads_params, runs_on_device
from stages.params import Params
from stages.teachers import load_teacher


@click.command()
@click.argument("dump")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=None,
    help="The store's folder.  [default: data/logits/DUMP.zarr]",
)
@runs_on_device
@reads_params
def command(params: Params, dump: str, out: Path | None, device: torch.device, workers: int) -> None:
    """Run the teacher of DUMP once over all views and keep its logits in a Zarr store.

    An interrupted dump goes on where it stopped; a complete one is left as it is.
    """
    spec = params.dump(dump)
    bench = Bench(data=PreparedData.open(layout.PREPARED), device=device, workers=workers)
    plan = DumpPlan(
        views=spec.views.spec(),
        view_count=spec.views.count,
        codec=spec.codec,
        batch_size=spec.batch_size,
        shard_rows=spec.shard_rows,
        allow_poor_teacher=spec.allow_poor_teacher,
    )
    teacher = load_teacher(spec.teacher, spec.precision, device)
    manifest = cache_logits(bench, teacher, plan, out or layout.store(dump))
    figures = manifest.fidelity().summary()
    for name, cached in manifest.teacher_top1["cached"].items():
        direct = manifest.teacher_top1["direct"][name]
        if cached is not None and direct is not None:
            click.echo(f"{dump}: teacher top-1 on {name} {direct:.4f} direct, {cached:.4f} from the cache")
    click.echo(
        f"{dump}: {plan.view_count} views, {sum(r.bytes for r in manifest.shards.values()):,} bytes, "
        f"KL(teacher || cached) {figures['kl_t1_mean']:.1e} at T = 1, "
        f"{figures['kl_t4_mean']:.1e} at T = 4, top-1 agreement {figures['top1_agreement']:.4f}"
    )
