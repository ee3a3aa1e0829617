"""`pipeline inspect`: say what a store of logits holds."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pipeline.store.summary import Inspection, inspect
from stages.options import debuggable


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@debuggable
def command(store: Path, as_json: bool) -> None:
    """Say what STORE holds: of what, from whom, how large, how faithful, how complete."""
    found = inspect(store)
    if as_json:
        click.echo(json.dumps(found.summary, indent=1))
        return
    for name, text in _lines(store, found).items():
        click.echo(f"{name:15} {text}")


def _lines(store: Path, found: Inspection) -> dict[str, str]:
    summary, teacher, fidelity = found.summary, found.teacher, found.summary["fidelity"]
    shards, per_view = summary["shards"], summary["bytes_per_sample_view"]
    complete = "complete" if summary["complete"] else "NOT complete; go on with: pipeline cache-logits"
    top1 = summary["teacher_top1"]
    views = {key: value for key, value in found.views.items() if value is not None}
    return {
        "store": f"{store}, schema {summary['schema']}, {complete}",
        "samples": f"{summary['n_samples']:,} x {summary['n_views']} views, {summary['n_classes']} classes",
        "teacher": f"{teacher['name']} ({teacher['architecture']['name']}, {teacher['precision']})",
        "teacher's top-1": "unknown" if top1 is None else f"{top1:.4f} on the test images, from the cache",
        "views": json.dumps(views),
        "codec": summary["codec"]
        + ("" if per_view is None else f", {per_view:.1f} bytes a sample and view"),
        "size": f"{summary['bytes']:,} bytes in {shards['done']} of {shards['total']} shards",
        **(_fidelity(fidelity) if per_view is not None else {}),
        **{f"{part} digest": digest for part, digest in summary["fingerprint"].items()},
    }


def _fidelity(figures: dict[str, float]) -> dict[str, str]:
    return {
        "KL at T = 1": f"mean {figures['kl_t1_mean']:.2e}, 99th percentile {figures['kl_t1_p99']:.2e}",
        "KL at T = 4": f"mean {figures['kl_t4_mean']:.2e}",
        "agreement": f"{figures['top1_agreement']:.5f} of the first classes survive the codec",
    }
