"""`pipeline inspect`: say what a store of logits holds."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pipeline.store.reader import LogitStore
from stages.options import debuggable


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@debuggable
def command(store: Path, as_json: bool) -> None:
    """Say what STORE holds: of what, from whom, how large, how faithful, how complete."""
    opened = LogitStore.open(store)
    summary = opened.summary()
    if as_json:
        click.echo(json.dumps(summary, indent=1))
        return
    teacher, fidelity = opened.manifest.teacher, summary["fidelity"]
    lines = {
        "store": f"{store}, schema {summary['schema']}, complete",
        "samples": f"{summary['n_samples']:,} x {summary['n_views']} views, {summary['n_classes']} classes",
        "teacher": f"{teacher['name']} ({teacher['architecture']['name']}, {teacher['precision']})",
        "top-1": f"{summary['teacher_top1']:.4f} on the test images, from the cache"
        if summary["teacher_top1"] is not None
        else "no labelled test images",
        "views": opened.view_spec,
        "codec": f"{summary['codec']}, {summary['bytes_per_sample_view']:.1f} bytes a sample and view",
        "size": f"{summary['bytes']:,} bytes in {summary['shards']['done']} shards",
        "KL at T = 1": f"mean {fidelity['kl_t1_mean']:.2e}, 99th percentile {fidelity['kl_t1_p99']:.2e}",
        "KL at T = 4": f"mean {fidelity['kl_t4_mean']:.2e}",
        "agreement": f"{fidelity['top1_agreement']:.5f} of the first classes survive the codec",
    }
    lines |= {f"{part} digest": digest for part, digest in summary["fingerprint"].items()}
    for name, text in lines.items():
        click.echo(f"{name:15} {text}")
